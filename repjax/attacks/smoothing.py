"""Device code: images or gradients smoothed by a separable kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError
from repjax.types import check_range


def gaussian(size: int, sigmas: float) -> np.ndarray:
  """One side of a Gaussian kernel, [size], that sums to 1.

  Args:
    size: Number of pixels, odd.
    sigmas: Standard deviations from the centre to the last pixel, > 0.

  Raises:
    InputError: The size is even, or a value is out of range.
  """
  check_range('[1, inf)', size=size)
  check_range('(0, inf)', sigmas=sigmas)
  if size % 2 == 0:
    raise InputError(f'a kernel has an odd number of pixels; got {size=}')
  at = np.linspace(-sigmas, sigmas, size) if size > 1 else np.zeros(1)
  kernel = np.exp(-(at**2) / 2)
  return (kernel / kernel.sum()).astype(np.float32)


def smooth(image: jax.Array, kernel: np.ndarray) -> jax.Array:
  """Convolves each channel with kernel x kernel; outside of images is 0.

  Args:
    image: [B, H, W, C].
    kernel: [size], odd and symmetric.

  Returns:
    Like `image`.
  """
  height, width = image.shape[1:3]
  return both_sides(image, _band(height, kernel), _band(width, kernel))


def both_sides(
  image: jax.Array, rows: jax.Array, columns: jax.Array
) -> jax.Array:
  """Linear in rows and in columns: [B, H, W, C] -> [B, H', W', C].

  Args:
    image: [B, H, W, C].
    rows: [H', H], weights of the rows that make a new one.
    columns: [W', W], those of columns.
  """
  return jnp.einsum(
    'yh,bhwc,xw->byxc', rows, image, columns, precision='highest'
  )


def _band(side, kernel):
  """[side, side], whose product with pixels is their convolution."""
  offset = np.arange(side)[:, None] - np.arange(side) + len(kernel) // 2
  inside = (offset >= 0) & (offset < len(kernel))
  return jnp.asarray(
    np.where(inside, kernel[np.clip(offset, 0, len(kernel) - 1)], 0.0),
    jnp.float32,
  )
