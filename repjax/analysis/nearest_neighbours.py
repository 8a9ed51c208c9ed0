"""Device code: exact nearest neighbours of many rows, in chunks.

The device has float32 distances of all rows from one matrix product a chunk,
and ranks them (on CPUs the partition of NumPy does, 80 times as fast as XLA's
`top_k`); the host measures the best of them in float64, as sums of squared
differences.
That no neighbour is missed is checked, not hoped for: a bound on the error of
float32 says for each anchor whether the rows that were left out can be nearer.
Where they can (near-duplicates far from the mean, many ties), all rows that the
bound allows are measured. So distances are those of float64, whatever the
device.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types

_AT_ONCE = 2**24  # Numbers of candidates that are measured at once.


class Neighbours(NamedTuple):
  """The k nearest other rows of M anchors among N rows.

  Attributes:
    distances: Ascending Euclidean distances, float64 [M, k].
    indices: Of those rows, [M, k].
    anchors: Which rows the anchors are, [M].
    rechecked: Number of anchors of which float32 could not tell.
  """

  distances: np.ndarray
  indices: np.ndarray
  anchors: np.ndarray
  rechecked: int


def nearest(
  rows: np.ndarray,
  num_neighbours: int,
  *,
  anchors: np.ndarray | None = None,
  chunk: int = 256,
) -> Neighbours:
  """Exact neighbours of some rows among all of them.

  A row is no neighbour of itself, an equal one is. Two cores rank 256 anchors
  among 60,000 rows of 784 numbers in .2 s, and take about 12 bytes a row and
  anchor of a chunk.

  Args:
    rows: [N, ...], numbers; axes behind the first are flattened.
    num_neighbours: k.
    anchors: Rows whose neighbours are sought, [M]; all if None.
    chunk: Anchors that are ranked at once.

  Raises:
    InputError: There are not k other rows, or a row is not finite.
  """
  rows = flat(rows)
  types.check_range('[1, inf)', num_neighbours=num_neighbours, chunk=chunk)
  if num_neighbours >= len(rows):
    raise types.InputError(
      f'num_neighbours={num_neighbours} of {len(rows)} rows: a row has only '
      f'{len(rows) - 1} others; give more rows, or fewer neighbours.'
    )
  anchors = np.arange(len(rows)) if anchors is None else np.asarray(anchors)
  if not anchors.size or anchors.min() < 0 or anchors.max() >= len(rows):
    raise types.InputError(f'anchors must be in [0, {len(rows)}), and not none')
  # Distances do not change, and float32 keeps more digits of them.
  centred = rows - rows.mean(0, dtype=np.float64).astype(rows.dtype)
  # A power of two: the same digits, whose squares float32 can hold.
  scale = 2.0 ** -np.frexp(np.abs(centred).max())[1]
  centred = (centred * scale).astype(rows.dtype)
  num_ranked = min(len(rows) - 1, 2 * num_neighbours + 16)
  distances = np.empty((len(anchors), num_neighbours))
  indices = np.empty((len(anchors), num_neighbours), np.int64)
  unsure = []
  norms = np.sqrt(_squares(centred))
  for part, found, last in _ranked(centred, anchors, num_ranked, chunk):
    exact, order = _measure(rows, anchors[part], found, num_neighbours)
    distances[part], indices[part] = exact, order
    if num_ranked < len(rows) - 1:
      # The last that was ranked is at least so far away, and so are the others.
      bound = _error(norms, anchors[part], rows.shape[1])
      farthest = scale * exact[:, -1]
      unsure.append(np.asarray(part)[last - bound < farthest**2])
  again = np.concatenate(unsure) if unsure else np.empty(0, np.int64)
  if len(again):
    rounded = centred.astype(np.float32)
    for at in again:
      distances[at], indices[at] = _all_that_may(
        rows,
        rounded,
        norms,
        anchors[at],
        scale * distances[at, -1],
        num_neighbours,
      )
  return Neighbours(distances, indices, anchors, len(again))


def flat(rows: np.ndarray) -> np.ndarray:
  """Rows as vectors of floats, [N, ...] -> [N, D].

  Raises:
    InputError: There are no rows, or they are not finite numbers.
  """
  rows = np.asarray(rows)
  if not rows.size or not np.issubdtype(rows.dtype, np.number):
    raise types.InputError(
      f'Neighbours are of numbers [N, ...]; got {rows.dtype} {rows.shape}.'
    )
  small = np.issubdtype(rows.dtype, np.integer) and rows.dtype.itemsize < 3
  rows = rows.reshape(len(rows), -1).astype(
    # Whole numbers below 2^24, and float32 itself, are exact.
    np.float32 if small or rows.dtype == np.float32 else np.float64
  )
  if not np.isfinite(rows).all():
    raise types.InputError('A row is not finite: drop it, or mend it.')
  return rows


def first_of_each(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Finds rows that are equal to an earlier one.

  Args:
    rows: [N, ...].

  Returns:
    (indices of the first row of each kind, ascending; how many rows there are
    of it).
  """
  flattened = np.ascontiguousarray(flat(rows) + 0.0)  # No -0, which is 0.
  keys = flattened.view(f'V{flattened.shape[1] * flattened.itemsize}')[:, 0]
  _, first, counts = np.unique(keys, return_index=True, return_counts=True)
  order = np.argsort(first)
  return first[order], counts[order]


def _ranked(
  centred, anchors, num_ranked, chunk
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(places of anchors, their best rows [C, K], squared distance of the K-th).

  The next chunk is on its way while the host measures one.
  """
  norms = _squares(centred)
  on_device = jnp.asarray(centred, jnp.float32)
  squares = jnp.asarray(norms, jnp.float32)
  chunk = min(chunk, len(anchors))

  def begin(start):
    part = np.arange(start, min(start + chunk, len(anchors)))
    padded = np.resize(anchors[part], chunk)  # One shape, compiled once.
    return part, pick(on_device, squares, jnp.asarray(padded), k=num_ranked)

  pick, best = _rank, _as_ranked
  if jax.default_backend() == 'cpu':
    pick, best = _distances, _partitioned
  starts = range(0, len(anchors), chunk)
  waiting = begin(0)
  for start in (*starts[1:], None):
    part, found = waiting
    if start is not None:
      waiting = begin(start)
    indices, last = (x[: len(part)] for x in best(found, num_ranked))
    yield part, indices, last.astype(np.float64) + norms[anchors[part]]


@functools.partial(jax.jit, static_argnames='k')
def _rank(rows, squares, anchors, *, k):
  least, indices = jax.lax.top_k(-_distances(rows, squares, anchors, k=k), k)
  return indices, -least[:, -1]


def _as_ranked(found, count):
  del count  # The device has ranked so many.
  return map(np.asarray, found)


def _partitioned(distances, count):
  distances = np.asarray(distances)
  indices = np.argpartition(distances, count - 1, axis=1)[:, :count]
  last = np.take_along_axis(distances, indices[:, -1:], 1)[:, 0]
  # Of rows that are equally far the first come first, as on other devices.
  return np.sort(indices, 1), last


@functools.partial(jax.jit, static_argnames='k')
def _distances(rows, squares, anchors, *, k):
  del k  # All of them.
  products = jnp.matmul(rows[anchors], rows.T, precision='highest')  # [C, N]
  # |b|^2 - 2 a b: |a|^2 is the same for all, and added on the host.
  distances = squares[None] - 2 * products
  return distances.at[jnp.arange(len(anchors)), anchors].set(jnp.inf)


def _squares(rows):
  return np.einsum('nd,nd->n', rows, rows, dtype=np.float64)


def _error(norms, anchors, dim):
  """How far squared distances of float32 are off at most, [M].

  Products of D terms are off by D / 2 units of rounding (eps) times |a| |b|,
  twice that in 2 a b; the rounding of rows and of the sum of three adds a few.
  """
  eps = np.finfo(np.float32).eps
  return (dim + 8) * eps * (norms[anchors] + norms.max()) ** 2


def _measure(rows, anchors, candidates, k):
  """Exact (distances [M, k], indices [M, k]) of the nearest candidates."""
  exact = np.empty(candidates.shape)
  size = max(1, _AT_ONCE // (candidates.shape[1] * rows.shape[1]))
  for start in range(0, len(anchors), size):
    part = slice(start, start + size)
    differences = rows[candidates[part]].astype(np.float64)  # [., K, D]
    differences -= rows[anchors[part]][:, None]
    exact[part] = np.sqrt(np.einsum('mkd,mkd->mk', differences, differences))
  order = np.argsort(exact, 1, kind='stable')[:, :k]
  return (
    np.take_along_axis(exact, order, 1),
    np.take_along_axis(candidates, order, 1),
  )


def _all_that_may(rows, rounded, norms, anchor, farthest, k):
  """Measures each row that may be nearer than `farthest`, scaled, to one."""
  rough = norms**2 + norms[anchor] ** 2 - 2.0 * (rounded @ rounded[anchor])
  bound = _error(norms, np.asarray([anchor]), rows.shape[1])
  candidates = np.flatnonzero(rough - bound <= farthest**2)
  candidates = candidates[candidates != anchor]
  exact, order = _measure(rows, np.asarray([anchor]), candidates[None], k)
  return exact[0], order[0]
