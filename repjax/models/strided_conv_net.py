"""Device code: a small network of 3 x 3 convolutions, some with a stride."""

from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range


class StridedConvNet(nn.Module):
  """Convolutions with relu, the mean over places, and a linear head.

  Layers are `conv_0`, ..., and `head`. No norm: rows do not see each other.

  Attributes:
    num_classes: Width of the logits.
    channels: Channels of each convolution.
    strides: Stride of each convolution.
    padding: 'both' pads all sides by one place, of which a stride of 2 consumes
      the top and the left ones alone where maps have an even size; 'SAME', as
      of TensorFlow, then pads the bottom and the right alone.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether stages are computed again in the backward pass: convolutions
      up to one with a stride.
  """

  num_classes: int
  channels: Sequence[int] = (16, 16, 32, 32, 32)
  strides: Sequence[int] = (1, 2, 1, 2, 2)
  padding: Literal['both', 'SAME'] = 'both'
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes], float32."""
    del train, mask  # Nothing drops out, and rows do not see each other.
    check_choice('padding', self.padding, ('both', 'SAME'))
    if len(self.channels) != len(self.strides):
      raise InputError(
        'channels and strides have one number a layer; got '
        f'channels={tuple(self.channels)}, strides={tuple(self.strides)}'
      )

    # Of any module: a lifted one is a copy of this one.
    def stage(net, x, layers):
      del net
      for index, width, stride in layers:
        conv = nn.Conv(
          width,
          (3, 3),
          strides=(stride, stride),
          padding=1 if self.padding == 'both' else 'SAME',
          dtype=self.dtype,
          name=f'conv_{index}',
        )
        x = nn.relu(conv(x))
      return x

    stages: list[list[tuple[int, int, int]]] = [[]]
    for index, (width, stride) in enumerate(
      zip(self.channels, self.strides, strict=True)
    ):
      check_range('[1, inf)', channels=width, strides=stride)
      stages[-1].append((index, width, stride))
      if stride > 1:
        stages.append([])
    x = image
    for layers in filter(None, stages):
      run = functools.partial(stage, layers=layers)
      x = (nn.remat(run) if self.remat else run)(self, x)
    logits = nn.Dense(self.num_classes, dtype=self.dtype, name='head')(
      x.mean((1, 2))
    )
    return logits.astype(jnp.float32)
