"""Device code: the states before all chunks of a sequence, at once.

A state that goes from one chunk to the next makes an accelerator wait for every
chunk. Sums are associative: each chunk's own state is made by itself, and a
prefix sum over them gives what stands before each, in log T steps (Blelloch,
'Prefix Sums and Their Applications', 1990,
https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf). With gates it is the prefix sum
of a linear recurrence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums

# What the features, scores and states of a group may take, in bytes.
GROUP_BYTES = 2**30


class Part(NamedTuple):
  """What one chunk, or several in a row, do to the state before them.

  Attributes:
    state: Of their own keys, after what they fade.
    faded: Logarithm of what they multiply all w before them by, [..., H]; None
      for nothing.
    keep: Whether the state before them goes on, [..., 1]; None for yes.
  """

  state: attention_sums.State
  faded: jax.Array | None = None
  keep: jax.Array | None = None


def before_each(
  start: attention_sums.State, parts: Part, *, weighted: bool
) -> tuple[attention_sums.State, attention_sums.State]:
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
    past = jnp.where(right.keep, past, attention_sums.EMPTY)
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
  state = attention_sums.State(*(add(x, y) for x, y in sums), unit)
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
