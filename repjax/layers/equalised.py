"""Device code: dense layers whose rates are equal, as in StyleGAN.

Karras et al., 'Progressive Growing of GANs', ICLR 2018, section 4.1
(https://arxiv.org/abs/1710.10196): kernels are drawn from N(0, 1) and scaled
where they are used, so that Adam moves all of them alike.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class EqualisedDense(nn.Module):
  """y = x W c / sqrt(D) + c b, with W of unit variance at the beginning.

  Attributes:
    features: Width of the output.
    rate: c > 0, what the learning rate of this layer is multiplied with; the
      output at the beginning does not depend on it.
    bias_init: Of c b at the beginning.
  """

  features: int
  rate: float = 1.0
  bias_init: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., features]."""
    check_range('[1, inf)', features=self.features)
    check_range('(0, inf)', rate=self.rate)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      x = x.astype(jnp.float32)
    dim = x.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.normal(1 / self.rate), (dim, self.features)
    )
    bias = self.param(
      'bias',
      nn.initializers.constant(self.bias_init / self.rate),
      (self.features,),
    )
    outputs = x @ (kernel * (self.rate / math.sqrt(dim))).astype(x.dtype)
    bias = bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return outputs + (bias * self.rate).astype(x.dtype)


def leaky_relu(x: jax.Array) -> jax.Array:
  """Leaky ReLU of slope 0.2 that keeps the variance, as in StyleGAN2's code."""
  return nn.leaky_relu(x, 0.2) * math.sqrt(2)


def pixel_norm(x: jax.Array) -> jax.Array:
  """Divides by the root mean square over the last axis (section 4.2)."""
  square = jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-8).astype(x.dtype)
