"""Device code: residual networks for small images and for ImageNet.

He et al., 'Identity Mappings in Deep Residual Networks', ECCV 2016
(`PreActResNet`, https://arxiv.org/abs/1603.05027); Zagoruyko and Komodakis,
'Wide Residual Networks', BMVC 2016 (`WideResNet`,
https://arxiv.org/abs/1605.07146); He et al., 'Deep Residual Learning', CVPR
2016 (`ResNet`, https://arxiv.org/abs/1512.03385).

All are called as `(image [B, H, W, C], train=..., mask=[B])` -> logits
[B, num_classes], float32. Convolutions pad alike on both sides, as the
authors' code does; 'SAME' would not where the stride is 2.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import norms
from repjax.types import InputError

Norm = Literal['batch', 'group']

# Groups of 'group': divides every width of the networks here. De et al.,
# 'Unlocking High-Accuracy Differentially Private Image Classification', 2022,
# train WideResNets with it.
NUM_GROUPS = 16


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
    stride: A `layers.downsampling.Downsampling`; None for strides of 2.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  depth: int = 28
  widen: int = 10
  dropout_rate: float = 0.0
  norm: Norm = 'batch'
  dtype: Any = None
  stride: Any = None
  remat: bool = False

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
    x = _conv(16, 3, name='stem', dtype=self.dtype)(image)
    settings = dict(dropout_rate=self.dropout_rate, train=train, mask=mask)
    x = _stages(self, x, 'preact', [blocks] * 3, 16 * self.widen, **settings)
    x = _normalize(x, self.norm, 'norm', self.dtype, train=train, mask=mask)
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
    stride: A `layers.downsampling.Downsampling`; None for strides of 2.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  norm: Norm = 'batch'
  dtype: Any = None
  stride: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes]."""
    x = _conv(self.width, 3, name='stem', dtype=self.dtype)(image)
    sizes, width = self.stage_sizes, self.width
    x = _stages(self, x, 'preact', sizes, width, train=train, mask=mask)
    x = _normalize(x, self.norm, 'norm', self.dtype, train=train, mask=mask)
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
    stride: A `layers.downsampling.Downsampling`; None for strides of 2.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (3, 4, 6, 3)
  block: Literal['basic', 'bottleneck'] = 'bottleneck'
  norm: Norm = 'batch'
  dtype: Any = None
  stride: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes]."""
    x = _conv(64, 7, stride=2, name='stem', dtype=self.dtype)(image)
    x = _normalize(
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
  count = len(sizes)
  strides = net.stride.stages(count) if net.stride else [1] + [2] * (count - 1)
  for stage, num_blocks in enumerate(sizes):
    x = Stage(
      kind,
      num_blocks,
      width=width * 2**stage,
      stride=strides[stage],
      dropout_rate=dropout_rate,
      norm=net.norm,
      dtype=net.dtype,
      remat=net.remat,
      name=f'stage_{stage}',
    )(x, train=train, mask=mask)
  return x


class Stage(nn.Module):
  """Blocks of equal width, of which the first has the stride.

  Attributes:
    kind: 'preact': two 3 x 3 convolutions, each after a norm and a relu;
      'basic': two, each before a norm; 'bottleneck': 1 x 1, 3 x 3 and 1 x 1,
      each before a norm.
    num_blocks: Number of blocks.
    width: Number of channels; 'bottleneck' has four times as many outside.
    stride: Of the first block, or its pooling; the others have 1.
    dropout_rate: Dropout before the second convolution of 'preact', in [0, 1).
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether blocks are computed again in the backward pass.
  """

  kind: Literal['preact', 'basic', 'bottleneck']
  num_blocks: int
  width: int
  stride: Any
  dropout_rate: float = 0.0
  norm: Norm = 'batch'
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> [B, H / stride, W / stride, width or 4 width]."""

    def run(block, x):
      return block(x, train=train, mask=mask)

    run = nn.remat(run) if self.remat else run
    for index in range(self.num_blocks):
      settings = dict(
        width=self.width,
        stride=self.stride if index == 0 else 1,
        norm=self.norm,
        dtype=self.dtype,
        name=f'block_{index}',
      )
      if self.kind == 'preact':
        x = run(PreActBlock(dropout_rate=self.dropout_rate, **settings), x)
      else:
        x = run(PostActBlock(self.kind, **settings), x)
    return x


class PreActBlock(nn.Module):
  """x + conv(relu(norm(conv(relu(norm(x)))))) (fig. 4e of He et al., ECCV).

  Where the shape changes, a 1 x 1 convolution of relu(norm(x)) stands for x.
  The fields are those of a `Stage`.
  """

  width: int
  stride: Any
  dropout_rate: float
  norm: Norm
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    """[B, H, W, C] -> [B, H / stride, W / stride, width]."""

    def act(x, name):
      return nn.relu(
        _normalize(x, self.norm, name, self.dtype, train=train, mask=mask)
      )

    def conv(x, size, stride, name):
      return _conv(
        self.width, size, stride=stride, name=name, dtype=self.dtype
      )(x)

    stride, pool = _pooling(self.stride)
    shortcut, x = x, act(x, 'norm_0')
    if self.stride != 1 or shortcut.shape[-1] != self.width:
      shortcut = conv(pool(x), 1, stride, 'shortcut')
    x = act(pool(conv(x, 3, stride, 'conv_0')), 'norm_1')
    if self.dropout_rate:
      x = nn.Dropout(
        self.dropout_rate, deterministic=not train, name='dropout'
      )(x)
    return shortcut + conv(x, 3, 1, 'conv_1')


class PostActBlock(nn.Module):
  """relu(x + norm(conv(relu(norm(conv(...)))))), of two or three convolutions.

  Attributes:
    kind: 'basic': two 3 x 3 convolutions; 'bottleneck': 1 x 1, 3 x 3 and 1 x 1,
      the last of four times the width.

  The others are those of a `Stage`.
  """

  kind: Literal['basic', 'bottleneck']
  width: int
  stride: Any
  norm: Norm
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    """[B, H, W, C] -> [B, H / stride, W / stride, width or 4 width]."""
    stride, pool = _pooling(self.stride)
    strided = 'conv_1' if self.kind == 'bottleneck' else 'conv_0'

    def conv_norm(x, width, size, stride, name, **settings):
      x = _conv(width, size, stride=stride, name=name, dtype=self.dtype)(x)
      x = pool(x) if name == strided else x
      settings.update(train=train, mask=mask)
      return _normalize(x, self.norm, f'{name}_norm', self.dtype, **settings)

    width, shortcut = self.width, x
    layers = [(width, 3, stride), (width, 3, 1)]
    if self.kind == 'bottleneck':
      layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
    for index, layer in enumerate(layers[:-1]):
      x = nn.relu(conv_norm(x, *layer, f'conv_{index}'))
    last = f'conv_{len(layers) - 1}'
    zeros = nn.initializers.zeros_init()
    x = conv_norm(x, *layers[-1], last, scale_init=zeros)
    if shortcut.shape != x.shape:
      shortcut = conv_norm(pool(shortcut), x.shape[-1], 1, stride, 'shortcut')
    return nn.relu(shortcut + x)


def _pooling(stride):
  """(stride of convolutions, pooling of both ways) of a block."""
  if isinstance(stride, int):
    return stride, lambda x: x
  # Linear, and on each channel: before a 1 x 1 convolution it does what it does
  # behind it, where the authors have it, for less.
  return 1, stride.layer('pool')


def _conv(width, size, *, stride=1, name, dtype):
  return nn.Conv(
    width,
    (size, size),
    strides=(stride, stride),
    padding=((size // 2, size // 2),) * 2,
    use_bias=False,
    # He et al., 2015, with the fan that the authors' code counts.
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    dtype=dtype,
    name=name,
  )


def _normalize(x, kind, name, dtype, *, train, mask, **settings):
  if kind == 'batch':
    norm = norms.BatchNorm(dtype=dtype, name=name, **settings)
    return norm(x, train=train, mask=mask)
  if kind == 'group':
    # Each example on its own: no mask, no statistics.
    return nn.GroupNorm(
      num_groups=NUM_GROUPS, epsilon=1e-5, dtype=dtype, name=name, **settings
    )(x)
  raise InputError(f"norm is 'batch' or 'group'; got norm={kind!r}")


def _head(x, num_classes, dtype):
  pooled = x.mean((1, 2))
  logits = nn.Dense(num_classes, dtype=dtype, name='head')(pooled)
  return logits.astype(jnp.float32)
