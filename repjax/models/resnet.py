"""Device code: residual networks for small images and for ImageNet.

He et al., 'Identity Mappings in Deep Residual Networks', ECCV 2016
(`PreActResNet`, https://arxiv.org/abs/1603.05027); Zagoruyko and Komodakis,
'Wide Residual Networks', BMVC 2016 (`WideResNet`,
https://arxiv.org/abs/1605.07146); He et al., 'Deep Residual Learning', CVPR
2016 (`ResNet`, https://arxiv.org/abs/1512.03385).

All are called as `(image [B, H, W, C], train=..., mask=[B])` -> logits
[B, num_classes], float32. Their field `stride` says how stages make their maps
smaller: by 'strided' convolutions, by 'spectral' pooling or by 'diffstride',
learnt strides; a `downsampling.Downsampling` says more than the word.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import downsampling
from repjax.models import residual
from repjax.types import InputError

Stride = downsampling.Kind | downsampling.Downsampling


class WideResNet(nn.Module):
  """A pre-activation network of three wide stages (table 1 of the paper).

  Attributes:
    num_classes: Width of the logits.
    depth: Number of layers, 6 n + 4: n blocks of two convolutions a stage.
    widen: Factor k on the widths 16, 32 and 64.
    dropout_rate: Dropout between the convolutions of a block.
    norm: 'batch', or 'group' where examples must not see each other (private
      training).
    dtype: Type of the computation; None infers it from input and parameters.
    stride: 'strided', 'spectral', 'diffstride' or a `Downsampling`.
  """

  num_classes: int
  depth: int = 28
  widen: int = 10
  dropout_rate: float = 0.0
  norm: residual.Norm = 'batch'
  dtype: Any = None
  stride: Stride = 'strided'

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes]."""
    blocks, rest = divmod(self.depth - 4, 6)
    if blocks < 1 or rest or self.widen < 1:
      raise InputError(
        'A WideResNet has depth 6 n + 4 (10, 16, 22, 28, 40, ...) and widen >= '
        f'1; got depth={self.depth}, widen={self.widen}'
      )
    x = residual.square_conv(16, 3, name='stem', dtype=self.dtype)(image)
    settings = dict(dropout_rate=self.dropout_rate, train=train, mask=mask)
    x = _stages(self, x, 'preact', [blocks] * 3, 16 * self.widen, **settings)
    x = residual.normalize(
      x, self.norm, 'norm', self.dtype, train=train, mask=mask
    )
    return _head(nn.relu(x), self.num_classes, self.dtype)


class PreActResNet(nn.Module):
  """PreAct ResNet-18 and its kind, for small images.

  The stem is one 3 x 3 convolution without stride, as all CIFAR versions have
  it. The last blocks are followed by a norm and a relu, as in the paper (a
  much used PyTorch version leaves them out).

  Attributes:
    num_classes: Width of the logits.
    stage_sizes: Number of blocks of each stage, (2, 2, 2, 2) for ResNet-18 and
      (3, 4, 6, 3) for ResNet-34.
    width: Width of the first stage; it doubles with each.
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    stride: 'strided', 'spectral', 'diffstride' or a `Downsampling`.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  norm: residual.Norm = 'batch'
  dtype: Any = None
  stride: Stride = 'strided'

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes]."""
    x = residual.square_conv(self.width, 3, name='stem', dtype=self.dtype)(
      image
    )
    sizes, width = self.stage_sizes, self.width
    x = _stages(self, x, 'preact', sizes, width, train=train, mask=mask)
    x = residual.normalize(
      x, self.norm, 'norm', self.dtype, train=train, mask=mask
    )
    return _head(nn.relu(x), self.num_classes, self.dtype)


class ResNet(nn.Module):
  """ResNet-50 and its kind, for ImageNet.

  The version called v1.5: a stage's stride is on the first 3 x 3 convolution,
  not on a 1 x 1. The last scale of every block starts at zero (Goyal et al.,
  'Accurate, Large Minibatch SGD', 2017, section 5.1,
  https://arxiv.org/abs/1706.02677).

  Attributes:
    num_classes: Width of the logits.
    stage_sizes: Number of blocks of each stage, (3, 4, 6, 3) for ResNet-50,
      (3, 4, 23, 3) for -101 and (3, 8, 36, 3) for -152; of 'basic' blocks
      (2, 2, 2, 2) for ResNet-18, and (1, 1, 1, 1) for the -10 of few-shot
      learning.
    block: 'bottleneck' or 'basic'; see `PostActBlock`.
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    stride: 'strided', 'spectral', 'diffstride' or a `Downsampling`.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (3, 4, 6, 3)
  block: Literal['basic', 'bottleneck'] = 'bottleneck'
  norm: residual.Norm = 'batch'
  dtype: Any = None
  stride: Stride = 'strided'

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes]."""
    x = residual.square_conv(64, 7, stride=2, name='stem', dtype=self.dtype)(
      image
    )
    x = residual.normalize(
      x, self.norm, 'stem_norm', self.dtype, train=train, mask=mask
    )
    x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1),) * 2)
    if self.block not in ('basic', 'bottleneck'):
      raise InputError(
        f"block is 'basic' or 'bottleneck'; got block={self.block!r}"
      )
    sizes = self.stage_sizes
    x = _stages(self, x, self.block, sizes, 64, train=train, mask=mask)
    return _head(x, self.num_classes, self.dtype)


def _stages(net, x, kind, sizes, width, *, train, mask, dropout_rate=0.0):
  """Stages of a network: widths double from one to the next, sides halve."""
  steps = downsampling.of(net.stride).stages(len(sizes))
  for stage, (num_blocks, step) in enumerate(zip(sizes, steps, strict=True)):
    x = residual.Stage(
      kind,
      num_blocks,
      width=width * 2**stage,
      stride=step.stride,
      pool=step.pool,
      dropout_rate=dropout_rate,
      norm=net.norm,
      dtype=net.dtype,
      name=f'stage_{stage}',
    )(x, train=train, mask=mask)
  return x


def _head(x, num_classes, dtype):
  pooled = x.mean((1, 2))
  logits = nn.Dense(num_classes, dtype=dtype, name='head')(pooled)
  return logits.astype(jnp.float32)
