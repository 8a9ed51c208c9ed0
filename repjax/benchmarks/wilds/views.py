"""Host side: the views of images that methods of U-WILDS learn from."""

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.images import randaugment
from repjax.data.images import stains
from repjax.data.images import transforms
from repjax.data.reading import decode
from repjax.data.reading import source as sources

Kind = Literal['none', 'randaugment', 'stains']


class Views(NamedTuple):
  """Transforms of whole batches.

  Attributes:
    weak: Mirrored where that is asked for, and scaled.
    strong: Augmented, too; the same as `weak` where no kind is given.
    evaluate: Scaled alone.
    decode: What makes images of one size of a set's images, or None.
  """

  weak: transforms.Transform
  strong: transforms.Transform
  evaluate: transforms.Transform
  decode: decode.Decode | None

  def pair(self, *, first: Literal['weak', 'strong']) -> transforms.Transform:
    """'image', and a strong view in 'strong'.

    Args:
      first: What 'image' is. FixMatch learns labelled rows from strong views,
        and guesses of others from weak ones.

    Raises:
      InputError: If there is no such view.
    """
    types.check_choice('first', first, ('weak', 'strong'))
    own = self.strong if first == 'strong' else self.weak
    split = own.num_draws

    def apply(columns, draws):
      strong = self.strong.apply(columns, draws[:, split:])['image']
      return {**own.apply(columns, draws[:, :split]), 'strong': strong}

    return transforms.Transform(split + self.strong.num_draws, apply)


def make(
  source: sources.Source,
  *,
  kind: Kind,
  size: int,
  flip: bool,
  mean: Sequence[float],
  std: Sequence[float],
  layers: int,
  magnitude: float,
  cutout: int,
  jitter: float,
) -> Views:
  """The views of a set's images.

  Args:
    source: The set.
    kind: Of the strong view: 'none', 'randaugment' with Cutout (U-WILDS), or
      'stains'.
    size: Side of images that differ in size; 0 keeps those of one size.
    flip: Whether half of the images are mirrored.
    mean: Mean of value / 255, one number or one a channel.
    std: Standard deviation of value / 255, one number or one a channel.
    layers: Of RandAugment: operations an image.
    magnitude: Of RandAugment, >= 0. (U-WILDS draws it anew for each operation.)
    cutout: With RandAugment: side of Cutout's square; 0 for none.
    jitter: Strength of the jitter of stains, >= 0.

  Raises:
    InputError: The set has no images, or they differ in size and `size` is 0,
      or a setting is out of range.
  """
  types.check_choice('config.augment.kind', kind, ('none', *_KINDS))
  types.check_range('[0, inf)', size=size, layers=layers, magnitude=magnitude)
  types.check_range('[0, inf)', cutout=cutout, jitter=jitter)
  source.check_images()
  if source.image_shape is None and not size:
    raise types.InputError(
      f'The images of {source.name} differ in size: set config.augment.size.'
    )
  scale = transforms.normalise(mean, std)
  before = [transforms.random_flip()] if flip else []
  strong, after = [], []
  if kind == 'stains':
    strong = [stains.stain_jitter(jitter)]
  elif kind == 'randaugment':
    strong = [randaugment.rand_augment(layers, magnitude)]
    after = [transforms.cutout(cutout)] if cutout else []
  return Views(
    weak=transforms.compose(*before, scale),
    strong=transforms.compose(*before, *strong, scale, *after),
    evaluate=scale,
    decode=decode.resize(size) if size else None,
  )


_KINDS = ('randaugment', 'stains')


def plain() -> Views:
  """The views of rows that are learnt from as they are, such as texts."""
  same = transforms.Transform(0, lambda columns, draws: columns)
  return Views(weak=same, strong=same, evaluate=same, decode=None)


def copies(
  source: sources.Source,
  transform: transforms.Transform,
  number: int,
  *,
  seed: int,
) -> dict[str, np.ndarray]:
  """Columns of all rows of a small set, each in several views, [number * N].

  For studies whose models train inside of one compiled loop: what a host would
  draw anew for each step is drawn `number` times for all.

  Args:
    source: N rows.
    transform: Of the rows; may draw.
    number: Views of each row.
    seed: Of the draws.
  """
  columns = source.columns()
  many = {k: np.concatenate([x] * number) for k, x in columns.items()}
  rng = np.random.default_rng([seed, len(source), number])
  shape = (number * len(source), transform.num_draws)
  return transform.apply(many, rng.random(shape))
