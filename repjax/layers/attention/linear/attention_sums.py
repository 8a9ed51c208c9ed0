"""Device code: the sums over keys that linear attention is made of.

Weights w are kept as logarithms, and sums in units of their largest weight so
far: neither scales of features nor gates can overflow them, or drown the first
keys. Sums are float32 whatever the inputs are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The logarithm of nothing. Finite: a difference of two is a number.
EMPTY = -1e30


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
    jnp.einsum('...tm,...mv->...tv', q, state.values, precision=precision),
    jnp.einsum('...tm,...m->...t', q, state.features, precision=precision),
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
    + jnp.einsum(
      '...sm,...sv->...mv', k, value * weights[..., None], precision=precision
    ),
    carried[..., None] * state.features
    + jnp.einsum('...sm,...s->...m', k, weights, precision=precision),
    carried * state.weight + weights.sum(-1),
    unit if faded is None else unit + faded,
  )
