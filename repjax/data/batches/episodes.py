"""Few-shot episodes: N classes, K rows of each to learn from, Q to judge by.

An episode is a function of (seed, index), whoever draws it and however many at
once, so that methods are compared on the same ones.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types


class Episodes(NamedTuple):
  """E episodes, as places of rows among those of the set.

  Attributes:
    support: Rows to learn from, [E, N, K].
    query: Rows to be judged by, [E, N, Q].
    classes: Which class of the set each of the N is, [E, N].
  """

  support: jax.Array
  query: jax.Array
  classes: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
  """Draws episodes over the rows of a set.

  Attributes:
    rows: Places of the rows of each class, [C, M]; those of small classes are
      repeated, and never drawn.
    counts: Rows of each class, [C].
    labels: What the set calls each class, [C].
    ways: N, classes of an episode.
    shots: K.
    queries: Q.
    seed: Of all episodes.
  """

  rows: np.ndarray
  counts: np.ndarray
  labels: np.ndarray
  ways: int
  shots: int
  queries: int
  seed: int

  def draw(self, first: int, count: int) -> Episodes:
    """Episodes `first` to `first + count - 1`."""
    return _draw(
      jax.random.key(self.seed),
      jnp.arange(first, first + count),
      jnp.asarray(self.rows),
      jnp.asarray(self.counts),
      jnp.asarray(self.labels),
      ways=self.ways,
      shots=self.shots,
      queries=self.queries,
    )


def sampler(
  labels: np.ndarray,
  *,
  ways: int,
  shots: int,
  queries: int = 15,
  seed: int = 0,
  classes: Sequence[int] | None = None,
) -> Sampler:
  """Episodes over the rows of a set with labels.

  Args:
    labels: Of the rows, integers [R].
    ways: N >= 2, classes of an episode.
    shots: K >= 1, rows of each class to learn from.
    queries: Q >= 1, further rows of each class to be judged by.
    seed: Of all episodes.
    classes: Those that are drawn from; all that have rows if None.

  Raises:
    InputError: If there are too few classes, or a class has too few rows.
  """
  types.check_range('[2, inf)', ways=ways)
  types.check_range('[1, inf)', shots=shots, queries=queries)
  types.check_range(f'[0, {2**32 - 1}]', seed=seed)
  labels = np.asarray(labels)
  present, counts = np.unique(labels, return_counts=True)
  if classes is not None:
    lacking = sorted(set(classes) - set(present.tolist()))
    if lacking:
      raise types.InputError(f'No row has the class {lacking[0]}.')
    chosen = np.isin(present, np.asarray(classes))
    present, counts = present[chosen], counts[chosen]
  if len(present) < ways:
    raise types.InputError(
      f'An episode of {ways} classes cannot be drawn from {len(present)}: ask '
      'for fewer ways.'
    )
  few = int(counts.argmin())
  if counts[few] < shots + queries:
    raise types.InputError(
      f'Class {present[few]} has {counts[few]} rows, an episode takes '
      f'{shots + queries} ({shots} shots and {queries} queries): ask for fewer.'
    )
  rows = [np.flatnonzero(labels == x) for x in present]
  return Sampler(
    rows=np.stack([np.resize(x, counts.max()) for x in rows]),
    counts=counts,
    labels=present,
    ways=ways,
    shots=shots,
    queries=queries,
    seed=seed,
  )


@functools.partial(jax.jit, static_argnames=('ways', 'shots', 'queries'))
def _draw(key, indices, rows, counts, labels, *, ways, shots, queries):
  def one(index):
    of_classes, of_rows = jax.random.split(jax.random.fold_in(key, index))
    chosen = jax.random.choice(of_classes, len(counts), (ways,), replace=False)
    order = jax.random.uniform(of_rows, (ways, rows.shape[1]))
    there = jnp.arange(rows.shape[1])[None] < counts[chosen][:, None]
    _, places = jax.lax.top_k(jnp.where(there, order, -1.0), shots + queries)
    drawn = jnp.take_along_axis(rows[chosen], places, 1)
    return Episodes(drawn[:, :shots], drawn[:, shots:], labels[chosen])

  return jax.vmap(one)(indices)
