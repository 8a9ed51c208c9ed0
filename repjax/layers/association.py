"""Device code: attention that also says how far every position looks.

Xu, Wu, Wang and Long, 'Anomaly Transformer: Time Series Anomaly Detection with
Association Discrepancy', ICLR 2022. https://arxiv.org/abs/2110.02642
"""

import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError

# PyTorch's initial kernels, U(-1 / sqrt(fan in), 1 / sqrt(fan in)): those of
# the authors' code, on which it depends how wide a fresh prior is.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

# Added to probabilities inside of the logarithms (authors' code, `my_kl_loss`).
SMOOTHING = 1e-4


class Scaling(NamedTuple):
  """How a projection becomes a width: base^(sigmoid(s x) + offset) - 1.

  The paper has none of it (eq. 1: a learnable scale). With the numbers of the
  authors' code widths lie between 1.1e-5 and 2.00004: a prior reaches a few
  steps, never further, whatever is learnt.

  Attributes:
    sharpness: s.
    base: Greater than 1; base - 1 is the largest width, nearly.
    offset: Keeps widths above 0.
  """

  sharpness: float = 5.0
  base: float = 3.0
  offset: float = 1e-5


PUBLISHED = Scaling()


class Associations(NamedTuple):
  """What positions are associated with; rows sum to 1.

  Attributes:
    prior: Of the distance alone, [B, H, L, L] float32.
    series: Weights of attention, [B, H, L, L] float32.
    sigma: Widths of the prior, [B, H, L] float32.
  """

  prior: jax.Array
  series: jax.Array
  sigma: jax.Array


def widths(raw: jax.Array, scaling: Scaling = PUBLISHED) -> jax.Array:
  """Widths sigma > 0 of the prior, of any numbers of the same shape."""
  exponent = nn.sigmoid(scaling.sharpness * raw) + scaling.offset
  # 3^x - 1 by expm1: near 0 the difference would lose all digits.
  return jnp.expm1(exponent * jnp.log(scaling.base))


def prior_association(sigma: jax.Array) -> jax.Array:
  """Gaussians of the distance |i - j|, rescaled to rows that sum to 1 (eq. 2).

  A softmax of -|i - j|^2 / (2 sigma_i^2) is that rescaled Gaussian, and of a
  width towards 0 it is a row of the identity, where the quotient of the
  authors' code is 0 / 0. https://arxiv.org/abs/2110.02642

  Args:
    sigma: One width a position, [..., L].

  Returns:
    [..., L, L].
  """
  # Half precision has no places beyond 256, and no square of a small width.
  sigma = sigma.astype(jnp.promote_types(sigma.dtype, jnp.float32))
  place = jnp.arange(sigma.shape[-1], dtype=sigma.dtype)
  squares = jnp.square(place[:, None] - place[None, :])
  squares = jnp.expand_dims(squares, tuple(range(sigma.ndim - 1)))
  return jax.nn.softmax(-squares / (2 * jnp.square(sigma[..., None])))


def discrepancy(prior: jax.Array, series: jax.Array) -> jax.Array:
  """Association discrepancy of one layer (eq. 4), averaged over heads.

  KL(prior, series) + KL(series, prior) of each position's rows, both smoothed
  as in the authors' code, so that it is at most 2 log(1 + 1 / SMOOTHING).
  https://arxiv.org/abs/2110.02642

  Args:
    prior: [B, H, L, L].
    series: [B, H, L, L].

  Returns:
    [B, L].
  """
  # Of both logarithms the sum of both divergences needs the difference only.
  ratio = jnp.log(prior + SMOOTHING) - jnp.log(series + SMOOTHING)
  return ((prior - series) * ratio).sum(-1).mean(1)


class AnomalyAttention(nn.Module):
  """Multi-head attention beside a prior of the same heads (sec. 3.1).

  https://arxiv.org/abs/2110.02642. Only the series association mixes values:
  the prior is there to be compared with it.

  Attributes:
    num_heads: H, a divisor of the tokens' width.
    dropout_rate: Dropout on the weights that mix values, not on those that are
      returned (in the authors' code on both; all published rates are 0).
    scaling: Of widths.
    dtype: Type of the projections; None infers it from input and parameters.
      Associations are float32 in any case.
    param_dtype: Type of the parameters.
  """

  num_heads: int
  _: dataclasses.KW_ONLY
  dropout_rate: float = 0.0
  scaling: Scaling = PUBLISHED
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool
  ) -> tuple[jax.Array, Associations]:
    """[B, L, D] -> ([B, L, D], associations).

    Raises:
      InputError: The width is no multiple of `num_heads`.
    """
    dim = tokens.shape[-1]
    if self.num_heads < 1 or dim % self.num_heads:
      raise InputError(
        f'hidden_dim must be a multiple of num_heads, got hidden_dim={dim}, '
        f'{self.num_heads=}'
      )
    dense = functools.partial(
      nn.DenseGeneral,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    heads = (self.num_heads, dim // self.num_heads)
    query = dense(heads, name='query')(tokens)  # [B, L, H, D / H]
    key = dense(heads, name='key')(tokens)
    value = dense(heads, name='value')(tokens)
    raw = dense(self.num_heads, name='sigma')(tokens)  # [B, L, H]

    scores = jnp.einsum(
      'blhd,bshd->bhls',
      query * query.shape[-1] ** -0.5,
      key,
      preferred_element_type=jnp.float32,
    )
    series = jax.nn.softmax(scores)
    sigma = widths(raw.astype(jnp.float32).swapaxes(1, 2), self.scaling)
    weights = nn.Dropout(
      self.dropout_rate, deterministic=not train, name='dropout'
    )(series)
    mixed = jnp.einsum('bhls,bshd->blhd', weights.astype(value.dtype), value)
    output = dense(dim, axis=(-2, -1), name='out')(mixed)
    return output, Associations(prior_association(sigma), series, sigma)
