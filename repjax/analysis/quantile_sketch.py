"""Device code: quantiles of a stream, by a histogram of fixed memory.

Bins are as wide as their numbers are large, as in DDSketch (Masson, Rim and
Lee, VLDB 2019, https://arxiv.org/abs/1908.10693): a quantile between 2^-20 and
2^20, of either sign, is off by at most `RELATIVE` of itself, whatever the order
of the numbers, and sketches of parts add up. Smaller numbers count as 0, and
larger ones as 2^20: scale what is of another size. A bin is the leading bits of
a float32, so that no logarithm is taken.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Bits of the mantissa that tell bins apart, and exponents that do: numbers
# below 2 ** LOWEST count as 0, those above 2 ** HIGHEST as that.
_BITS = 5
_LOWEST, _HIGHEST = -20, 20
RELATIVE = 2.0**-_BITS

_FIRST = (_LOWEST + 127) << _BITS
_OF_SIGN = (_HIGHEST - _LOWEST) << _BITS
NUM_BINS = 2 * _OF_SIGN + 1


def empty(num_units: int) -> jax.Array:
  """Counts of nothing, uint32 [U, NUM_BINS]."""
  return jnp.zeros((num_units, NUM_BINS), jnp.uint32)


def add(counts: jax.Array, values: jax.Array, weight: jax.Array) -> jax.Array:
  """Counts with more values.

  Args:
    counts: Of U units, [U, NUM_BINS].
    values: [N, U], finite.
    weight: How often a row counts, whole numbers, [N].
  """
  size = jax.lax.bitcast_convert_type(
    jnp.abs(values.astype(jnp.float32)), jnp.int32
  )
  place = jnp.clip((size >> (23 - _BITS)) - _FIRST + 1, 0, _OF_SIGN)
  place = _OF_SIGN + jnp.where(values < 0, -place, place)
  flat = jnp.arange(counts.shape[0])[None] * NUM_BINS + place
  weight = jnp.broadcast_to(weight.astype(jnp.uint32)[:, None], flat.shape)
  return counts.reshape(-1).at[flat].add(weight).reshape(counts.shape)


def quantile(counts: np.ndarray, share: float) -> np.ndarray:
  """The number that a share of the values is below, [U]; NaN without values.

  Args:
    counts: [U, NUM_BINS].
    share: In [0, 1]; between the edges of a bin it is interpolated.
  """
  counts = np.asarray(counts, np.float64)
  total = counts.sum(1)
  below = counts.cumsum(1)
  wanted = share * total
  # The first bin that has reached it; of no value at all there is none.
  before = (below < wanted[:, None]) | (below == 0)
  place = np.minimum(before.sum(1), NUM_BINS - 1)
  units = np.arange(len(counts))
  inside = counts[units, place]
  rest = wanted - (below[units, place] - inside)
  part = np.clip(rest / np.maximum(inside, 1), 0, 1)
  low, high = _EDGES[place], _EDGES[place + 1]
  found = np.where(place == _OF_SIGN, 0, low + part * (high - low))
  return np.where(total > 0, found, np.nan).astype(np.float32)


def _edges():
  """Of all bins, [NUM_BINS + 1]; the bin of 0 has no width."""
  exact = (np.arange(_OF_SIGN + 1) + _FIRST) << (23 - _BITS)
  above = exact.astype(np.int32).view(np.float32).astype(np.float64)
  # The bins at 0 begin there, so the first edge of either side is its own.
  return np.concatenate([-above[::-1], above])


_EDGES = _edges()
