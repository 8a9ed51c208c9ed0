"""Device code: a learned attention bias for each offset between two patches.

As BEiT has it (Bao et al., 2022, https://arxiv.org/abs/2106.08254, and the
authors' code), with a class token in front of the patches.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers.positions import grid_positions
from repjax.types import InputError

Grid = grid_positions.Grid
ResizeMethod = Literal['geometric', 'bilinear']

# Rows of the table after those of the offsets: class token to patch, patch to
# class token, class token to itself.
_NUM_CLASS_ROWS = 3


def num_distances(grid: Grid) -> int:
  """Rows of the table: every offset in the grid, and three of the class token.

  >>> num_distances((14, 14))
  732
  """
  rows, columns = grid
  return (2 * rows - 1) * (2 * columns - 1) + _NUM_CLASS_ROWS


def index(grid: Grid) -> np.ndarray:
  """Which row of the table each pair of tokens has, int32 [1 + N, 1 + N].

  Tokens are the class token, then the N patches row by row. Queries come first:
  `index(grid)[i, j]` belongs to the place of i minus that of j.

  >>> index((1, 2))
  array([[5, 3, 3],
         [4, 1, 0],
         [4, 2, 1]], dtype=int32)
  """
  rows, columns = grid
  place = np.indices(grid).reshape(2, -1)  # [2, N]
  down, across = place[:, :, None] - place[:, None, :]
  total = num_distances(grid)
  table = np.empty((rows * columns + 1,) * 2, np.int32)
  table[1:, 1:] = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
  table[0, 1:] = total - 3
  table[1:, 0] = total - 2
  table[0, 0] = total - 1
  return table


class RelativePositionBias(nn.Module):
  """What to add to the attention scores of each pair of tokens.

  Attributes:
    num_heads: H.
    param_dtype: Type of the parameter `table` [D, H], which starts at zero.
  """

  num_heads: int
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, grid: Grid) -> jax.Array:
    """Biases of a grid of N patches behind a class token, [H, 1 + N, 1 + N].

    Raises:
      InputError: The table is that of another grid.
    """
    shape = (num_distances(grid), self.num_heads)
    if self.has_variable('params', 'table'):
      found: tuple[int, ...] = self.get_variable('params', 'table').shape
      if found != shape:
        raise InputError(
          f'the table of relative positions has shape {found}, but a grid of '
          f'{grid[0]} x {grid[1]} patches needs {shape}: resize the images, or '
          'the table with relative_positions.resize'
        )
    table = self.param('table', nn.initializers.zeros, shape, self.param_dtype)
    return table[index(grid)].transpose(2, 0, 1)


def resize(
  table: jax.Array,
  old_grid: Grid,
  new_grid: Grid,
  *,
  method: ResizeMethod = 'geometric',
) -> jax.Array:
  """The table for images of another size; the class token's rows stay.

  The methods give different numbers: 'geometric' keeps near offsets almost as
  they are and stretches far ones.

  Args:
    table: [num_distances(old_grid), H].
    old_grid: (rows, columns) of patches of `table`.
    new_grid: (rows, columns) of patches of the result.
    method: 'geometric' is the authors': the old offsets lie at 0, 1, 1 + q,
      1 + q + q^2, ... on either side, with q such that the last one is the new
      grid's, and a cubic spline runs through them. (They interpolate square
      grids only; here each axis has its q.) 'bilinear' is what `transformers`
      does for square grids.

  Returns:
    [num_distances(new_grid), H], dtype of `table`.

  Raises:
    InputError: `table` is not of `old_grid`, `method` is unknown, or a side of
      `old_grid` is below 3, which is too short for the spline.
  """
  if method not in ('geometric', 'bilinear'):
    raise InputError(
      f"method must be 'geometric' or 'bilinear', got {method!r}"
    )
  if table.shape[0] != num_distances(old_grid):
    raise InputError(
      f'a table of {table.shape[0]} relative positions is not of a grid of '
      f'{old_grid[0]} x {old_grid[1]}, which has {num_distances(old_grid)}'
    )
  if old_grid == new_grid:
    return table
  old, new = (
    (2 * rows - 1, 2 * columns - 1) for rows, columns in (old_grid, new_grid)
  )
  offsets, of_class = table[:-_NUM_CLASS_ROWS], table[-_NUM_CLASS_ROWS:]
  if method == 'bilinear':
    resized = grid_positions.resize_grid(
      offsets[None], old, new, num_prefix_tokens=0, method='bilinear'
    )[0]
  else:
    down, across = map(_geometric_matrix, old, new)
    resized = jnp.einsum(
      'ip,jq,pqh->ijh',
      down,
      across,
      offsets.reshape(*old, -1).astype(jnp.float32),
      precision='highest',
    ).reshape(-1, table.shape[-1])
  return jnp.concatenate([resized.astype(table.dtype), of_class])


def _geometric_matrix(old: int, new: int) -> np.ndarray:
  """Weights of `old` offsets in `new` ones, [new, old]; rows sum to 1."""
  if old == new:
    return np.eye(old, dtype=np.float32)
  if old < 5:
    raise InputError(
      "method='geometric' needs a grid of at least 3 x 3 patches to start "
      f'from, got a side of {(old + 1) // 2}'
    )
  from scipy import interpolate

  low, high = 1.01, 1.5  # The authors' bracket of q, and their precision.
  while high - low > 1e-6:
    ratio = (low + high) / 2
    reach = (1 - ratio ** (old // 2)) / (1 - ratio)
    low, high = (low, ratio) if reach > new // 2 else (ratio, high)
  far = np.cumsum(ratio ** np.arange(old // 2))
  place = np.concatenate([-far[::-1], [0.0], far])
  # Beyond the last offset the spline stays at its value.
  wanted = np.clip(np.arange(new) - new // 2, place[0], place[-1])
  spline = interpolate.CubicSpline(place, np.eye(old), bc_type='not-a-knot')
  return spline(wanted).astype(np.float32)
