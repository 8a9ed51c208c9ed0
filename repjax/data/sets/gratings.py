"""Host side: noisy gratings, drawn to order, whose class is their direction.

What is to be seen is the same everywhere in an image, so that no place of it
tells more than another.
"""

import numpy as np

from repjax import types
from repjax.data.reading import source as sources


def draw(
  num_rows: int,
  *,
  seed: int,
  side: int = 32,
  num_classes: int = 4,
  contrast: float = 0.25,
  noise: float = 0.25,
  split: str = 'train',
) -> sources.Source:
  """Gratings with as many rows of each direction as of any other.

  Args:
    num_rows: N.
    seed: Decides everything. Sets of different seeds share no random numbers.
    side: Side of the images in pixels. Waves have 4 to 8 pixels, whatever it
      is: larger images show more of them.
    num_classes: Directions, evenly spaced over half a turn.
    contrast: Amplitude of the waves, in parts of the range of pixels.
    noise: Standard deviation of what is added to each pixel, in the same parts.
    split: For messages.

  Returns:
    The source with 'image' uint8 [side, side, 1] of mean 127.5 and 'label'.

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  types.check_range('[8, 1024]', side=side)
  types.check_range('[2, 100]', num_classes=num_classes)
  types.check_range('[0, 1]', contrast=contrast, noise=noise)
  rng = np.random.default_rng([seed, num_rows, side, num_classes])
  label = rng.permutation(np.arange(num_rows) % num_classes)
  angle = np.pi * label / num_classes
  frequency = 2 * np.pi / rng.uniform(4, 8, num_rows)
  phase = rng.uniform(0, 2 * np.pi, num_rows)
  at = np.arange(side)

  def rows(values):
    return values[:, None, None]

  along = (
    rows(np.cos(angle)) * at[None, None, :]
    + rows(np.sin(angle)) * at[None, :, None]
  )
  image = 0.5 + contrast * np.sin(rows(frequency) * along + rows(phase))
  image += noise * rng.normal(size=image.shape)
  return sources.from_arrays(
    'gratings',
    {
      'image': np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None],
      'label': label.astype(np.int32),
    },
    num_classes=num_classes,
    split=split,
  )
