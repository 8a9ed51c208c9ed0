"""Device code: the Inception v3 whose features FID and KID are measured on.

Szegedy et al., 'Rethinking the Inception Architecture for Computer Vision',
CVPR 2016 (https://arxiv.org/abs/1512.00567), in the form of the TensorFlow
graph that Heusel et al., NeurIPS 2017, use (https://arxiv.org/abs/1706.08500):
means over 3 x 3 leave padding out, and the last block's pool is a maximum. It
is here to be filled with published weights (`weights/inception_weights.py`) and
is not trained: moments of its norms are parameters like all others. Layers have
the names of the published files.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

SIDE = 299
WIDTH = 2048  # Of the features.

_EPSILON = 1e-3


class Inception(nn.Module):
  """Images -> features behind the last pooling."""

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Features.

    Args:
      image: [B, H, W, C] in [-1, 1], C of 1 or 3; resized to 299 x 299.

    Returns:
      [B, 2048], float32.
    """
    batch, _, _, channels = image.shape
    x = jax.image.resize(
      image.astype(jnp.float32),
      (batch, SIDE, SIDE, channels),
      'linear',
      antialias=False,
    )
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    x = _Unit(32, strides=2, padding='VALID', name='Conv2d_1a_3x3')(x)
    x = _Unit(32, padding='VALID', name='Conv2d_2a_3x3')(x)
    x = _Unit(64, name='Conv2d_2b_3x3')(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _Unit(80, kernel=(1, 1), name='Conv2d_3b_1x1')(x)
    x = _Unit(192, padding='VALID', name='Conv2d_4a_3x3')(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    for name, branches in _BLOCKS.items():
      x = _Mixed(branches, name=name)(x)
    return x.mean((1, 2))


class _Norm(nn.Module):
  """(x - mean) / sqrt(var + eps) * scale + bias, by constants."""

  @nn.compact
  def __call__(self, x):
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    shape = (x.shape[-1],)
    mean, var = self.param('mean', zeros, shape), self.param('var', ones, shape)
    scale = self.param('scale', ones, shape) * jax.lax.rsqrt(var + _EPSILON)
    bias = self.param('bias', zeros, shape) - mean * scale
    return x * scale[None, None, None] + bias[None, None, None]


class _Unit(nn.Module):
  """A convolution, its norm and a relu."""

  features: int
  kernel: tuple[int, int] = (3, 3)
  strides: int = 1
  padding: str = 'SAME'

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(
      self.features,
      self.kernel,
      (self.strides, self.strides),
      self.padding,
      use_bias=False,
      name='conv',
    )(x)
    return nn.relu(_Norm(name='bn')(x))


class _Mixed(nn.Module):
  """Branches side by side, each a sequence of pools, units and forks."""

  branches: Sequence[Any]

  @nn.compact
  def __call__(self, x):
    ends = []
    for branch in self.branches:
      y = x
      for step in branch:
        y = self._step(step, y)
      ends.append(y)
    return jnp.concatenate(ends, -1)

  def _step(self, step, x):
    if step == 'mean':
      return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)
    if step == 'max':
      return nn.max_pool(x, (3, 3), (1, 1), 'SAME')
    if step == 'smaller':
      return nn.max_pool(x, (3, 3), (2, 2))
    if step[0] == 'fork':
      return jnp.concatenate([self._step(one, x) for one in step[1:]], -1)
    name, features, kernel, strides = step
    return _Unit(
      features, kernel, strides, 'VALID' if strides > 1 else 'SAME', name=name
    )(x)


def _unit(name, features, kernel=(1, 1), strides=1):
  return name, features, kernel, strides


def _narrow(pooled):
  """Blocks 5b to 5d, 35 x 35."""
  return (
    (_unit('branch1x1', 64),),
    (_unit('branch5x5_1', 48), _unit('branch5x5_2', 64, (5, 5))),
    (
      _unit('branch3x3dbl_1', 64),
      _unit('branch3x3dbl_2', 96, (3, 3)),
      _unit('branch3x3dbl_3', 96, (3, 3)),
    ),
    ('mean', _unit('branch_pool', pooled)),
  )


def _long(inner):
  """Blocks 6b to 6e, 17 x 17: kernels of 7 in two steps."""
  return (
    (_unit('branch1x1', 192),),
    (
      _unit('branch7x7_1', inner),
      _unit('branch7x7_2', inner, (1, 7)),
      _unit('branch7x7_3', 192, (7, 1)),
    ),
    (
      _unit('branch7x7dbl_1', inner),
      _unit('branch7x7dbl_2', inner, (7, 1)),
      _unit('branch7x7dbl_3', inner, (1, 7)),
      _unit('branch7x7dbl_4', inner, (7, 1)),
      _unit('branch7x7dbl_5', 192, (1, 7)),
    ),
    ('mean', _unit('branch_pool', 192)),
  )


def _wide(pool):
  """Blocks 7b and 7c, 8 x 8: branches that fork."""
  return (
    (_unit('branch1x1', 320),),
    (
      _unit('branch3x3_1', 384),
      (
        'fork',
        _unit('branch3x3_2a', 384, (1, 3)),
        _unit('branch3x3_2b', 384, (3, 1)),
      ),
    ),
    (
      _unit('branch3x3dbl_1', 448),
      _unit('branch3x3dbl_2', 384, (3, 3)),
      (
        'fork',
        _unit('branch3x3dbl_3a', 384, (1, 3)),
        _unit('branch3x3dbl_3b', 384, (3, 1)),
      ),
    ),
    (pool, _unit('branch_pool', 192)),
  )


_BLOCKS = {
  'Mixed_5b': _narrow(32),
  'Mixed_5c': _narrow(64),
  'Mixed_5d': _narrow(64),
  'Mixed_6a': (
    (_unit('branch3x3', 384, (3, 3), 2),),
    (
      _unit('branch3x3dbl_1', 64),
      _unit('branch3x3dbl_2', 96, (3, 3)),
      _unit('branch3x3dbl_3', 96, (3, 3), 2),
    ),
    ('smaller',),
  ),
  'Mixed_6b': _long(128),
  'Mixed_6c': _long(160),
  'Mixed_6d': _long(160),
  'Mixed_6e': _long(192),
  'Mixed_7a': (
    (_unit('branch3x3_1', 192), _unit('branch3x3_2', 320, (3, 3), 2)),
    (
      _unit('branch7x7x3_1', 192),
      _unit('branch7x7x3_2', 192, (1, 7)),
      _unit('branch7x7x3_3', 192, (7, 1)),
      _unit('branch7x7x3_4', 192, (3, 3), 2),
    ),
    ('smaller',),
  ),
  'Mixed_7b': _wide('mean'),
  'Mixed_7c': _wide('max'),
}
