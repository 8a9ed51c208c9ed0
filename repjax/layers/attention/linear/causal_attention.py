"""Device code: attention in linear time to the keys before a query.

What `linear_attention` says of sums and their weights holds here, too.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import chunks
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import random_features

# Products of all pairs inside a chunk take time: small ones, unless many are
# computed at once and larger products are faster.
CHUNK_SIZE, LARGE_CHUNK_SIZE = 128, 256


def causal(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  query_map: random_features.FeatureMap = random_features.identity,
  key_map: random_features.FeatureMap = random_features.identity,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  log_weight: jax.Array | None = None,
  log_decay: jax.Array | None = None,
  state: attention_sums.State | None = None,
  strict: bool = False,
  chunk_size: int | None = None,
  group_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> tuple[attention_sums.Totals, attention_sums.State]:
  """A query sees the keys of its own position and before.

  Matrix products inside a chunk, a state from one to the next; or, of a group
  of chunks, all products at once and a prefix sum of states. Inside a chunk
  each pair has a weight of its own, exp(log w_s - log of the largest w that
  query t sees): no later key can change or drown an output.

  Args:
    query: [..., L, H, D].
    key: [..., L, H, D].
    value: [..., L, H, V].
    query_map: [..., H, C, D] -> features; their scale cancels.
    key_map: As `query_map`; its scale is part of w.
    mask: Which keys there are, [..., L] bool; None for all. What is not there
      neither counts nor decays.
    segments: Ids, [..., L] int32 >= 0, of segments that lie side by side: a
      query sees its own alone. Not with `state`.
    log_weight: Added to log w_s, [..., L, H].
    log_decay: What position t multiplies all earlier keys' w by, as a
      logarithm, [..., L, H], <= 0.
    state: What came before; no gradient flows into it.
    strict: Whether a query does not see the key of its own position.
    chunk_size: C, None is 128 on CPUs and 256 elsewhere. Products take
      L C (M + V) + 2 L M V multiplications, and the backward pass holds a state
      a chunk, L M V / C numbers, or, of a group, its features, too.
    group_size: Chunks of a group; None is `attention_sums.group_size`.
    precision: Of the sums' products; see `jax.lax.Precision`.

  Returns:
    (`Totals`, the state after the last key).

  Raises:
    ValueError: `segments` come together with `state`.
  """
  if segments is not None and state is not None:
    raise ValueError('Segments start from nothing: pass segments or a state')
  length = key.shape[-3]
  if chunk_size is None:
    on_cpu = jax.default_backend() == 'cpu'
    chunk_size = CHUNK_SIZE if on_cpu else LARGE_CHUNK_SIZE
  inputs = chunks.cut(
    chunk_size,
    query,
    key,
    value,
    mask=mask,
    segments=segments,
    log_weight=log_weight,
    log_decay=log_decay,
  )
  if state is None:
    state = linear_attention.start(key_map, inputs)
  else:
    state = jax.lax.stop_gradient(state)
  last_segment = (
    None
    if inputs.segments is None
    else jnp.full(inputs.segments.shape[1:-1], -2, jnp.int32)
  )
  size = inputs.key.shape[-2]
  before = jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)

  def seen(chunk, last_segment):
    return _seen(chunk, last_segment, before, query_map, key_map)

  def advance(carry, chunk):
    state, last_segment = carry
    own = seen(chunk, last_segment)
    totals = _pairs(state, own, chunk, precision)
    state = _absorb(state, own, chunk, precision)
    return (state, own.last_segment), totals

  def advance_group(carry, group):
    state, last_segment = carry
    lasts = None
    if last_segment is not None:
      lasts = jnp.concatenate(
        [last_segment[None], group.segments[:-1, ..., -1]]
      )
      last_segment = group.segments[-1, ..., -1]
    own = seen(group, lasts)
    empty = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (group.key.shape[0], *x.shape)),
      linear_attention.start(key_map, inputs),
    )
    parts = attention_sums.Part(
      _absorb(empty, own, group, precision),
      None if own.faded is None else own.faded[..., -1],
      own.stays,
    )
    befores, state = attention_sums.before_each(
      state, parts, weighted=own.logs is not None
    )
    return (state, last_segment), _pairs(befores, own, group, precision)

  together = group_size
  if together is None:
    together = attention_sums.group_size(
      inputs.key.shape[0],
      rows=math.prod(inputs.key.shape[1:-2]),
      chunk_size=size,
      num_features=state.features.shape[-1],
      value_dim=inputs.value.shape[-1],
    )
  carry = state, last_segment
  if together == 1:
    (state, _), totals = chunks.scan(advance, carry, inputs)
  else:
    groups = chunks.grouped(inputs, together)
    (state, _), totals = chunks.scan(advance_group, carry, groups)
    totals = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), totals)
  return linear_attention.join_totals(totals, length), state


def segmented(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  segments: jax.Array,
  mask: jax.Array | None = None,
  **settings,
) -> attention_sums.Totals:
  """A query sees all keys of its own segment, before and after itself.

  Two causal passes, the second from the end and without a query's own key.
  Arguments are those of `causal`.
  """
  left, _ = causal(query, key, value, segments=segments, mask=mask, **settings)
  right, _ = causal(
    *(jnp.flip(x, -3) for x in (query, key, value)),
    segments=jnp.flip(segments, -1),
    mask=None if mask is None else jnp.flip(mask, -1),
    strict=True,
    **settings,
  )
  right = attention_sums.Totals(
    jnp.flip(right.numerator, -3), *(jnp.flip(x, -2) for x in right[1:])
  )
  unit = jnp.maximum(left.log_scale, right.log_scale)
  a, b = jnp.exp(left.log_scale - unit), jnp.exp(right.log_scale - unit)
  return attention_sums.Totals(
    left.numerator * a[..., None] + right.numerator * b[..., None],
    left.denominator * a + right.denominator * b,
    left.weight * a + right.weight * b,
    unit,
  )


# Inside a chunk: everything is [..., H, C, ...].


class _Seen(NamedTuple):
  """Features of a chunk, and who sees whom.

  Attributes:
    q: Features of the queries.
    k: Features of the keys.
    logs: log w of the keys, or None.
    faded: Sums of log_decay up to each position, or None.
    sees: Whether a query sees a key of the chunk, [..., C, C].
    counts: 1 for keys that the state after the chunk is of, [..., 1, C].
    goes_on: Whether a query sees the state before, [..., 1, C]; None for yes.
    stays: Whether the state goes on behind the chunk, [..., 1]; None for yes.
    last_segment: Of the last position, [..., 1], or None.
  """

  q: jax.Array
  k: jax.Array
  logs: jax.Array | None
  faded: jax.Array | None
  sees: jax.Array
  counts: jax.Array
  goes_on: jax.Array | None
  stays: jax.Array | None
  last_segment: jax.Array | None


def _seen(chunk, last_segment, before, query_map, key_map):
  q = query_map(chunk.query).values
  k, logs = key_map(chunk.key)
  logs = _sum(logs, chunk.log_weight)
  faded = chunk.log_decay
  if faded is not None:
    faded = jnp.cumsum(faded, axis=-1)
    logs = _sum(logs, -faded)
  sees = jnp.expand_dims(before, tuple(range(chunk.key.ndim - 2)))
  if chunk.segments is None:
    none = None, None, None
    return _Seen(q, k, logs, faded, sees, chunk.real, *none)
  ids = chunk.segments
  goes_on = ids == last_segment[..., None]
  return _Seen(
    q,
    k,
    logs,
    faded,
    sees & (ids[..., :, None] == ids[..., None, :]),
    chunk.real * (ids == ids[..., -1:]),
    goes_on,
    goes_on[..., -1],
    ids[..., -1],
  )


def _absorb(state, own, chunk, precision):
  """The state after a chunk."""
  return attention_sums.absorb(
    state,
    own.k,
    chunk.value,
    logs=own.logs,
    counts=own.counts,
    keep=own.stays,
    faded=None if own.faded is None else own.faded[..., -1],
    precision=precision,
  )


def _pairs(state, own, chunk, precision):
  """Totals of a chunk's queries over the state and the chunk's keys."""
  real = chunk.real[..., None, :]
  scores = jnp.einsum('...tm,...sm->...ts', own.q, own.k, precision=precision)
  goes_on = own.goes_on
  if own.logs is None:
    weights = jnp.where(own.sees, real, 0.0)
    carried = jnp.ones(scores.shape[:-1])
    unit = jnp.zeros(scores.shape[:-1], scores.dtype)
  else:
    logs = jnp.where(
      own.sees & (real > 0), own.logs[..., None, :], attention_sums.EMPTY
    )
    past = state.log_scale[..., None]
    if goes_on is not None:
      past = jnp.where(goes_on, past, attention_sums.EMPTY)
    weights, carried, unit = attention_sums.weigh(logs, past)
  if goes_on is not None:
    carried = jnp.where(goes_on, carried, 0.0)
  scores = scores * weights
  numerator, denominator, weight = attention_sums.look(
    own.q, state, precision=precision
  )
  return attention_sums.Totals(
    carried[..., None] * numerator
    + jnp.einsum(
      '...ts,...sv->...tv', scores, chunk.value, precision=precision
    ),
    carried * denominator + scores.sum(-1),
    carried * weight + weights.sum(-1),
    unit if own.faded is None else unit + own.faded,
  )


def _sum(a, b):
  """Sum of logarithms where None is 0."""
  if a is None or b is None:
    return b if a is None else a
  return a + b
