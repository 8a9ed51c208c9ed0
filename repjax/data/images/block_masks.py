"""Host side: which patches of an image are hidden, by blocks or at random.

Blockwise masking is that of BEiT (Bao et al., 2022, algorithm 1,
https://arxiv.org/abs/2106.08254). The text and the authors' code differ, and
both are here. A mask is bool [rows, columns].
"""

from collections.abc import Callable
import math

import numpy as np

from repjax import types
from repjax.data.images import transforms

Grid = tuple[int, int]
Sampler = Callable[[np.random.Generator], np.ndarray]


def as_in_text(
  grid: Grid,
  *,
  ratio: float = 0.4,
  min_block: int = 16,
  min_aspect: float = 0.3,
) -> Sampler:
  """Blocks until more than a part `ratio` of the patches is hidden.

  A block's area is uniform in [min_block, what is left], its aspect ratio
  uniform in [min_aspect, 1 / min_aspect]. The count differs between masks and
  is above `ratio`: for 14 x 14 patches 43 % on average.

  Args:
    grid: (rows, columns) of patches.
    ratio: Part of the patches that is exceeded, in (0, 1).
    min_block: Least area of a block, in patches, > 0.
    min_aspect: Least aspect ratio of a block, in (0, 1].

  Raises:
    InputError: If an argument is out of range.
  """
  rows, columns = grid
  _check(grid, min_block=min_block, min_aspect=min_aspect)
  if not 0 < ratio < 1:
    raise types.InputError(f'mask ratio must be in (0, 1), got {ratio=}')

  def sample(rng):
    mask = np.zeros(grid, bool)
    wanted = ratio * rows * columns
    while (count := mask.sum()) <= wanted:
      # Near the end less is left than the smallest block.
      area = rng.uniform(min_block, max(wanted - count, min_block))
      aspect = rng.uniform(min_aspect, 1 / min_aspect)
      high = min(max(round(math.sqrt(area * aspect)), 1), rows)
      wide = min(max(round(math.sqrt(area / aspect)), 1), columns)
      top = rng.integers(rows - high + 1)
      left = rng.integers(columns - wide + 1)
      mask[top : top + high, left : left + wide] = True
    return mask

  return sample


def as_in_code(
  grid: Grid,
  *,
  num_masked: int,
  min_block: int = 16,
  min_aspect: float = 0.3,
  attempts: int = 10,
) -> Sampler:
  """Blocks that hide at most `num_masked` patches, and mostly just as many.

  Aspect ratios are log-uniform; a block must be smaller than the grid on both
  sides, and must add something without going beyond `num_masked`. Where
  `attempts` blocks in a row do not, the mask stays as it is: of 14 x 14 patches
  and `num_masked` 75 it has 75 in about two thirds of all cases.

  Args:
    grid: (rows, columns) of patches.
    num_masked: Most patches that are hidden, in [1, rows * columns].
    min_block: Least area that is drawn for a block, in patches, > 0. Where less
      is left to hide, areas lie between that and `min_block`, as in the
      authors' code.
    min_aspect: Least aspect ratio of a block, in (0, 1].
    attempts: Blocks that are tried, > 0.

  Raises:
    InputError: If an argument is out of range.
  """
  rows, columns = grid
  _check(grid, num_masked, min_block=min_block, min_aspect=min_aspect)
  if attempts < 1:
    raise types.InputError(f'need attempts >= 1, got {attempts=}')
  log_aspect = math.log(min_aspect)

  def add_block(mask, left_over, rng):
    """Hides one more block; returns how many patches that are new."""
    for _ in range(attempts):
      area = min_block + (left_over - min_block) * rng.random()
      aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
      high = round(math.sqrt(area * aspect))
      wide = round(math.sqrt(area / aspect))
      if high >= rows or wide >= columns:
        continue
      top = rng.integers(rows - high + 1)
      left = rng.integers(columns - wide + 1)
      block = mask[top : top + high, left : left + wide]
      added = block.size - np.count_nonzero(block)
      if 0 < added <= left_over:
        block[...] = True
        return added
    return 0

  def sample(rng):
    mask, count = np.zeros(grid, bool), 0
    while count < num_masked:
      added = add_block(mask, num_masked - count, rng)
      if not added:
        break
      count += added
    return mask

  return sample


def at_random(grid: Grid, *, num_masked: int) -> Sampler:
  """`num_masked` patches, all sets of them equally likely.

  Raises:
    InputError: If there are not so many patches.
  """
  _check(grid, num_masked)
  size = grid[0] * grid[1]

  def sample(rng):
    mask = np.zeros(size, bool)
    mask[rng.permutation(size)[:num_masked]] = True
    return mask.reshape(grid)

  return sample


def exactly(sampler: Sampler, num_masked: int) -> Sampler:
  """Masks of one count: random patches are hidden, or shown, until it is met.

  Args:
    sampler: Draws the masks to start from.
    num_masked: Patches that are hidden then, in [1, rows * columns].
  """

  def sample(rng):
    mask = sampler(rng).copy()
    _check(mask.shape, num_masked)
    flat = mask.reshape(-1)  # A view: what is written there is in the mask.
    surplus = int(flat.sum()) - num_masked
    candidates = np.flatnonzero(flat == (surplus > 0))
    flat[rng.permutation(candidates)[: abs(surplus)]] = surplus < 0
    return mask

  return sample


def places(mask: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """A mask as arrays of one shape, whatever its count.

  Args:
    mask: Bool [rows, columns].
    length: K, at least the number of hidden patches.

  Returns:
    (places of hidden patches, row by row, int32 [K]; their weights, float32
    [K]). Beyond the count, places are 0 and so are weights.

  Raises:
    InputError: If the mask hides more than K patches.
  """
  hidden = np.flatnonzero(mask)
  if len(hidden) > length:
    raise types.InputError(
      f'a mask hides {len(hidden)} patches, and there is room for {length}: '
      'raise max_masked'
    )
  found = np.zeros(length, np.int32)
  found[: len(hidden)] = hidden
  return found, (np.arange(length) < len(hidden)).astype(np.float32)


def hide(sampler: Sampler, max_masked: int) -> transforms.Transform:
  """Adds a new mask to every row of a batch.

  Args:
    sampler: Draws a mask, bool [rows, columns], from a generator.
    max_masked: K, at least the number of patches that a mask can hide.

  Returns:
    A transform that uses one draw a row and adds 'masked' int32 [B, K] and
    'masked_weight' float32 [B, K]; see `places`.
  """

  def apply(columns, draws):
    # A draw has 53 random bits: enough to key a generator of its own.
    keys = (draws[:, 0] * 2**53).astype(np.uint64)
    return {**columns, **_columns(sampler, max_masked, keys)}

  return transforms.Transform(1, apply)


def fixed(
  sampler: Sampler, max_masked: int, num_rows: int, *, seed: int
) -> dict[str, np.ndarray]:
  """One mask for each row of a set, for evaluation and small studies.

  Args:
    sampler: Draws a mask, bool [rows, columns], from a generator.
    max_masked: K, at least the number of patches that a mask can hide.
    num_rows: Number N of rows of the set.
    seed: >= 0. Decides the masks, together with the row.

  Returns:
    The columns that `hide` adds, [N, K].
  """
  keys = [np.array([seed, row], np.uint64) for row in range(num_rows)]
  return _columns(sampler, max_masked, keys)


def _columns(sampler, max_masked, keys):
  generators = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
  found = [places(sampler(rng), max_masked) for rng in generators]
  masked, weights = zip(*found, strict=True)
  return {'masked': np.stack(masked), 'masked_weight': np.stack(weights)}


def _check(grid, num_masked=1, *, min_block=1, min_aspect=1.0):
  size = grid[0] * grid[1]
  if not 1 <= num_masked <= size:
    raise types.InputError(
      f'a mask hides between 1 and {size} of {grid[0]} x {grid[1]} patches, '
      f'got {num_masked=}'
    )
  if not 1 <= min_block <= size or not 0 < min_aspect <= 1:
    raise types.InputError(
      f'blocks need 1 <= min_block <= {size} and 0 < min_aspect <= 1, got '
      f'{min_block=}, {min_aspect=}'
    )
