"""Device code: self-attention by distances, which is Lipschitz.

Kim, Papamakarios and Mnih, 'The Lipschitz Constant of Self-Attention', ICML
2021 (https://arxiv.org/abs/2006.04710), as ViTGAN's discriminators
have it (Lee et al., ICLR 2022, https://arxiv.org/abs/2107.04589).

| kind | score of query q and key k, over sqrt(D) | keys |
|---|---|---|
| 'l2' | -|q - k|^2 | are the queries |
| 'l2_untied' | -|q - k|^2 | of their own |
| 'l2_published' | mean(q^2) + mean(q'^2) - 2 q k, q' the key's query | own |
| 'dot' | q k | of their own |

ViTGAN prints the distance without a minus, which the theorem needs; its code
has neither the minus nor tied keys, and means of squares beside a sum of
products. Only 'l2' is Lipschitz.
"""

from typing import Literal
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import spectral_norm
from repjax.types import InputError
from repjax.types import check_choice

Kind = Literal['l2', 'l2_untied', 'l2_published', 'dot']


class SelfAttention(nn.Module):
  """Multi-head self-attention with scores of a kind and spectral norms.

  Layers are `query`, `key` where keys are their own, `value` (all without bias)
  and `out`.

  Attributes:
    num_heads: H, a divisor of the width.
    kind: Of the scores.
    norm: Spectral norm of the projections.
  """

  num_heads: int
  kind: Kind = 'l2'
  norm: spectral_norm.Kind = 'improved'

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """[B, L, D] -> [B, L, D]."""
    check_choice('attention', self.kind, get_args(Kind))
    dim = tokens.shape[-1]
    if self.num_heads < 1 or dim % self.num_heads:
      raise InputError(
        f'hidden_dim must be a multiple of num_heads, got hidden_dim={dim}, '
        f'{self.num_heads=}'
      )

    def project(name):
      made = spectral_norm.SpectralDense(
        dim, kind=self.norm, use_bias=False, name=name
      )(tokens, train=train)
      return made.reshape((*tokens.shape[:-1], self.num_heads, -1))

    query = project('query')
    key = query if self.kind == 'l2' else project('key')
    weights = jax.nn.softmax(scores(query, key, kind=self.kind))
    self.sow('intermediates', 'attention_weights', weights)
    mixed = jnp.einsum(
      '...hqk,...khd->...qhd', weights.astype(tokens.dtype), project('value')
    )
    return spectral_norm.SpectralDense(dim, kind=self.norm, name='out')(
      mixed.reshape(tokens.shape), train=train
    )


def scores(query: jax.Array, key: jax.Array, *, kind: Kind) -> jax.Array:
  """What the softmax over keys sees, float32.

  What is the same for all keys of a query is left out of 'l2' and 'l2_untied',
  since a softmax does not see it: |q|^2.

  Args:
    query: [..., L, H, D].
    key: [..., L, H, D].
    kind: Of the scores.

  Returns:
    [..., H, L, L].

  Raises:
    InputError: If there is no such kind.
  """
  check_choice('kind', kind, get_args(Kind))
  products = jnp.einsum(
    '...qhd,...khd->...hqk', query, key, preferred_element_type=jnp.float32
  )
  scale = query.shape[-1] ** -0.5
  if kind == 'dot':
    return products * scale

  def squares(x, reduce):
    total = reduce(jnp.square(x.astype(jnp.float32)), -1)  # [..., L, H]
    return total.swapaxes(-1, -2)

  if kind == 'l2_published':
    own = squares(query, jnp.mean)
    return (own[..., None] + own[..., None, :] - 2 * products) * scale
  return (2 * products - squares(key, jnp.sum)[..., None, :]) * scale
