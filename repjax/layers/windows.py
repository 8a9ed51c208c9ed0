"""Device code: attention in windows of a map, and what they need of positions.

Liu et al., 'Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows', ICCV 2021, section 3.2 (https://arxiv.org/abs/2103.14030).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError


def divide(x: jax.Array, window: int) -> jax.Array:
  """A map as windows of tokens, row by row.

  Args:
    x: [B, H, W, C], sides multiples of `window`.
    window: Side of a window.

  Returns:
    [B, H W / window^2, window^2, C].
  """
  batch, height, width, dim = x.shape
  x = x.reshape(
    batch, height // window, window, width // window, window, dim
  ).swapaxes(2, 3)
  return x.reshape(batch, -1, window * window, dim)


def join(windows: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Inverse of `divide`: [B, N, window^2, C] -> [B, H, W, C].

  Args:
    windows: As `divide` gives them.
    shape: (H, W).
  """
  batch, _, area, dim = windows.shape
  window = round(area**0.5)
  height, width = shape
  x = windows.reshape(
    batch, height // window, width // window, window, window, dim
  ).swapaxes(2, 3)
  return x.reshape(batch, height, width, dim)


def strangers(
  shape: tuple[int, int], window: int, shift: int
) -> np.ndarray | None:
  """Which pairs of a window's tokens were no neighbours before a shift.

  A map that is rolled by -shift has windows of tokens from opposite edges.

  Args:
    shape: (H, W), multiples of `window`.
    window: Side of a window.
    shift: Number of tokens.

  Returns:
    Bool [N, window^2, window^2], as `divide` orders windows; None without a
    shift.
  """
  if not shift:
    return None

  def parts(side):  # Within a window, before and behind the edge.
    place = np.arange(side)
    return (place >= side - window).astype(int) + (place >= side - shift)

  rows, columns = map(parts, shape)
  region = np.asarray(3 * rows[:, None] + columns, np.int32)
  height, width = shape
  region = region.reshape(
    height // window, window, width // window, window
  ).swapaxes(1, 2)
  region = region.reshape(-1, window * window)
  return region[:, :, None] != region[:, None, :]


def index(window: int, table_window: int) -> np.ndarray:
  """Which row of the table of `WindowBias` each pair of tokens has.

  Args:
    window: Side of a window.
    table_window: Side of the window that the table is of, at least as large:
      smaller windows have some of its offsets.

  Returns:
    int32 [window^2, window^2]; queries come first.

  >>> index(2, 2)[0]
  array([4, 3, 1, 0], dtype=int32)
  """
  if window > table_window:
    raise InputError(
      f'a table of windows of {table_window} has no offsets for windows of '
      f'{window}'
    )
  place = np.indices((window, window)).reshape(2, -1)
  down, across = place[:, :, None] - place[:, None, :]
  span = 2 * table_window - 1
  rows = (down + table_window - 1) * span + across + table_window - 1
  return rows.astype(np.int32)


class WindowBias(nn.Module):
  """A learned number a head for each offset between two tokens of a window.

  Attributes:
    num_heads: H.
    window: Side of the largest window.
    param_dtype: Type of the parameter `table` [(2 window - 1)^2, H].
  """

  num_heads: int
  window: int
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, window: int) -> jax.Array:
    """Biases of a window of this side, [H, window^2, window^2]."""
    table = self.param(
      'table',
      nn.initializers.normal(0.02),
      ((2 * self.window - 1) ** 2, self.num_heads),
      self.param_dtype,
    )
    return table[index(window, self.window)].transpose(2, 0, 1)
