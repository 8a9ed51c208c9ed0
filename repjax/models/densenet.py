"""Device code: densely connected convolutional networks.

Huang, Liu, van der Maaten and Weinberger, 'Densely Connected Convolutional
Networks', CVPR 2017 (https://arxiv.org/abs/1608.06993): each layer sees the
maps of all layers before it in its block. `DenseNet` is that for ImageNet
with bottlenecks and compression (DenseNet-BC, table 1); WILDS trains
DenseNet-121 on Camelyon17 and FMoW.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import types
from repjax.layers import norms


class DenseNet(nn.Module):
  """A stem, dense blocks with transitions between them, and a head.

  Attributes:
    num_classes: Width of the logits.
    stage_sizes: Layers of each block: (6, 12, 24, 16) for DenseNet-121, (6,
      12, 32, 32) for -169 and (6, 12, 48, 32) for -201.
    growth: k, maps that each layer adds.
    width: Maps of the stem, 2 k in the paper.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether layers are computed again in the backward pass (Pleiss et
      al., 2017, https://arxiv.org/abs/1707.06990).
  """

  num_classes: int
  stage_sizes: Sequence[int] = (6, 12, 24, 16)
  growth: int = 32
  width: int = 64
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> logits [B, num_classes], float32."""
    types.check_range('[1, inf)', growth=self.growth, width=self.width)

    def act(x, name):
      norm = norms.BatchNorm(dtype=self.dtype, name=name)
      return nn.relu(norm(x, train=train, mask=mask))

    def run(layer, x):
      return layer(x, train=train, mask=mask)

    run = nn.remat(run) if self.remat else run
    x = _conv(self.width, 7, 'stem', self.dtype, stride=2)(image)
    x = act(x, 'stem_norm')
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1),) * 2)
    for stage, layers in enumerate(self.stage_sizes):
      if stage:
        x = act(x, f'transition_{stage}_norm')
        width = x.shape[-1] // 2
        x = _conv(width, 1, f'transition_{stage}', self.dtype)(x)
        if min(x.shape[1:3]) < 2:
          raise types.InputError(
            f'images of {image.shape[1]} x {image.shape[2]} pixels are too '
            f'small for {len(self.stage_sizes)} stages: give larger ones, or '
            'fewer stages'
          )
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
      for index in range(layers):
        layer = DenseLayer(
          self.growth, dtype=self.dtype, name=f'stage_{stage}_layer_{index}'
        )
        x = jnp.concatenate([x, run(layer, x)], -1)
    pooled = act(x, 'norm').mean((1, 2))
    head = nn.Dense(self.num_classes, dtype=self.dtype, name='head')
    return head(pooled).astype(jnp.float32)


class DenseLayer(nn.Module):
  """conv(relu(norm(conv(relu(norm(x)))))), 1 x 1 to 4 k maps, then 3 x 3.

  Attributes:
    growth: k, maps that come out.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  growth: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, growth]."""
    for index, (width, size) in enumerate(
      ((4 * self.growth, 1), (self.growth, 3))
    ):
      norm = norms.BatchNorm(dtype=self.dtype, name=f'norm_{index}')
      x = nn.relu(norm(x, train=train, mask=mask))
      x = _conv(width, size, f'conv_{index}', self.dtype)(x)
    return x


def _conv(width, size, name, dtype, *, stride=1):
  return nn.Conv(
    width,
    (size, size),
    strides=(stride, stride),
    padding=((size // 2, size // 2),) * 2,
    use_bias=False,
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
    name=name,
  )
