"""Device code: exact attention."""

import flax.linen as nn
from flax.linen import dtypes
import jax
import jax.numpy as jnp


def softmax_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  broadcast_dropout: bool = True,
  dropout_rng: jax.Array | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: jnp.dtype | None = None,
  precision: jax.lax.PrecisionLike = None,
  module: nn.Module | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al., 2017, eq. 1).

  Stands in for `nn.dot_product_attention`, also as the `attention_fn` of
  `nn.MultiHeadDotProductAttention`. Two things differ: scores and their softmax
  are float32 whatever the inputs are, and heads are moved in front of positions
  once, behind a barrier. Without it XLA:CPU picks a layout for each of the six
  products of a training step, and copies its operands for each.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D].
    value: [..., K, H, V].
    bias: Added to the scores; broadcast to [..., H, Q, K].
    mask: Where a query may look, bool; broadcast to [..., H, Q, K]. A query
      that may look nowhere sees the mean of all values.
    broadcast_dropout: Whether all batch rows and heads drop the same pairs.
    dropout_rng: Key for dropout; needed where it applies.
    dropout_rate: Probability that a weight is dropped, in [0, 1).
    deterministic: Whether to leave dropout out.
    dtype: Type of the products; None infers it from the inputs.
    precision: Of the products; see `jax.lax.Precision`.
    module: Sows the weights [..., H, Q, K], before dropout, in its
      'intermediates' as 'attention_weights'.

  Returns:
    [..., Q, H, V].
  """
  query, key, value = dtypes.promote_dtype(query, key, value, dtype=dtype)
  query = query * query.shape[-1] ** -0.5
  query, key, value = jax.lax.optimization_barrier(
    tuple(x.swapaxes(-3, -2) for x in (query, key, value))
  )  # [..., H, L, D]
  scores = jnp.einsum(
    '...qd,...kd->...qk',
    query,
    key,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  weights = jax.nn.softmax(scores)
  if module is not None:
    module.sow('intermediates', 'attention_weights', weights)
  if dropout_rate > 0 and not deterministic:
    shape = weights.shape
    if broadcast_dropout:
      shape = (1,) * (len(shape) - 2) + shape[-2:]
    keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, shape)
    weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
  output = jnp.einsum(
    '...qk,...kd->...qd',
    weights.astype(value.dtype),
    value,
    precision=precision,
  )
  return output.swapaxes(-3, -2)
