"""Device code: what tells a transformer where a patch lies."""

import math
from typing import Literal

from absl import logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError

Grid = tuple[int, int]
ResizeMethod = Literal['zoom', 'bilinear', 'bicubic']


def check_grid(found: Grid, trained: Grid | None) -> None:
  """Refuses patches that lie in another grid than the learned positions.

  The number of positions does not tell: 4 x 16 patches are as many as 8 x 8.

  Args:
    found: (rows, columns) of the patches of an image.
    trained: (rows, columns) of the positions; None means any square.

  Raises:
    InputError: They are not the same.
  """
  if found == trained or (trained is None and found[0] == found[1]):
    return
  wanted = 'a square' if trained is None else f'{trained[0]} x {trained[1]}'
  raise InputError(
    f'images have {found[0]} x {found[1]} patches, but the positions are of '
    f'{wanted}: resize the images, or build the model with grid={found} and '
    'its positions by grid_positions.resize_grid (new_grid= of weights)'
  )


class LearnedPositions(nn.Module):
  """Adds one learned vector a token (Dosovitskiy et al., 2021, eq. 1).

  https://arxiv.org/abs/2010.11929

  Attributes:
    param_dtype: Type of the parameter.
    stddev: Standard deviation of the initial values; 0.02 is the authors'.
  """

  param_dtype: jnp.dtype = jnp.float32
  stddev: float = 0.02

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]; T must be what it was at `init`."""
    shape = (1,) + tokens.shape[1:]
    if self.has_variable('params', 'embedding'):
      found: tuple[int, ...] = self.get_variable('params', 'embedding').shape
      if found != shape:
        raise InputError(
          f'the position embedding has shape {found}, but this image size '
          f'and patch_size need {shape}: resize the images, or the embedding '
          'with grid_positions.resize_grid'
        )
    embedding = self.param(
      'embedding',
      nn.initializers.normal(self.stddev),
      shape,
      self.param_dtype,
    )
    return tokens + embedding.astype(tokens.dtype)


def sincos_2d(
  grid: tuple[int, int],
  dim: int,
  *,
  temperature: float = 10_000.0,
  num_prefix_tokens: int = 0,
) -> jax.Array:
  """Fixed sine-cosine positions of a grid, as in big_vision.

  https://arxiv.org/abs/2205.01580

  Channels are sin x, cos x, sin y, cos y, with frequencies `temperature **
  -(i / (dim / 4 - 1))`. MoCo v3 (https://arxiv.org/abs/2104.02057) and MAE
  (https://arxiv.org/abs/2111.06377) divide i by dim / 4, so that their slowest
  waves are faster; MoCo v3 counts patches along columns first.

  Args:
    grid: (rows, columns) of patches.
    dim: D, a multiple of 4 and at least 8.
    temperature: Ratio of the slowest wave length to the fastest.
    num_prefix_tokens: Tokens without a place (class token): rows of zeros.

  Returns:
    [1, num_prefix_tokens + rows * columns, D] float32.

  Raises:
    InputError: `dim` is not a multiple of 4, or less than 8.
  """
  if dim % 4 or dim < 8:
    raise InputError(
      "position='sincos' needs a hidden_dim that is a multiple of 4 and at "
      f'least 8, got hidden_dim={dim}'
    )
  rows, columns = np.mgrid[: grid[0], : grid[1]].astype(np.float64)
  frequency = temperature ** -np.linspace(0, 1, dim // 4)
  x, y = (np.outer(axis.ravel(), frequency) for axis in (columns, rows))
  waves = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  waves = np.pad(waves, ((num_prefix_tokens, 0), (0, 0)))
  return jnp.asarray(waves[None], jnp.float32)


def resize_grid(
  embedding: jax.Array,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  *,
  num_prefix_tokens: int,
  method: ResizeMethod = 'zoom',
) -> jax.Array:
  """Position embedding of an image of another size (ViT, sec. 3.2).

  The methods differ: on a random grid 'zoom' and 'bilinear' are 8 % (14 -> 16)
  to 76 % (14 -> 7) of the norm apart. None of them smooths before it samples.

  Args:
    embedding: [1, num_prefix_tokens + rows * columns, D].
    old_grid: (rows, columns) of `embedding`.
    new_grid: (rows, columns) of the result.
    num_prefix_tokens: Leading tokens without a place; they are kept as is.
    method: 'zoom' is linear and maps corners on corners, as the authors'
      `scipy.ndimage.zoom(order=1)`. 'bilinear' and 'bicubic' map the centres
      of cells, as PyTorch's `interpolate(align_corners=False)`.

  Returns:
    [1, num_prefix_tokens + new rows * new columns, D], dtype of `embedding`.

  Raises:
    InputError: `embedding` is not of `old_grid`, or `method` is unknown.
  """
  _, length, dim = embedding.shape
  if length != num_prefix_tokens + old_grid[0] * old_grid[1]:
    raise InputError(
      f'a position embedding of {length} tokens is not {num_prefix_tokens} '
      f'prefix tokens and a grid of {old_grid[0]} x {old_grid[1]}'
    )
  down, across = (
    _resize_matrix(old, new, method)
    for old, new in zip(old_grid, new_grid, strict=True)
  )
  prefix, grid = jnp.split(embedding, [num_prefix_tokens], axis=1)
  grid = jnp.einsum(
    'ip,jq,pqd->ijd',
    down,
    across,
    grid.reshape(*old_grid, dim).astype(jnp.float32),
    precision='highest',
  )
  grid = grid.reshape(1, -1, dim).astype(embedding.dtype)
  return jnp.concatenate([prefix, grid], axis=1)


def fit_grid(
  embedding: np.ndarray,
  num_tokens: int,
  *,
  num_prefix_tokens: int,
  method: ResizeMethod,
  old_grid: Grid | None = None,
  new_grid: Grid | None = None,
) -> jax.Array | np.ndarray:
  """`resize_grid` to a number of tokens; grids that are None are square.

  Raises:
    InputError: Such a grid is not square.
  """
  length = embedding.shape[1]
  if length == num_tokens and old_grid == new_grid:
    return embedding
  old_grid = old_grid or square(length - num_prefix_tokens, 'old_grid')
  new_grid = new_grid or square(num_tokens - num_prefix_tokens, 'new_grid')
  logging.info('Position grid: %s -> %s by %s', old_grid, new_grid, method)
  return resize_grid(
    jnp.asarray(embedding),
    old_grid,
    new_grid,
    num_prefix_tokens=num_prefix_tokens,
    method=method,
  )


def square(number: int, field: str) -> Grid:
  """The grid of a number of positions; `field` is what could say another."""
  side = math.isqrt(max(number, 0))
  if not side or side**2 != number:
    raise InputError(f'{number} positions are no square: load with {field}=')
  return side, side


def _resize_matrix(old: int, new: int, method: ResizeMethod) -> np.ndarray:
  """Weights of `old` samples in `new` ones, [new, old]; rows sum to 1."""
  if method not in ('zoom', 'bilinear', 'bicubic'):
    raise InputError(
      f"resize must be 'zoom', 'bilinear' or 'bicubic', got {method!r}"
    )
  if method == 'zoom':
    place = np.arange(new) * ((old - 1) / max(new - 1, 1))
  else:
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
  taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
  distance = np.abs(place[:, None] - taps)
  weight = _cubic(distance) if method == 'bicubic' else 1 - distance.clip(max=1)
  matrix = np.zeros((new, old))
  # Samples beyond the border repeat the border.
  np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weight)
  return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, sharpness: float = -0.75) -> np.ndarray:
  """Keys' cubic convolution kernel, with PyTorch's sharpness a = -0.75.

  https://doi.org/10.1109/TASSP.1981.1163711
  """
  a, x = sharpness, distance
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0))
