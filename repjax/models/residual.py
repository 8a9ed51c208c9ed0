"""Device code: residual blocks, and stages of them.

He et al., 'Identity Mappings in Deep Residual Networks', ECCV 2016
('preact', https://arxiv.org/abs/1603.05027), and 'Deep Residual Learning', CVPR
2016 ('basic' and 'bottleneck', https://arxiv.org/abs/1512.03385).

Convolutions pad alike on both sides, as the authors' code does; 'SAME' would
not where the stride is 2.
"""

from collections.abc import Callable
from typing import Any
from typing import Literal

import flax.linen as nn
import jax

from repjax.layers import downsampling
from repjax.layers import norms
from repjax.types import InputError

Norm = Literal['batch', 'group']

# Groups of 'group': divides every width of the networks here. De et al.,
# 'Unlocking High-Accuracy Differentially Private Image Classification', 2022,
# train WideResNets with it.
NUM_GROUPS = 16


class Stage(nn.Module):
  """Blocks of equal width, of which the first has the stride.

  Attributes:
    kind: 'preact': two 3 x 3 convolutions, each after a norm and a relu;
      'basic': two, each before a norm; 'bottleneck': 1 x 1, 3 x 3 and 1 x 1,
      each before a norm.
    num_blocks: Number of blocks.
    width: Number of channels; 'bottleneck' has four times as many outside.
    stride: Stride of the first block; the others have 1.
    dropout_rate: Dropout before the second convolution of 'preact', in [0, 1).
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    pool: Pooling that the first block has in place of a stride, or None.
  """

  kind: Literal['preact', 'basic', 'bottleneck']
  num_blocks: int
  width: int
  stride: int
  dropout_rate: float = 0.0
  norm: Norm = 'batch'
  dtype: Any = None
  pool: downsampling.Downsampling | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> [B, H / stride, W / stride, width or 4 width]."""
    for index in range(self.num_blocks):
      settings = dict(
        width=self.width,
        stride=self.stride if index == 0 else 1,
        norm=self.norm,
        dtype=self.dtype,
        pool=self.pool if index == 0 else None,
        name=f'block_{index}',
      )
      block: PreActBlock | PostActBlock
      if self.kind == 'preact':
        block = PreActBlock(dropout_rate=self.dropout_rate, **settings)
      else:
        block = PostActBlock(self.kind, **settings)
      x = block(x, train=train, mask=mask)
    return x


class PreActBlock(nn.Module):
  """x + conv(relu(norm(conv(relu(norm(x)))))) (fig. 4e of He et al., ECCV).

  Where the shape changes, a 1 x 1 convolution of relu(norm(x)) stands for x.

  Attributes:
    width: Number of channels inside and outside.
    stride: Stride of the first convolution.
    dropout_rate: Dropout before the second convolution, in [0, 1).
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    pool: Pooling behind the first convolution and of the shortcut, or None.
  """

  width: int
  stride: int
  dropout_rate: float
  norm: Norm
  dtype: Any
  pool: downsampling.Downsampling | None = None

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    """[B, H, W, C] -> [B, H / stride, W / stride, width]."""

    def act(x, name):
      return nn.relu(
        normalize(x, self.norm, name, self.dtype, train=train, mask=mask)
      )

    def conv(x, size, stride, name):
      return square_conv(
        self.width, size, stride=stride, name=name, dtype=self.dtype
      )(x)

    pool = pooling(self.pool)
    shortcut, x = x, act(x, 'norm_0')
    if self.stride != 1 or self.pool or shortcut.shape[-1] != self.width:
      shortcut = conv(pool(x), 1, self.stride, 'shortcut')
    x = act(pool(conv(x, 3, self.stride, 'conv_0')), 'norm_1')
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
    width: Number of channels inside.
    stride: Stride of the first 3 x 3 convolution.
    norm: 'batch', or 'group' where examples must not see each other.
    dtype: Type of the computation; None infers it from input and parameters.
    pool: Pooling behind the convolution with the stride and of the shortcut, or
      None.
  """

  kind: Literal['basic', 'bottleneck']
  width: int
  stride: int
  norm: Norm
  dtype: Any
  pool: downsampling.Downsampling | None = None

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    """[B, H, W, C] -> [B, H / stride, W / stride, width or 4 width]."""
    pool = pooling(self.pool)

    def conv_norm(x, width, size, stride, name, **settings):
      x = square_conv(width, size, stride=stride, name=name, dtype=self.dtype)(
        x
      )
      if name == f'conv_{strided}':
        x = pool(x)
      return normalize(
        x,
        self.norm,
        f'{name}_norm',
        self.dtype,
        train=train,
        mask=mask,
        **settings,
      )

    width, shortcut, strided = self.width, x, 0
    layers = [(width, 3, self.stride), (width, 3, 1)]
    if self.kind == 'bottleneck':
      strided = 1
      layers = [(width, 1, 1), (width, 3, self.stride), (4 * width, 1, 1)]
    for index, layer in enumerate(layers[:-1]):
      x = nn.relu(conv_norm(x, *layer, f'conv_{index}'))
    x = conv_norm(
      x,
      *layers[-1],
      f'conv_{len(layers) - 1}',
      scale_init=nn.initializers.zeros_init(),
    )
    if self.pool or shortcut.shape != x.shape:
      shortcut = conv_norm(
        pool(shortcut), x.shape[-1], 1, self.stride, 'shortcut'
      )
    return nn.relu(shortcut + x)


def pooling(
  pool: downsampling.Downsampling | None,
) -> Callable[[jax.Array], jax.Array]:
  """The pooling of a block, for its branch and its shortcut alike.

  Poolings are linear and leave channels alone, so one before a 1 x 1
  convolution without bias is the one behind it that the authors' code has, of
  fewer places.
  """
  return (lambda x: x) if pool is None else pool.layer('pool')


def square_conv(
  width: int, size: int, *, stride: int = 1, name: str, dtype: Any
) -> nn.Conv:
  """A convolution without bias that pads alike on both sides."""
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


def normalize(
  x: jax.Array,
  kind: Norm,
  name: str,
  dtype: Any,
  *,
  train: bool,
  mask: jax.Array | None,
  **settings: Any,
) -> jax.Array:
  """Normalises channels over 'batch', or in each example by 'group'."""
  if kind == 'batch':
    norm = norms.BatchNorm(dtype=dtype, name=name, **settings)
    return norm(x, train=train, mask=mask)
  if kind == 'group':
    # Each example on its own: no mask, no statistics.
    return nn.GroupNorm(
      num_groups=NUM_GROUPS, epsilon=1e-5, dtype=dtype, name=name, **settings
    )(x)
  raise InputError(f"norm is 'batch' or 'group'; got norm={kind!r}")
