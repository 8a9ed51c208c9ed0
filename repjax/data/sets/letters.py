"""Host side: letters written into images.

What a network should not look at, but may: text beside the thing that it is to
name, as in the editing experiment of Hernandez et al., ICLR 2022
(https://arxiv.org/abs/2201.11114), section 6.
"""

import numpy as np

from repjax import types

# Five by five pixels each, row by row.
_ROWS = dict(
  A=('.###.', '#...#', '#####', '#...#', '#...#'),
  B=('####.', '#...#', '####.', '#...#', '####.'),
  C=('.####', '#....', '#....', '#....', '.####'),
  D=('####.', '#...#', '#...#', '#...#', '####.'),
  E=('#####', '#....', '###..', '#....', '#####'),
  F=('#####', '#....', '###..', '#....', '#....'),
  H=('#...#', '#...#', '#####', '#...#', '#...#'),
  L=('#....', '#....', '#....', '#....', '#####'),
  N=('#...#', '##..#', '#.#.#', '#..##', '#...#'),
  P=('####.', '#...#', '####.', '#....', '#....'),
  T=('#####', '..#..', '..#..', '..#..', '..#..'),
  Z=('#####', '...#.', '..#..', '.#...', '#####'),
)
LETTERS = tuple(_ROWS)
SIDE = 5

# [number of letters, SIDE, SIDE], True where there is ink.
SHAPES = np.array(
  [[[x == '#' for x in row] for row in _ROWS[k]] for k in _ROWS]
)


def write(
  image: np.ndarray,
  letter: np.ndarray,
  *,
  top: np.ndarray,
  left: np.ndarray,
  ink: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """One letter in each image.

  Args:
    image: [N, H, W, C] uint8.
    letter: Places in `LETTERS`, [N]; -1 leaves an image as it is.
    top: Row of a letter's first pixels, [N].
    left: Column of a letter's first pixels, [N].
    ink: Its colour, [N, C] uint8.

  Returns:
    (the images, where there is ink [N, H, W]).

  Raises:
    InputError: If a letter is not known, or would lie outside of its image.
  """
  letter = np.asarray(letter)
  if letter.size and not -1 <= letter.min() <= letter.max() < len(LETTERS):
    raise types.InputError(
      f'there are {len(LETTERS)} letters (-1 is none); got '
      f'{letter.min()} to {letter.max()}'
    )
  top, left = (np.broadcast_to(x, letter.shape) for x in (top, left))
  for name, at, side in (('top', top, 1), ('left', left, 2)):
    limit = image.shape[side] - SIDE
    if limit < 0 or (at.size and not 0 <= at.min() <= at.max() <= limit):
      raise types.InputError(
        f'letters of {SIDE} pixels need {name} in [0, {limit}] in images of '
        f'{image.shape[1:3]}; got {at.min()} to {at.max()}'
      )
  image = image.copy()
  inked = np.zeros(image.shape[:3], bool)
  rows = np.flatnonzero(letter >= 0)
  inside = np.arange(SIDE)
  inked[
    rows[:, None, None],
    top[rows, None, None] + inside[:, None],
    left[rows, None, None] + inside,
  ] = SHAPES[letter[rows]]
  row, y, x = np.nonzero(inked)
  image[row, y, x] = ink[row]
  return image, inked
