"""Device code: attention in linear time, given feature maps.

With features f, attention is a ratio of two sums over keys,

  output_t = sum_s w_s (f(q_t) . f(k_s)) v_s / sum_s w_s (f(q_t) . f(k_s)),

and both sums are products of f(q_t) with something of constant size, a `State`.
`summarize` and `read` are the bidirectional form and that of cross attention,
`causal` lets a query see the keys up to its own, `segmented` those of its own
segment. They return `Totals`, which `attention_sums.divide` turns into outputs.

Weights w_s carry the scales of features and the gates of recurrent forms, see
`attention_sums`. Nothing of size L x M is held beyond one chunk: features are
made chunk by chunk, and made again in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import chunks
from repjax.layers.attention.linear import random_features

# The causal form has products of all pairs inside a chunk. The others have
# none, large products are faster, and short sequences are then one chunk.
CHUNK_SIZE, CAUSAL_CHUNK_SIZE = 1024, 128


def summarize(
  key: jax.Array,
  value: jax.Array,
  *,
  key_map: random_features.FeatureMap = random_features.identity,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> attention_sums.State:
  """All keys and values in a state that any number of queries can `read`.

  Args:
    key: [..., K, H, D].
    value: [..., K, H, V].
    key_map: [..., H, C, D] -> features.
    mask: Which keys there are, [..., K] bool; None for all.
    chunk_size: Keys whose features are held at a time; None is 1,024.
    precision: Of the sums' products; see `jax.lax.Precision`.
  """
  size = _or(chunk_size, CHUNK_SIZE)
  inputs = chunks.cut(size, None, key, value, mask=mask)

  def add(state, chunk):
    features = key_map(chunk.key)
    state = attention_sums.absorb(
      state,
      features.values,
      chunk.value,
      logs=features.log_scale,
      counts=chunk.real,
      precision=precision,
    )
    return state, None

  return chunks.scan(add, _start(key_map, inputs), inputs)[0]


def read(
  query: jax.Array,
  state: attention_sums.State,
  *,
  query_map: random_features.FeatureMap = random_features.identity,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> attention_sums.Totals:
  """What queries [..., Q, H, D] see where all keys are in `state`.

  Other arguments as in `summarize`.
  """
  length = query.shape[-3]

  def look(_, chunk):
    return None, attention_sums.look(
      query_map(chunk).values, state, precision=precision
    )

  size = chunks.chunk_length(length, _or(chunk_size, CHUNK_SIZE))
  inputs = chunks.split(chunks.wide(query), size)
  totals = chunks.scan(look, None, inputs)[1]
  return _join_totals(
    attention_sums.Totals(*totals, state.log_scale[..., None]), length
  )


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
  precision: jax.lax.PrecisionLike = None,
) -> tuple[attention_sums.Totals, attention_sums.State]:
  """A query sees the keys of its own position and before.

  Matrix products inside a chunk, a state from one to the next. Inside a chunk
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
    chunk_size: C, None is 128. Products take L C (M + V) + 2 L M V
      multiplications, and the backward pass holds a state a chunk, L M V / C
      numbers.
    precision: Of the sums' products; see `jax.lax.Precision`.

  Returns:
    (`Totals`, the state after the last key).

  Raises:
    ValueError: `segments` come together with `state`.
  """
  if segments is not None and state is not None:
    raise ValueError('Segments start from nothing: pass segments or a state')
  length = key.shape[-3]
  inputs = chunks.cut(
    _or(chunk_size, CAUSAL_CHUNK_SIZE),
    query,
    key,
    value,
    mask=mask,
    segments=segments,
    log_weight=log_weight,
    log_decay=log_decay,
  )
  size = inputs.key.shape[-2]
  before = jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)
  before = jnp.expand_dims(before, tuple(range(inputs.key.ndim - 3)))

  def advance(carry, chunk):
    state, last_segment = carry
    q = query_map(chunk.query).values
    k, logs = key_map(chunk.key)
    logs = _sum(logs, chunk.log_weight)
    faded = chunk.log_decay
    if faded is not None:
      faded = jnp.cumsum(faded, axis=-1)
      logs = _sum(logs, -faded)
    sees, counts, goes_on, stays = before, chunk.real, None, None
    if chunk.segments is not None:
      ids = chunk.segments
      sees = sees & (ids[..., :, None] == ids[..., None, :])
      goes_on = ids == last_segment[..., None]
      stays = goes_on[..., -1]
      counts = counts * (ids == ids[..., -1:])
      last_segment = ids[..., -1]
    totals = _pairs(state, q, k, chunk, logs, sees, goes_on, faded, precision)
    state = attention_sums.absorb(
      state,
      k,
      chunk.value,
      logs=logs,
      counts=counts,
      keep=stays,
      faded=None if faded is None else faded[..., -1],
      precision=precision,
    )
    return (state, last_segment), totals

  if state is None:
    state = _start(key_map, inputs)
  else:
    state = jax.lax.stop_gradient(state)
  last_segment = (
    None
    if segments is None
    else jnp.full(inputs.segments.shape[1:-1], -2, jnp.int32)
  )
  (state, _), totals = chunks.scan(advance, (state, last_segment), inputs)
  return _join_totals(totals, length), state


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


# Inside a chunk: everything is [..., H, C, ...].


def _pairs(state, q, k, chunk, logs, sees, goes_on, faded, precision):
  """Totals of a chunk's queries over the state and the chunk's keys."""
  real = chunk.real[..., None, :]
  scores = jnp.einsum('...tm,...sm->...ts', q, k, precision=precision)
  if logs is None:
    weights = jnp.where(sees, real, 0.0)
    carried = jnp.ones(scores.shape[:-1])
    unit = jnp.zeros(scores.shape[:-1], scores.dtype)
  else:
    logs = jnp.where(
      sees & (real > 0), logs[..., None, :], attention_sums.EMPTY
    )
    past = state.log_scale[..., None]
    if goes_on is not None:
      past = jnp.where(goes_on, past, attention_sums.EMPTY)
    weights, carried, unit = attention_sums.weigh(logs, past)
  if goes_on is not None:
    carried = jnp.where(goes_on, carried, 0.0)
  scores = scores * weights
  numerator, denominator, weight = attention_sums.look(
    q, state, precision=precision
  )
  return attention_sums.Totals(
    carried[..., None] * numerator
    + jnp.einsum(
      '...ts,...sv->...tv', scores, chunk.value, precision=precision
    ),
    carried * denominator + scores.sum(-1),
    carried * weight + weights.sum(-1),
    unit if faded is None else unit + faded,
  )


def _join_totals(totals, length):
  def join(x):
    x = jnp.broadcast_to(x, totals.denominator.shape)
    return chunks.join(x[..., None], length)[..., 0]

  return attention_sums.Totals(
    chunks.join(totals.numerator, length), *(join(x) for x in totals[1:])
  )


def _start(key_map, inputs):
  """The empty state for these inputs."""
  key = jax.eval_shape(lambda x: key_map(x).values, inputs.key[0])
  *batch, num_heads, _, num_features = key.shape
  return jax.tree.map(
    lambda x: x.astype(inputs.value.dtype),
    attention_sums.empty_state(
      tuple(batch), num_heads, num_features, inputs.value.shape[-1]
    ),
  )


def _or(chunk_size, default):
  return default if chunk_size is None else chunk_size


def _sum(a, b):
  """Sum of logarithms where None is 0."""
  if a is None or b is None:
    return b if a is None else a
  return a + b
