"""Host side: pictures of coloured things whose every attribute is known.

Two things a scene, each in a quarter of its own, on noisy grey ground. What a
unit of a network looks for can be planted here, since it is known which pixels
show what.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.sets import letters
from repjax.data.sets import shapes

# The corners of the cube of colours, but for black and white.
INKS = dict(
  red=(1, 0, 0),
  green=(0, 1, 0),
  blue=(0, 0, 1),
  yellow=(1, 1, 0),
  purple=(1, 0, 1),
  cyan=(0, 1, 1),
)
FILLINGS = ('solid', 'hollow', 'striped')
KINDS = ('squares', 'ellipses', 'triangles', 'crosses', 'letters')
_LETTERS = KINDS.index('letters')
_CELL = 12
# Of the images, in pixels.
SIZE = 2 * _CELL


class Things(NamedTuple):
  """Things in images, and what is known of them.

  Attributes:
    image: [N, H, W, 3] uint8.
    row: The image of each thing, [M].
    mask: Which pixels show it, [M, H, W] bool.
    attribute: Value of each of A attributes, [M, A]; -1 is none of them.
    names: What the values of each attribute are called; the last attribute's
      names are nouns.
  """

  image: np.ndarray
  row: np.ndarray
  mask: np.ndarray
  attribute: np.ndarray
  names: Sequence[Sequence[str]]


NAMES = (tuple(INKS), FILLINGS, KINDS)


def draw(
  num_rows: int,
  *,
  seed: int | Sequence[int],
  num_things: int = 2,
  noise: tuple[float, float] = (0.06, 0.06),
) -> Things:
  """Scenes of 24 x 24 pixels; colour, filling and kind are independent.

  Letters are solid, and have no filling of which anybody would speak.

  Args:
    num_rows: N.
    seed: Decides everything.
    num_things: In each scene, 1 to 4; N times as many things are given.
    noise: Least and largest standard deviation of a scene's noise, in parts of
      the brightest light.

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  types.check_range('[1, 4]', num_things=num_things)
  types.check_range('[0, 1]', noise=noise[0])
  types.check_range(f'[{noise[0]}, 1]', noise=noise[1])
  rng = np.random.default_rng(seed)
  count = num_rows * num_things
  colour, filling, kind = (rng.integers(0, len(x), count) for x in NAMES)
  covered = _cells(rng, kind, filling)  # [M, 12, 12]
  row = np.repeat(np.arange(num_rows), num_things)
  cell = rng.random((num_rows, 4)).argsort(1)[:, :num_things].ravel()
  top, left = (x * _CELL for x in np.divmod(cell, 2))
  inside = np.arange(_CELL)
  at = (
    np.arange(count)[:, None, None],
    top[:, None, None] + inside[:, None],
    left[:, None, None] + inside,
  )
  whole = np.zeros((count, SIZE, SIZE))
  whole[at] = covered
  inks = np.array(list(INKS.values()))[colour]
  # No ink is quite pure, and none as bright as any other.
  inks = (0.08 + 0.84 * inks) * rng.uniform(0.6, 1.0, (count, 1))
  image = np.tile(
    rng.uniform(0.1, 0.45, (num_rows, 1, 1, 1)), (1, SIZE, SIZE, 3)
  )
  for i in range(num_things):
    share = whole[i::num_things, ..., None]
    image = (1 - share) * image + share * inks[i::num_things, None, None]
  image = rng.normal(image, rng.uniform(*noise, (num_rows, 1, 1, 1)))
  filling = np.where(kind == _LETTERS, -1, filling)
  return Things(
    np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8),
    row,
    whole > 0.5,
    np.stack([colour, filling, kind], 1).astype(np.int32),
    NAMES,
  )


def _cells(rng, kind, filling):
  """How much of each pixel of its quarter a thing covers, [M, 12, 12]."""
  count = len(kind)
  x, y = rng.uniform(-0.5, 0.5, (2, count)) / _CELL + 0.5
  scale = rng.uniform(3.2, 3.9, count) / _CELL
  turn = rng.uniform(-0.3, 0.3, count)
  drawn = np.where(kind == _LETTERS, 0, kind)
  covered = shapes.paint(drawn, x, y, scale, turn, size=_CELL)
  hole = shapes.paint(drawn, x, y, 0.5 * scale, turn, size=_CELL)
  covered -= np.where(filling == FILLINGS.index('hollow'), 1, 0)[
    :, None, None
  ] * np.minimum(hole, covered)
  lines = (np.arange(_CELL) + rng.integers(0, 3, (count, 1))) % 3 > 0
  striped = filling == FILLINGS.index('striped')
  covered *= np.where(striped[:, None], lines, 1)[..., None]
  is_letter = np.flatnonzero(kind == _LETTERS)
  covered[is_letter] = 0
  which = rng.integers(0, len(letters.LETTERS), len(is_letter))
  top, left = rng.integers(1, _CELL - letters.SIDE, (2, len(is_letter), 1, 1))
  inside = np.arange(letters.SIDE)
  covered[is_letter[:, None, None], top + inside[:, None], left + inside] = (
    letters.SHAPES[which]
  )
  return covered
