"""Host side: the usual ways from a set's images to what a network sees."""

from collections.abc import Sequence
from typing import Any

from repjax import types
from repjax.data.images import randaugment
from repjax.data.images import transforms
from repjax.data.reading import decode
from repjax.data.reading import source as source_lib


def images(
  source: source_lib.Source,
  *,
  size: int,
  padding: int,
  flip: bool,
  mean: Sequence[float],
  std: Sequence[float],
  area: Sequence[float] = (0.05, 1.0),
  rand_augment_layers: int = 0,
  rand_augment_magnitude: float = 10,
  cutout: int = 0,
  erasing: float = 0.0,
) -> transforms.Recipe:
  """Crop, flip, RandAugment, scale, erase; in this order, each only if asked.

  Args:
    source: The set; decides between two kinds of cropping.
    size: Side of what the network sees; 0 keeps the set's own size. Where it
      differs from the set's, training takes Inception crops and evaluation
      resizes the whole image, as the authors of ViT do.
    padding: For images that keep their size: pixels by which they are padded
      and cropped again.
    flip: Whether to mirror half of the images.
    mean: Mean of value / 255, one number or one a channel.
    std: Standard deviation of value / 255, one number or one a channel.
    area: Range of an Inception crop's part of the image.
    rand_augment_layers: Operations of RandAugment; 0 for none.
    rand_augment_magnitude: Strength of RandAugment's operations, >= 0.
    cutout: Side of Cutout's square, after scaling, as in the paper; 0 for none.
    erasing: Probability of random erasing with the mean; 0 for none.

  Raises:
    InputError: The set has no images, or they differ in size and `size` is 0,
      or a value is out of range.
  """
  types.check_range(
    '[0, inf)',
    size=size,
    padding=padding,
    rand_augment_layers=rand_augment_layers,
    rand_augment_magnitude=rand_augment_magnitude,
    cutout=cutout,
  )
  types.check_range('[0, 1]', erasing=erasing)
  if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
    raise types.InputError(f'area is (least, most) in (0, 1]; got {area}')
  for values in (mean, std):
    if len(values) not in (1, source.num_channels):
      raise types.InputError(
        f'mean and std are one number or one a channel, of which {source.name} '
        f'has {source.num_channels}; got {mean=} and {std=}'
      )
  source.check_images()
  fixed = source.image_shape
  if fixed is None and not size:
    raise types.InputError(
      f'The images of {source.name} differ in size: set config.augment.size.'
    )
  resizes = fixed is None or (size and fixed[:2] != (size, size))
  channels: Any = source.num_channels  # What is no image, reading refuses.
  shape = fixed if fixed and not resizes else (size, size, channels)
  scale = transforms.normalise(mean, std)
  steps = []
  if padding and not resizes:
    steps.append(transforms.random_crop(padding))
  if flip:
    steps.append(transforms.random_flip())
  if rand_augment_layers:
    steps.append(
      randaugment.rand_augment(rand_augment_layers, rand_augment_magnitude)
    )
  steps.append(scale)
  if cutout:
    steps.append(transforms.cutout(cutout))
  if erasing:
    steps.append(transforms.random_erasing(probability=erasing, fill=0.0))
  return transforms.Recipe(
    train=transforms.compose(*steps),
    evaluate=scale,
    decode_train=decode.inception_crop(size, area=(area[0], area[1]))
    if resizes
    else None,
    decode_evaluate=decode.resize(size) if resizes else None,
    shape=shape,
  )
