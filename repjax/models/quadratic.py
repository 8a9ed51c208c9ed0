"""Device code: networks of one hidden layer, fully connected or convolutional.

Those of Li, Zhang and Arora, ICLR 2021 (https://arxiv.org/abs/2010.08515), over
vectors [B, D]. With squares for an activation both can say which part of a
vector is longer, so that what tells them apart is how many rows they need.

First layers begin as independent normal numbers, whose distribution rotations
leave as it is. (The uniform ones that some libraries draw are not of this kind,
and the theorems not about them.)
"""

from collections.abc import Callable
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

Activation = Literal['square', 'relu']
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'square': jnp.square,
  'relu': nn.relu,
}


class FullyConnected(nn.Module):
  """f(x) = sum_j a_j s(w_j x) + b; layers `hidden`, without bias, and `head`.

  Attributes:
    num_outputs: Width of f.
    width: Number of hidden units; from D on, squares can be any quadratic form.
    activation: s.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_outputs: int
  width: int = 128
  activation: Activation = 'square'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, features: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, D] -> [B, num_outputs]."""
    del train, mask  # Rows do not see each other, and nothing is random.
    check_range('[1, inf)', width=self.width)
    x = _dense(self.width, self.dtype, 'hidden')(features)
    x = _activation(self.activation)(x)
    return _dense(self.num_outputs, self.dtype, 'head', use_bias=True)(x)


class PooledConv(nn.Module):
  """One filter bank over each of G equal parts of a vector, then sums of parts.

  `hidden` slides over a part, `head` sees one sum a part and channel, over the
  square root of the number of places.

  Attributes:
    num_outputs: Width of the output.
    num_parts: G; filters do not cross from one part to the next.
    taps: Length of the filters.
    channels: Number of filters.
    padding: 'valid', or 'circular' on each part.
    activation: Between the two layers.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_outputs: int
  num_parts: int = 2
  taps: int = 3
  channels: int = 1
  padding: Literal['valid', 'circular'] = 'valid'
  activation: Activation = 'square'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, features: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, D] -> [B, num_outputs]."""
    del train, mask  # Rows do not see each other, and nothing is random.
    check_choice('padding', self.padding, ('valid', 'circular'))
    check_range('[1, inf)', num_parts=self.num_parts, channels=self.channels)
    rows, dim = features.shape
    if dim % self.num_parts:
      raise InputError(
        f'PooledConv cuts vectors into {self.num_parts} equal parts; got those '
        f'of {dim} numbers'
      )
    check_range(f'[1, {dim // self.num_parts}]', taps=self.taps)
    x = features.reshape(rows, self.num_parts, -1)  # [B, G, L]
    if self.padding == 'circular':
      x = jnp.concatenate([x, x[..., : self.taps - 1]], -1)
    places = x.shape[-1] - self.taps + 1
    # Shifts and a product: batches of these are fast, of convolutions not.
    windows = jnp.stack([x[..., i : i + places] for i in range(self.taps)], -1)
    x = _dense(self.channels, self.dtype, 'hidden')(windows)  # [B, G, P, C]
    x = _activation(self.activation)(x).sum(2) / places**0.5
    x = x.reshape(rows, -1)
    return _dense(self.num_outputs, self.dtype, 'head', use_bias=True)(x)


class ImageConv(nn.Module):
  """The network of figure 1: convolution, squares, convolution, mean of places.

  Layers are `hidden` (taps x taps x `channels`) and `head` (taps x taps, one
  channel an output), both without padding.

  Attributes:
    num_outputs: Width of the output.
    side: Of the images, 3 x side x side numbers, colour after colour.
    taps: Side of the filters.
    channels: Number of filters of the first convolution.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_outputs: int
  side: int
  taps: int = 3
  channels: int = 10
  dtype: Any = None

  @nn.compact
  def __call__(
    self, features: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, 3 * side * side] -> [B, num_outputs]."""
    del train, mask  # Rows do not see each other, and nothing is random.
    check_range('[1, inf)', side=self.side, channels=self.channels)
    if features.shape[-1] != 3 * self.side**2:
      raise InputError(
        f'ImageConv sees images of 3 x {self.side} x {self.side} numbers; got '
        f'vectors of {features.shape[-1]}'
      )
    check_range(f'[1, {(self.side + 1) // 2}]', taps=self.taps)
    image = features.reshape(len(features), 3, self.side, self.side)
    x = _windows(jnp.moveaxis(image, 1, -1), self.taps)
    x = jnp.square(_dense(self.channels, self.dtype, 'hidden')(x))
    # The mean over places of a linear map of windows is the map of their mean.
    x = _windows(x, self.taps).mean((1, 2))
    return _dense(self.num_outputs, self.dtype, 'head', use_bias=True)(x)


def _windows(x, taps):
  """[B, H, W, C] -> [B, H - taps + 1, W - taps + 1, taps * taps * C]."""
  height, width = x.shape[1] - taps + 1, x.shape[2] - taps + 1
  return jnp.concatenate(
    [
      x[:, i : i + height, j : j + width]
      for i in range(taps)
      for j in range(taps)
    ],
    -1,
  )


def _dense(width, dtype, name, *, use_bias=False):
  return nn.Dense(
    width,
    use_bias=use_bias,
    kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
    dtype=dtype,
    name=name,
  )


def _activation(name):
  check_choice('activation', name, tuple(_ACTIVATIONS))
  return _ACTIVATIONS[name]
