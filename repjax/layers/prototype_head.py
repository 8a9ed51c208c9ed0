"""Device code: the head that self-distillation compares views with.

Caron et al., 'Emerging Properties in Self-Supervised Vision Transformers',
ICCV 2021, appendix C (https://arxiv.org/abs/2104.14294): an MLP, unit norm, and
products with unit prototypes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class PrototypeHead(nn.Module):
  """Features to logits of prototypes; linear from the bottleneck on.

  Layers are `hidden_0`, ..., `bottleneck`, and the parameter `prototypes`.

  Attributes:
    num_prototypes: K.
    hidden_dim: Width of the hidden layers.
    num_hidden: Number of them, >= 0.
    dim: D, width of the bottleneck.
    learn_norm: Whether the prototypes' norms are learned, too (`scale`); 1
      else.
    dtype: Type of the computation; None infers it from input and parameters.
      The norm and the logits are float32 in any case.
  """

  num_prototypes: int
  hidden_dim: int = 2048
  num_hidden: int = 2
  dim: int = 256
  learn_norm: bool = False
  dtype: Any = None

  def setup(self):
    check_range('[2, inf)', num_prototypes=self.num_prototypes)
    check_range('[1, inf)', hidden_dim=self.hidden_dim, dim=self.dim)
    check_range('[0, inf)', num_hidden=self.num_hidden)
    # The authors' bounds of +-2 are those of values, and cut nothing.
    init = nn.initializers.normal(0.02)
    self.hidden = [
      nn.Dense(self.hidden_dim, kernel_init=init, dtype=self.dtype)
      for _ in range(self.num_hidden)
    ]
    self.bottleneck = nn.Dense(self.dim, kernel_init=init, dtype=self.dtype)
    self.prototypes = self.param(
      'prototypes',
      nn.initializers.lecun_normal(),
      (self.dim, self.num_prototypes),
    )
    if self.learn_norm:
      self.scale = self.param(
        'scale', nn.initializers.ones, (self.num_prototypes,)
      )

  def __call__(self, features: jax.Array) -> jax.Array:
    """[..., C] -> logits [..., K], float32."""
    return self.embed(features) @ self.kernel()

  def embed(self, features: jax.Array) -> jax.Array:
    """Unit vectors that the prototypes are compared with, [..., D] float32."""
    for layer in self.hidden:
      features = nn.gelu(layer(features), approximate=False)
    x = self.bottleneck(features).astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

  def kernel(self) -> jax.Array:
    """Prototypes as columns, [D, K] float32."""
    columns = jnp.asarray(self.prototypes, jnp.float32)
    square = jnp.square(columns).sum(0, keepdims=True)
    columns = columns * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    return columns * self.scale[None] if self.learn_norm else columns
