"""Host side: AutoAugment (Cubuk et al., 2019) on whole batches.

https://arxiv.org/abs/1805.09501, the policy that was found for ImageNet (table
9 of the paper). Each image goes through one of its 25 pairs of operations, each
of which is applied with a probability of its own. Operations are those of
`randaugment`. Where the paper and the authors' TensorFlow code
(efficientnet/autoaugment.py, policy_v0) differ, numbers are those of the code:
posterize and solarize get weaker as magnitudes rise.
"""

import functools

import numpy as np

from repjax import types
from repjax.data.images import randaugment
from repjax.data.images import transforms

# Of each pair: an operation, the percentage of images that it is applied to,
# and its magnitude of ten; and the same of the one that follows.
IMAGENET = (
  ('equalize', 80, 1, 'shear_y', 80, 4),
  ('color', 40, 9, 'equalize', 60, 3),
  ('color', 40, 1, 'rotate', 60, 8),
  ('solarize', 80, 3, 'equalize', 40, 7),
  ('solarize', 40, 2, 'solarize', 60, 2),
  ('color', 20, 0, 'equalize', 80, 8),
  ('equalize', 40, 8, 'solarize_add', 80, 3),
  ('shear_x', 20, 9, 'rotate', 60, 8),
  ('color', 60, 1, 'equalize', 100, 2),
  ('invert', 40, 9, 'rotate', 60, 0),
  ('equalize', 100, 9, 'shear_y', 60, 3),
  ('color', 40, 7, 'equalize', 60, 0),
  ('posterize', 40, 6, 'autocontrast', 40, 7),
  ('solarize', 60, 8, 'color', 60, 9),
  ('solarize', 20, 4, 'rotate', 80, 9),
  ('rotate', 100, 7, 'translate_y', 80, 9),
  ('shear_x', 0, 0, 'solarize', 80, 4),
  ('shear_y', 80, 0, 'color', 60, 4),
  ('color', 100, 0, 'rotate', 60, 2),
  ('equalize', 80, 4, 'equalize', 0, 8),
  ('equalize', 100, 4, 'autocontrast', 60, 2),
  ('shear_y', 40, 7, 'solarize_add', 60, 7),
  ('posterize', 80, 2, 'solarize', 60, 10),
  ('solarize', 60, 8, 'equalize', 60, 1),
  ('color', 80, 6, 'rotate', 40, 5),
)
# Uniform numbers of one operation: whether, and the three that it may draw.
_PER_OPERATION = 4


def auto_augment(
  *, translate: float = 250 / 331, policy: tuple[tuple, ...] = IMAGENET
) -> transforms.Transform:
  """Applies one pair of the policy to each image, drawn uniformly.

  Args:
    translate: Shift at magnitude 10 in parts of the image's side: the authors'
      250 pixels of 331.
    policy: Pairs, written as those of `IMAGENET`.

  Returns:
    A transform of uint8 images with 1 or 3 channels.

  Raises:
    InputError: If the policy names an unknown operation, or a number is out of
      range.
  """
  types.check_range('[0, 1]', translate=translate)
  made = functools.cache(
    lambda magnitude: randaugment.operations(magnitude, translate, 40 / 224)
  )
  halves = [(pair[:3], pair[3:]) for pair in policy]
  for name, percentage, magnitude in (x for pair in halves for x in pair):
    types.check_range('[0, 100]', percentage=percentage)
    types.check_range('[0, 10]', magnitude=magnitude)
    types.check_choice('operation', name, tuple(made(magnitude)))

  def fn(images, draws):
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
      raise ValueError(
        'AutoAugment needs uint8 images with 1 or 3 channels, got '
        f'{images.dtype} {images.shape}'
      )
    images = images.copy()
    chosen = transforms.randint(draws[:, 0], len(halves))
    steps = draws[:, 1:].reshape(len(images), 2, _PER_OPERATION)
    for number, pair in enumerate(halves):
      for place, (name, percentage, magnitude) in enumerate(pair):
        own = steps[:, place]
        rows = np.flatnonzero(
          (chosen == number) & (100 * own[:, 0] < percentage)
        )
        if rows.size:
          operation = made(magnitude)[name]
          images[rows] = operation(images[rows], own[rows, 1:])
    return images

  return transforms.on_images(fn, 1 + 2 * _PER_OPERATION)
