"""Device code: attention in linear time, given feature maps.

With features f, attention is a ratio of two sums over keys,

  output_t = sum_s w_s (f(q_t) . f(k_s)) v_s / sum_s w_s (f(q_t) . f(k_s)),

and both sums are products of f(q_t) with something of constant size, a `State`.
`summarize` and `read` are the bidirectional form and that of cross attention;
`causal_attention` has those that see the keys up to their own, or their own
segment. They return `Totals`, which `attention_sums.divide` turns into outputs.

Weights w_s carry the scales of features and the gates of recurrent forms, see
`attention_sums`. Nothing of size L x M is held beyond one chunk, or a group of
them: features are made chunk by chunk, and made again in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import chunks
from repjax.layers.attention.linear import random_features

# Large products are faster, and short sequences are then one chunk.
CHUNK_SIZE = 1024


def summarize(
  key: jax.Array,
  value: jax.Array,
  *,
  key_map: random_features.FeatureMap = random_features.identity,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
  feature_dtype: Any = None,
) -> attention_sums.State:
  """All keys and values in a state that any number of queries can `read`.

  Args:
    key: [..., K, H, D].
    value: [..., K, H, V].
    key_map: [..., H, C, D] -> features.
    mask: Which keys there are, [..., K] bool; None for all.
    chunk_size: Keys whose features are held at a time; None is 1,024.
    precision: Of the sums' products; see `jax.lax.Precision`.
    feature_dtype: bfloat16 for features and values that are rounded to it where
      they are multiplied, for sums in float32; None rounds nothing.
  """
  size = _or(chunk_size, CHUNK_SIZE)
  inputs = chunks.cut(size, None, key, value, mask=mask)

  def add(state, chunk):
    features = key_map(chunk.key)
    state = attention_sums.absorb(
      state,
      _rounded(features.values, feature_dtype),
      chunk.value,
      logs=features.log_scale,
      counts=chunk.real,
      precision=precision,
    )
    return state, None

  return chunks.scan(add, start(key_map, inputs), inputs)[0]


def read(
  query: jax.Array,
  state: attention_sums.State,
  *,
  query_map: random_features.FeatureMap = random_features.identity,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
  feature_dtype: Any = None,
) -> attention_sums.Totals:
  """What queries [..., Q, H, D] see where all keys are in `state`.

  Other arguments as in `summarize`.
  """
  length = query.shape[-3]

  def look(_, chunk):
    features = _rounded(query_map(chunk).values, feature_dtype)
    return None, attention_sums.look(features, state, precision=precision)

  size = chunks.chunk_length(length, _or(chunk_size, CHUNK_SIZE))
  inputs = chunks.split(chunks.wide(query), size)
  numerator, denominator, weight = chunks.scan(look, None, inputs)[1]
  totals = attention_sums.Totals(
    numerator, denominator, weight, state.log_scale[..., None]
  )
  return join_totals(totals, length)


def attention_matrix(
  attention_fn: Callable[..., jax.Array], query: jax.Array, key: jax.Array
) -> jax.Array:
  """The weights that an attention gives to keys, by attending to their names.

  Args:
    attention_fn: (query, key, value) -> output, linear in its values.
    query: [..., Q, H, D].
    key: [..., K, H, D].

  Returns:
    [..., H, Q, K]. Quadratic in length: to look at, not to train with.
  """
  *batch, length, num_heads, _ = key.shape
  names = jnp.broadcast_to(
    jnp.eye(length)[:, None], (*batch, length, num_heads, length)
  )
  return attention_fn(query, key, names).swapaxes(-3, -2)


def join_totals(
  totals: attention_sums.Totals, length: int
) -> attention_sums.Totals:
  """Those of all chunks [T, ..., H, C, ...] as [..., length, H, ...]."""

  def join(x):
    x = jnp.broadcast_to(x, totals.denominator.shape)
    return chunks.join(x[..., None], length)[..., 0]

  return attention_sums.Totals(
    chunks.join(totals.numerator, length), *(join(x) for x in totals[1:])
  )


def start(
  key_map: random_features.FeatureMap, inputs: chunks.Chunks
) -> attention_sums.State:
  """The empty state for these inputs."""
  key = jax.eval_shape(lambda x: key_map(x).values, inputs.key[0])
  *batch, num_heads, _, num_features = key.shape
  return jax.tree.map(
    lambda x: x.astype(inputs.value.dtype),
    attention_sums.empty_state(
      tuple(batch), num_heads, num_features, inputs.value.shape[-1]
    ),
  )


def _rounded(features, dtype):
  return features if dtype is None else features.astype(dtype)


def _or(chunk_size, default):
  return default if chunk_size is None else chunk_size
