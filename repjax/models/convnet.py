"""Device code: a small convolutional network of matrix products.

For many models side by side: convolutions whose weights have one more axis are
slow on CPUs, and products of matrices are not. Each convolution takes windows
out of its input and hands them to a dense layer.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_range


class ConvNet(nn.Module):
  """Convolutions with relu, the mean over places, and a dense layer.

  Layers are `conv_0`, ..., `hidden` and `head`. Nothing is padded and rows do
  not see each other.

  Attributes:
    num_classes: Width of the logits.
    channels: Channels of each convolution.
    kernels: Side of each convolution's kernel.
    strides: Stride of each convolution.
    hidden_dim: Width of the dense layer.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_classes: int
  channels: Sequence[int] = (16, 32, 64)
  kernels: Sequence[int] = (5, 3, 3)
  strides: Sequence[int] = (2, 1, 1)
  hidden_dim: int = 64
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes], float32."""
    del train, mask  # Rows do not see each other, and nothing is random.
    check_range('[1, inf)', hidden_dim=self.hidden_dim)

    def dense(width, name):
      return nn.Dense(
        width,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=name,
      )

    x = image
    for index, (width, size, stride) in enumerate(
      zip(self.channels, self.kernels, self.strides, strict=True)
    ):
      check_range('[1, inf)', channels=width, kernels=size, strides=stride)
      x = nn.relu(dense(width, f'conv_{index}')(windows(x, size, stride)))
    x = x.reshape((len(x), -1))
    x = nn.relu(dense(self.hidden_dim, 'hidden')(x))
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='head')(x)
    return logits.astype(jnp.float32)


def windows(x: jax.Array, size: int, stride: int) -> jax.Array:
  """The windows that a convolution without padding sees.

  A dense layer over them is that convolution, with the kernel [size, size, C,
  D] reshaped to [size * size * C, D].

  Args:
    x: [B, H, W, C].
    size: Side of a window.
    stride: Places between two of them.

  Returns:
    [B, (H - size) // stride + 1, (W - size) // stride + 1, size * size * C].

  Raises:
    InputError: If no window fits.
  """
  _, height, width, _ = x.shape
  if min(height, width) < size:
    raise InputError(
      f'A kernel of side {size} does not fit into {height} x {width} places: '
      'lower kernels or strides, or take larger images.'
    )
  rows, columns = ((n - size) // stride + 1 for n in (height, width))
  parts = [
    x[:, i : i + (rows - 1) * stride + 1 : stride][
      :, :, j : j + (columns - 1) * stride + 1 : stride
    ]
    for i in range(size)
    for j in range(size)
  ]
  return jnp.concatenate(parts, -1)
