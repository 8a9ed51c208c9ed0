"""Device code: the small AlexNet of continual learning.

Serra, Suris, Miron and Karatzoglou, 'Overcoming Catastrophic Forgetting with
Hard Attention to the Task' (HAT), ICML 2018 (https://arxiv.org/abs/1801.01423);
used by GPM (https://arxiv.org/abs/2103.09762) on CIFAR-100.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError


class AlexNet(nn.Module):
  """Three convolutions and two dense layers, all without biases.

  Layers are `conv_0`, ..., `hidden_0`, ..., `head`.

  Attributes:
    num_classes: Width of the logits.
    channels: Number of channels of each convolution.
    kernels: Side of each convolution's kernel.
    dropout_rates: Dropout after each convolution's relu, in [0, 1).
    features: Widths of the dense layers.
    dense_dropout_rate: Dropout after each dense layer's relu, in [0, 1).
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether convolutions, each with its pooling, are computed again in
      the backward pass.
  """

  num_classes: int
  channels: Sequence[int] = (64, 128, 256)
  kernels: Sequence[int] = (4, 3, 2)
  dropout_rates: Sequence[float] = (0.2, 0.2, 0.5)
  features: Sequence[int] = (2048, 2048)
  dense_dropout_rate: float = 0.5
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, 32, 32, C] -> logits [B, num_classes], float32."""
    del mask  # Rows do not see each other.

    # Of any module: a lifted one is a copy of this one.
    def stage(net, x, width, size, rate, index):
      del net
      x = nn.Conv(
        width,
        (size, size),
        padding='VALID',
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f'conv_{index}',
      )(x)
      x = nn.Dropout(rate, deterministic=not train)(nn.relu(x))
      return nn.max_pool(x, (2, 2), (2, 2))

    x = image
    layers = zip(self.channels, self.kernels, self.dropout_rates, strict=True)
    for index, layer in enumerate(layers):
      width, size, rate = layer
      run = functools.partial(
        stage, width=width, size=size, rate=rate, index=index
      )
      x = (nn.remat(run) if self.remat else run)(self, x)
      if not min(x.shape[1:3]):
        raise InputError(
          f'images of {image.shape[1]} x {image.shape[2]} pixels are too small '
          f'for kernels={tuple(self.kernels)}, each with a pooling behind it: '
          'give larger ones'
        )
    x = x.reshape((x.shape[0], -1))
    for index, width in enumerate(self.features):
      x = nn.Dense(
        width,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f'hidden_{index}',
      )(x)
      x = nn.Dropout(self.dense_dropout_rate, deterministic=not train)(
        nn.relu(x)
      )
    logits = nn.Dense(
      self.num_classes, use_bias=False, dtype=self.dtype, name='head'
    )(x)
    return logits.astype(jnp.float32)
