"""Device code: a convolution as one matrix product over unfolded windows.

Models side by side under `jax.vmap` have kernels of their own, and XLA makes
one grouped convolution of them, which is slow on CPUs, as are convolutions
inside of a scan. A batched matrix product is neither. It costs memory for the
windows: for small pictures.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_range


class UnfoldedConv(nn.Module):
  """`nn.Conv` of square kernels without padding; same parameters and output.

  Attributes:
    features: Channels of the output.
    size: Side of the kernel.
    stride: Step between windows.
    kernel_init: Of the kernel, [size, size, C, features].
    dtype: Type of the computation; None infers it from input and parameters.
  """

  features: int
  size: int = 3
  stride: int = 1
  kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
  dtype: Any = None

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', features]."""
    check_range('[1, inf)', size=self.size, stride=self.stride)
    channels = image.shape[-1]
    shape = (self.size, self.size, channels, self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    image, kernel, bias = nn.dtypes.promote_dtype(
      image, kernel, bias, dtype=self.dtype
    )
    windows = unfold(image, size=self.size, stride=self.stride)
    outputs = windows @ kernel.reshape((-1, self.features))
    return outputs + bias.reshape((1, 1, 1, -1))


def unfold(image: jax.Array, *, size: int, stride: int) -> jax.Array:
  """Overlapping windows, each in one row: its rows, columns and channels.

  Args:
    image: [B, H, W, C].
    size: Side of a window.
    stride: Step between windows.

  Returns:
    [B, (H - size) // stride + 1, (W - size) // stride + 1, size * size * C].

  Raises:
    InputError: If no window fits.
  """
  height, width = image.shape[1:3]
  if min(height, width) < size:
    raise InputError(
      f'A kernel of side {size} does not fit into {height} x {width} places: '
      'lower kernels or strides, or take larger images.'
    )
  rows = (height - size) // stride + 1
  columns = (width - size) // stride + 1
  parts = [
    image[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (columns - 1) * stride + 1 : stride,
    ]
    for i in range(size)
    for j in range(size)
  ]
  return jnp.concatenate(parts, -1)
