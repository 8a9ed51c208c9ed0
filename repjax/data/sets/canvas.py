"""Host side: images at random places of a larger, dark canvas.

Where a thing is then tells nothing of what it is: raw pixels classify badly,
and a network that is to know like from like must see parts. Set apart from the
images of a set that are centred, on which learning without labels has little to
gain.
"""

import numpy as np

from repjax.data.reading import source as sources
from repjax.types import InputError


def place(
  source: sources.Source, side: int, *, seed: int = 0
) -> sources.Source:
  """All rows of a source, each image at a place of its own.

  Args:
    source: Of images of one size.
    side: Of the canvas, in pixels, at least that of the images.
    seed: Of the places; they are uniform.

  Raises:
    InputError: Images differ in size or do not fit.
  """
  shape = source.image_shape
  if shape is None or max(shape[:2]) > side:
    raise InputError(
      f'config.data.canvas={side} must hold images of one size; those of '
      f'{source.name} are {shape or "of many"}: raise it, or 0 for none.'
    )
  image = source.column('image')
  rng = np.random.default_rng([seed, len(source)])
  tops = rng.integers(0, side - shape[0] + 1, len(image))
  lefts = rng.integers(0, side - shape[1] + 1, len(image))
  canvas = np.zeros((len(image), side, side, shape[2]), image.dtype)
  for row, (top, left) in enumerate(zip(tops, lefts, strict=True)):
    canvas[row, top : top + shape[0], left : left + shape[1]] = image[row]
  return source.with_columns(image=canvas)
