"""Device code: a small convolutional network of matrix products.

For many models side by side, whose convolutions would be slow on CPUs
(`layers.unfolded_conv`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import norms
from repjax.layers import unfolded_conv
from repjax.types import check_range


class UnfoldedConvNet(nn.Module):
  """Convolutions with relu, flattened, and a dense layer.

  Layers are `conv_0`, ..., `hidden` and `head`, and `norm_0`, ... where there
  are batch norms, without which rows do not see each other. Nothing is padded.

  Attributes:
    num_classes: Width of the logits.
    channels: Channels of each convolution.
    kernels: Side of each convolution's kernel.
    strides: Stride of each convolution.
    hidden_dim: Width of the dense layer.
    normalize: Whether batch normalisation comes after each convolution.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether convolutions are computed again in the backward pass, which
      then keeps no windows.
  """

  num_classes: int
  channels: Sequence[int] = (16, 32, 64)
  kernels: Sequence[int] = (5, 3, 3)
  strides: Sequence[int] = (2, 1, 1)
  hidden_dim: int = 64
  normalize: bool = False
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes], float32."""
    check_range('[1, inf)', hidden_dim=self.hidden_dim)

    init = nn.initializers.he_normal()

    def run(conv, x):
      return conv(x)

    run = nn.remat(run) if self.remat else run
    x = image
    for index, (width, size, stride) in enumerate(
      zip(self.channels, self.kernels, self.strides, strict=True)
    ):
      check_range('[1, inf)', channels=width, kernels=size, strides=stride)
      conv = unfolded_conv.UnfoldedConv(
        width,
        size=size,
        stride=stride,
        kernel_init=init,
        dtype=self.dtype,
        name=f'conv_{index}',
      )
      x = run(conv, x)
      if self.normalize:
        norm = norms.BatchNorm(dtype=self.dtype, name=f'norm_{index}')
        x = norm(x, train=train, mask=mask)
      x = nn.relu(x)
    x = x.reshape((len(x), -1))
    hidden = nn.Dense(
      self.hidden_dim, kernel_init=init, dtype=self.dtype, name='hidden'
    )
    x = nn.relu(hidden(x))
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='head')(x)
    return logits.astype(jnp.float32)
