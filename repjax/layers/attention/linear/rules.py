"""Device code: what makes a linear attention, applied to whole sequences.

A `Rule` is all in which Performer and RFA differ.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import causal_attention
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import random_features
from repjax.types import InputError


class Rule(NamedTuple):
  """What makes one linear attention.

  Attributes:
    query_map: Queries [..., H, L, D] -> features.
    key_map: Keys [..., H, L, D] -> features.
    divide: `attention_sums.Totals` -> outputs [..., Q, H, V].
    gates: Keys [..., L, H, D] -> (log_weight, log_decay), each [..., L, H], as
      in `causal_attention.causal`; None for neither.
    positive: Whether no feature is below 0, so that sums of them cancel nothing
      and what features are rounded by is all that an output is off by.
  """

  query_map: random_features.FeatureMap
  key_map: random_features.FeatureMap
  divide: Callable[[attention_sums.Totals], jax.Array]
  gates: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None
  positive: bool = False


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rule: Rule,
  *,
  causal: bool,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
  """Applies a rule to whole sequences.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D]; K = Q where `causal` or with `segments`.
    value: [..., K, H, V].
    rule: The attention.
    causal: Whether a query sees no later keys.
    mask: Which keys there are, [..., K] bool. A query that sees no key gives 0.
    segments: Ids >= 0, [..., L] int32, of sequences packed side by side.
    chunk_size: Keys at a time, >= 1; None is 1,024, or if causal 128 on CPUs
      and 256 elsewhere.
    precision: Of the sums' products. Features are made in float32. Where all
      inputs are bfloat16, no precision is asked for and a query sees keys
      before and after it, positive ones are rounded to bfloat16 before they are
      multiplied (outputs move by 0.3 % of their root mean square, gradients by
      0.3 to 0.8 %), but on CPUs, where that saves nothing.

  Returns:
    [..., Q, H, V], in the inputs' type.

  Raises:
    InputError: Shapes do not fit.
  """
  _check(query, key, value, mask=mask, segments=segments, causal=causal)
  dtype = jnp.result_type(query, key, value)
  maps: dict[str, Any] = dict(
    query_map=rule.query_map, chunk_size=chunk_size, precision=precision
  )
  if causal:
    totals, _ = causal_attention.causal(
      query,
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      segments=segments,
      **_gates(rule, key, mask),
      **maps,
    )
  elif segments is not None:
    totals = causal_attention.segmented(
      query,
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      segments=segments,
      **maps,
    )
  else:
    maps['feature_dtype'] = _feature_dtype(rule, dtype, precision)
    state = linear_attention.summarize(
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      chunk_size=chunk_size,
      precision=precision,
      feature_dtype=maps['feature_dtype'],
    )
    totals = linear_attention.read(query, state, **maps)
  return rule.divide(totals).astype(dtype)


def attend_segment(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rule: Rule,
  state: attention_sums.State,
  *,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, attention_sums.State]:
  """Causal attention that goes on from a state: (outputs, state after).

  One call over a whole sequence, and one for each of its parts, are the same.
  No gradient flows into the state that comes in. Arguments as in `attend`.
  """
  _check(query, key, value, mask=mask, segments=None, causal=True)
  totals, state = causal_attention.causal(
    query,
    key,
    value,
    query_map=rule.query_map,
    key_map=rule.key_map,
    mask=mask,
    state=state,
    chunk_size=chunk_size,
    precision=precision,
    **_gates(rule, key, mask),
  )
  return rule.divide(totals).astype(jnp.result_type(query, key, value)), state


def check_head_dim(projection: jax.Array, head_dim: int) -> None:
  """Raises InputError unless the projection is for heads of that size."""
  if projection.shape[-1] != head_dim:
    raise InputError(
      f'the projection is for heads of size {projection.shape[-1]}, queries '
      f'and keys have {head_dim}: draw another, or change num_heads'
    )


def _feature_dtype(rule, dtype, precision):
  """bfloat16 where features may be rounded to it, else None.

  float16 ends at 6e-8, far above the smallest features.
  """
  safe = rule.positive and dtype == jnp.bfloat16 and precision is None
  return jnp.bfloat16 if safe and jax.default_backend() != 'cpu' else None


def _gates(rule, key, mask):
  if rule.gates is None:
    return {}
  if mask is not None:  # Padding may hold anything, NaN for one.
    key = jnp.where(mask[..., None, None], key, 0)
  log_weight, log_decay = rule.gates(key)
  return dict(log_weight=log_weight, log_decay=log_decay)


def _check(query, key, value, *, mask, segments, causal):
  if min(query.ndim, key.ndim, value.ndim) < 3:
    raise InputError(
      'queries, keys and values are [..., length, heads, size], got '
      f'{query.shape}, {key.shape}, {value.shape}'
    )
  if query.shape[-2:] != key.shape[-2:]:
    raise InputError(
      'queries and keys need equal heads of equal size, got [..., heads, size] '
      f'of {query.shape} and {key.shape}'
    )
  if key.shape[:-1] != value.shape[:-1] or query.shape[:-3] != key.shape[:-3]:
    raise InputError(
      'batch, length and heads of keys and values must agree, and the batch '
      f'of queries: got {query.shape}, {key.shape}, {value.shape}'
    )
  if (causal or segments is not None) and query.shape[-3] != key.shape[-3]:
    raise InputError(
      'causal attention and segments need as many queries as keys, got '
      f'{query.shape[-3]} and {key.shape[-3]}'
    )
  for name, ids in (('mask', mask), ('segments', segments)):
    if ids is None:
      continue
    fits = ids.ndim >= 1 and ids.shape[-1] == key.shape[-3]
    batch = key.shape[:-3]
    if not fits or ids.shape[:-1] not in (batch, (1,) * len(batch), ()):
      raise InputError(
        f"{name} must be [..., {key.shape[-3]}] with the keys' batch "
        f'{batch}, got {ids.shape}'
      )
