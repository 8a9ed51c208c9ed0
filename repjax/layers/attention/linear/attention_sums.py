"""Device code: the sums over keys that linear attention is made of.

Weights w are kept as logarithms, and sums in units of their largest weight so
far: neither scales of features nor gates can overflow them, or drown the first
keys. Sums are float32 whatever inputs and features are.

A state that goes from one chunk to the next makes an accelerator wait for every
chunk. Sums are associative: each chunk's own state is made by itself, and a
prefix sum over them gives what stands before each, in log T steps. With gates
it is the prefix sum of a linear recurrence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The logarithm of nothing. Finite: a difference of two is a number.
EMPTY = -1e30

# What the features, scores and states of a group may take, in bytes.
GROUP_BYTES = 2**30


class State(NamedTuple):
  """Sums over the keys seen so far, in units of exp(log_scale).

  Attributes:
    values: Sum of w f(k) v, [..., H, M, V].
    features: Sum of w f(k), [..., H, M].
    weight: Sum of w, [..., H].
    log_scale: [..., H].
  """

  values: jax.Array
  features: jax.Array
  weight: jax.Array
  log_scale: jax.Array


class Totals(NamedTuple):
  """Sums that a query sees, in units of exp(log_scale).

  Attributes:
    numerator: Sum of w (f(q) . f(k)) v, [..., Q, H, V].
    denominator: Sum of w (f(q) . f(k)), [..., Q, H].
    weight: Sum of w, [..., Q, H]; 0 where there is no key to see.
    log_scale: [..., Q, H].
  """

  numerator: jax.Array
  denominator: jax.Array
  weight: jax.Array
  log_scale: jax.Array


def empty_state(
  batch: tuple[int, ...], num_heads: int, num_features: int, value_dim: int
) -> State:
  """The state before the first key; each leaf begins with `batch`."""
  return State(
    values=jnp.zeros((*batch, num_heads, num_features, value_dim)),
    features=jnp.zeros((*batch, num_heads, num_features)),
    weight=jnp.zeros((*batch, num_heads)),
    log_scale=jnp.full((*batch, num_heads), EMPTY),
  )


def divide(totals: Totals, *, floor: float) -> jax.Array:
  """Outputs [..., Q, H, V]; 0 where a query sees no key.

  Args:
    totals: What a query sees.
    floor: Denominators are kept this far from 0, per unit of weight, on the
      side that they are on: they are a mean of kernel values.
  """
  bound = jax.lax.stop_gradient(floor * totals.weight)
  away = jnp.where(totals.denominator < 0, -bound, bound)
  safe = jnp.abs(totals.denominator) > bound
  denominator = jnp.where(safe, totals.denominator, away)
  denominator = jnp.where(totals.weight > 0, denominator, 1.0)
  return totals.numerator / denominator[..., None]


def weigh(
  logs: jax.Array, past: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Brings old and new weights to one unit, the largest of them.

  Args:
    logs: Logarithms of new weights, [..., C]; EMPTY for none.
    past: The unit of the old ones as a logarithm, [...].

  Returns:
    (new weights in the new unit, [..., C]; what the old ones are multiplied by;
    the new unit as a logarithm). The unit cancels where sums are divided.
  """
  unit = jax.lax.stop_gradient(jnp.maximum(past, logs.max(-1)))
  weights = jnp.where(logs > EMPTY, jnp.exp(logs - unit[..., None]), 0.0)
  return weights, jnp.exp(past - unit), unit


def look(
  q: jax.Array, state: State, *, precision: jax.lax.PrecisionLike = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(numerator, denominator, weight) of queries' features over a state.

  Args:
    q: [..., H, C, M].
    state: Of [..., H].
    precision: Of the products.
  """
  return (
    _product('...tm,...mv->...tv', q, state.values, precision),
    _product('...tm,...m->...t', q, state.features, precision),
    jnp.broadcast_to(state.weight[..., None], q.shape[:-1]),
  )


def absorb(
  state: State,
  k: jax.Array,
  value: jax.Array,
  *,
  logs: jax.Array | None,
  counts: jax.Array,
  keep: jax.Array | None = None,
  faded: jax.Array | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> State:
  """The state after a chunk's keys.

  Args:
    state: Before.
    k: Features of the keys, [..., H, C, M].
    value: [..., H, C, V].
    logs: log w of each key, [..., H, C]; None for w = 1.
    counts: 1 for keys that there are, 0 for others, [..., 1, C].
    keep: Whether the state before counts at all, [..., 1]; None for yes.
    faded: What all w are multiplied by at the end, as a logarithm, [..., H].
    precision: Of the products.
  """
  if logs is None:
    weights = jnp.broadcast_to(counts, k.shape[:-1])
    carried = jnp.ones(state.log_scale.shape)
    unit = jnp.zeros_like(state.log_scale)
  else:
    logs = jnp.where(counts > 0, logs, EMPTY)
    past = state.log_scale
    if keep is not None:
      past = jnp.where(keep, past, EMPTY)
    weights, carried, unit = weigh(logs, past)
  if keep is not None:
    carried = jnp.where(keep, carried, 0.0)
  return State(
    carried[..., None, None] * state.values
    + _product('...sm,...sv->...mv', k, value * weights[..., None], precision),
    carried[..., None] * state.features
    + _product('...sm,...s->...m', k, weights, precision),
    carried * state.weight + weights.sum(-1),
    unit if faded is None else unit + faded,
  )


def _product(sums, features, x, precision):
  """Sums of products in the type of features; those in half are float32."""
  if features.dtype == jnp.bfloat16:
    return jnp.einsum(
      sums,
      features,
      x.astype(jnp.bfloat16),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
  return jnp.einsum(sums, features, x, precision=precision)


class Part(NamedTuple):
  """What one chunk, or several in a row, do to the state before them.

  Attributes:
    state: Of their own keys, after what they fade.
    faded: Logarithm of what they multiply all w before them by, [..., H]; None
      for nothing.
    keep: Whether the state before them goes on, [..., 1]; None for yes.
  """

  state: State
  faded: jax.Array | None = None
  keep: jax.Array | None = None


def before_each(
  start: State, parts: Part, *, weighted: bool
) -> tuple[State, State]:
  """(the states before G chunks, [G, ...]; the state after the last).

  Args:
    start: The state before the first.
    parts: Of the chunks, each leaf [G, ...].
    weighted: Whether keys have weights; else all log_scale are 0, or EMPTY of a
      state without keys.
  """
  first = Part(
    start,
    None if parts.faded is None else jnp.zeros_like(parts.faded[0]),
    None if parts.keep is None else jnp.ones_like(parts.keep[0]),
  )
  parts = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, parts)

  def join(left, right):
    return _join(left, right, weighted=weighted)

  states = jax.lax.associative_scan(join, parts).state
  return (
    jax.tree.map(lambda x: x[:-1], states),
    jax.tree.map(lambda x: x[-1], states),
  )


def _join(left, right, *, weighted):
  """Two parts, one after the other, as one."""
  faded, keep = left.faded, left.keep
  past = left.state.log_scale
  if right.faded is not None:
    past, faded = past + right.faded, left.faded + right.faded
  if right.keep is not None:
    past = jnp.where(right.keep, past, EMPTY)
    keep = left.keep & right.keep
  if weighted:
    unit = jnp.maximum(past, right.state.log_scale)
    unit = jax.lax.stop_gradient(unit)
    old, new = jnp.exp(past - unit), jnp.exp(right.state.log_scale - unit)
  else:
    old, new = jnp.ones_like(past), jnp.ones_like(past)
    unit = jnp.zeros_like(past)
  if right.keep is not None:
    old = jnp.where(right.keep, old, 0.0)

  def add(x, y):
    extra = (1,) * (x.ndim - old.ndim)
    a, b = (w.reshape(*w.shape, *extra) for w in (old, new))
    return a * x + b * y

  sums = zip(left.state[:3], right.state[:3], strict=True)
  state = State(*(add(x, y) for x, y in sums), unit)
  return Part(state, faded, keep)


def group_size(
  num_chunks: int,
  *,
  rows: int,
  chunk_size: int,
  num_features: int,
  value_dim: int,
) -> int:
  """Chunks whose states are made at once: as many as `GROUP_BYTES` hold.

  One on CPUs, where a chunk keeps all cores busy and stays in their cache: all
  at once took two cores 1.2 to 3 times as long from 4,096 positions on.

  Args:
    num_chunks: T of them.
    rows: Batch times heads.
    chunk_size: C.
    num_features: M.
    value_dim: V.
  """
  if jax.default_backend() == 'cpu':
    return 1
  numbers = chunk_size * (2 * num_features + chunk_size)
  # Each chunk's own, those before it, and one of the steps between.
  numbers += 3 * num_features * value_dim
  most = max(1, GROUP_BYTES // (4 * rows * numbers))
  groups = -(-num_chunks // most)
  return -(-num_chunks // groups)
