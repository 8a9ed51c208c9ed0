"""Host side: small pictures anywhere on a larger, cluttered ground.

In the manner of the cluttered MNIST of Mnih et al., 'Recurrent Models of Visual
Attention', NeurIPS 2014 (https://arxiv.org/abs/1406.6247). What tells classes
apart is a few pixels wide, and may be anywhere: how coarsely a network looks at
its maps matters, where it looks does not help.
"""

import numpy as np

from repjax import types
from repjax.data.own import names
from repjax.data.reading import source as sources
from repjax.types import InputError


def place(
  digits: sources.Source,
  *,
  size: int,
  seed: int,
  copies: int = 1,
  clutter: int = 4,
  patch: int = 4,
) -> sources.Source:
  """Each picture `copies` times, at places of its own among pieces of others.

  Args:
    digits: Grey pictures, [H, W, 1], with labels.
    size: Side of the ground in pixels, at least that of the pictures; 0 gives
      the pictures as they are, whatever they are.
    seed: Decides places and clutter. Sets of different seeds share no numbers.
    copies: Rows that are made of each picture, one after the other.
    clutter: Pieces of other pictures a row, under the digit.
    patch: Side of the pieces.

  Returns:
    A source with 'image' uint8 [size, size, 1], 'label', and 'digit', the row
    of the picture.

  Raises:
    InputError: If a number is out of range, pictures are not grey, or they are
      files, whose names would stand beside other rows.
  """
  if not size:
    return digits
  names.refuse_files(digits.split)
  types.check_range('[1, inf)', copies=copies, patch=patch)
  types.check_range('[0, inf)', clutter=clutter)
  shape = digits.image_shape
  if shape is None or shape[-1] != 1:
    raise InputError(
      f'{digits.name} has images of shape {shape}: placed are grey ones of one '
      'size, such as those of digits and mnist.'
    )
  height, width = shape[:2]
  if size < max(height, width) or patch > min(height, width):
    raise InputError(
      f'Pictures of {height} x {width} need size >= {max(height, width)} and '
      f'patch <= {min(height, width)}; got {size=}, {patch=}.'
    )
  rng = np.random.default_rng([seed, size, copies, clutter, patch])
  grey = digits.column('image')[..., 0]
  count = len(grey)
  row = np.repeat(np.arange(count), copies)
  ground = np.zeros((len(row), size, size), np.uint8)

  def put(pieces):
    """Pieces [rows, h, w], each somewhere on its ground; the lightest stays."""
    _, high, wide = pieces.shape
    tops = rng.integers(0, size - high + 1, len(pieces))
    lefts = rng.integers(0, size - wide + 1, len(pieces))
    down = tops[:, None, None] + np.arange(high)[:, None]
    right = lefts[:, None, None] + np.arange(wide)
    at = np.arange(len(pieces))[:, None, None], down, right
    ground[at] = np.maximum(ground[at], pieces)

  for _ in range(clutter):
    other = rng.integers(0, count, len(row))
    top = rng.integers(0, height - patch + 1, len(row))[:, None, None]
    left = rng.integers(0, width - patch + 1, len(row))[:, None, None]
    inside = np.arange(patch)
    put(grey[other[:, None, None], top + inside[:, None], left + inside])
  put(grey[row])
  return sources.from_arrays(
    f'placed {digits.name}',
    {
      'image': ground[..., None],
      'label': digits.column('label')[row].astype(np.int32),
      'digit': row.astype(np.int32),
    },
    num_classes=digits.num_classes,
    class_names=digits.class_names,
    split=digits.split,
  )
