"""Device code: a small convolutional network with batch normalisation.

That of the coloured MNIST of Ahmed et al., ICLR 2021
(https://openreview.net/forum?id=b9PoimzZFJ).
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import norms
from repjax.types import InputError
from repjax.types import check_range


class ConvNet(nn.Module):
  """3 x 3 convolutions, each with max pooling, a norm and relu; then the mean.

  Layers are `conv_0`, `norm_0`, ..., `head`.

  Attributes:
    num_classes: Width of the logits.
    channels: Number of channels of each convolution; each halves the sides.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether stages are computed again in the backward pass.
  """

  num_classes: int
  channels: Sequence[int] = (64, 128, 256)
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes], float32."""

    # Of any module: a lifted one is a copy of this one.
    def stage(net, x, width, index):
      del net
      x = nn.Conv(
        width,
        (3, 3),
        kernel_init=nn.initializers.glorot_uniform(),
        dtype=self.dtype,
        name=f'conv_{index}',
      )(x)
      if min(x.shape[1:3]) < 2:
        raise InputError(
          f'images of {image.shape[1]} x {image.shape[2]} pixels cannot be '
          f'halved {len(self.channels)} times: give larger ones, or fewer '
          'channels'
        )
      x = nn.max_pool(x, (2, 2), (2, 2))
      x = norms.BatchNorm(name=f'norm_{index}')(x, train=train, mask=mask)
      return nn.relu(x)

    x = image
    for index, width in enumerate(self.channels):
      check_range('[1, inf)', channels=width)
      run = functools.partial(stage, width=width, index=index)
      x = (nn.remat(run) if self.remat else run)(self, x)
    x = x.mean((1, 2))
    logits = nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.glorot_uniform(),
      dtype=self.dtype,
      name='head',
    )(x)
    return logits.astype(jnp.float32)
