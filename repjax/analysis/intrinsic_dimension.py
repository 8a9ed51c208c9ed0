"""Host side: how many numbers it takes to say where a row is, from neighbours.

Pope, Zhu, Abdelkader, Goldblum and Goldstein, 'The Intrinsic Dimension of
Images and Its Impact on Learning', ICLR 2021. https://arxiv.org/abs/2104.08894

T_j(x) is the distance from x to its j-th nearest row. Where density hardly
changes within T_k, the logarithms of T_k / T_j are exponential with rate d, the
dimension (Levina and Bickel, NeurIPS 2004,
https://papers.nips.cc/paper/2577-maximum-likelihood-estimation-of-intrinsic-dimension;
averages of the inverse are what MacKay and Ghahramani, 2005,
http://www.inference.org.uk/mackay/dimension, say that they should have been):

    1 / m_k = 1 / (n (k - 1)) sum_i sum_(j<k) log(T_k(x_i) / T_j(x_i))

This is the likelihood's maximum over all rows. The authors' code
(ppope/dimensions, estimators/mle.py) divides by k - 2 in place of k - 1, which
makes one row's estimate unbiased, but not this average: all of its values are
(k - 2) / (k - 1) times those of the formula, one half at k = 3 and .95 at
k = 20. So a dimension is the same number only with its normaliser:

    found = describe(rows, ks=(3, 5, 10, 20))
    found.curve['k-1'], found.curve['k-2'], found.intervals, found.two_nn

All but `describe` are functions of distances, [M, k] and ascending, as
`nearest_neighbours.nearest` finds them. `graph_dimension` has the estimators
that take more than one row's neighbours.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.analysis import nearest_neighbours

Normaliser = Literal['k-1', 'k-2']
Combine = Literal['inverse', 'mean', 'median']
_TAKEN = {'k-1': 1, 'k-2': 2}


def local(
  distances: np.ndarray, *, k: int | None = None, normaliser: Normaliser
) -> np.ndarray:
  """One estimate a row, m_k(x), [M, >= k] -> [M].

  Args:
    distances: To the nearest rows, ascending and above 0.
    k: How many of them count; all if None.
    normaliser: 'k-1' maximizes the likelihood, 'k-2' is without bias.

  Returns:
    Infinite where all k rows are equally far away.

  Raises:
    InputError: There are not k neighbours, an equal row is among them, or k is
      too small for the normaliser.
  """
  with np.errstate(divide='ignore'):
    return 1 / _inverse(distances, k, normaliser)


def mle(
  distances: np.ndarray,
  *,
  k: int | None = None,
  normaliser: Normaliser,
  combine: Combine = 'inverse',
) -> float:
  """One estimate of all rows.

  Args:
    distances: To the nearest rows, [M, >= k], ascending and above 0.
    k: How many of them count; all if None.
    normaliser: 'k-1' is the formula above, 'k-2' what the authors' code has.
    combine: 'inverse' averages 1 / m_k(x) (MacKay and Ghahramani), 'mean' and
      'median' take those of m_k(x); the mean is that of Levina and Bickel,
      and goes with 'k-2'.

  Raises:
    InputError: For what `local` refuses, or where rows are equally far from all
      neighbours.
  """
  types.check_choice('combine', combine, ('inverse', 'mean', 'median'))
  inverse = _inverse(distances, k, normaliser)
  if combine == 'inverse':
    mean = inverse.mean()
  elif (inverse == 0).any():
    mean = 0.0
  else:
    mean = 1 / (np.mean if combine == 'mean' else np.median)(1 / inverse)
  if not mean > 0:
    raise types.InputError(
      'Rows are equally far from all of their k neighbours, which tells no '
      "dimension: raise k, or combine='inverse'."
    )
  return float(1 / mean)


def two_nn(distances: np.ndarray, *, discard: float = 0.1) -> float:
  """TwoNN: from the ratio of the two smallest distances alone.

  Facco, d'Errico, Rodriguez and Laio, 2017, eq. 4: with F the share of rows
  whose ratio mu is smaller, -log(1 - F) = d log(mu), a line through 0.
  https://doi.org/10.1038/s41598-017-11873-y

  Args:
    distances: To the nearest rows, [M, >= 2].
    discard: Share of rows with the largest ratios that are left out, in [0, 1);
      the largest one always is. The authors of the images' paper leave out
      that one alone.
  """
  types.check_range('[0, 1)', discard=discard)
  distances = _check(distances, 2)
  ratios = np.sort(np.log(distances[:, 1] / distances[:, 0]))
  count = min(int(len(ratios) * (1 - discard)), len(ratios) - 1)
  x = ratios[: max(count, 0)]
  if count < 2 or not x[-1] > 0:
    raise types.InputError(
      f'{max(count, 0)} rows with two different distances are too few.'
    )
  y = -np.log1p(-np.arange(1, count + 1) / len(ratios))
  return float(x @ y / (x @ x))


def interval(
  estimate: Callable[[np.ndarray], float],
  distances: np.ndarray,
  *,
  num_draws: int = 200,
  confidence: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Bootstrap interval over anchors, (low, high).

  The set among which neighbours were sought stays what it is: this is about
  which rows were asked, and no smaller where neighbourhoods overlap.

  Args:
    estimate: Distances -> number.
    distances: [M, k].
    num_draws: Sets of M anchors, drawn with replacement.
    confidence: Of the interval, in (0, 1).
    seed: Of the draws.
  """
  types.check_range('(0, 1)', confidence=confidence)
  types.check_range('[2, inf)', num_draws=num_draws)
  rng = np.random.default_rng(seed)
  found = [
    estimate(distances[rng.integers(len(distances), size=len(distances))])
    for _ in range(num_draws)
  ]
  tail = (1 - confidence) / 2
  low, high = np.quantile(found, (tail, 1 - tail))
  return float(low), float(high)


class Description(NamedTuple):
  """What is known of the dimension of some rows.

  Attributes:
    num_rows: Different rows, among which neighbours were sought.
    num_duplicates: Rows that were left out since they equal an earlier one.
    ks: Numbers of neighbours, [K].
    curve: Normaliser -> estimates by 'inverse', [K]. A dimension of the set
      should not depend on k: small k see noise, large k curvature and edges.
    intervals: 95 % intervals of the curve of 'k-1', [K, 2].
    two_nn: TwoNN.
    per_class: Label -> estimates by 'k-1' among the rows of that class, [K].
  """

  num_rows: int
  num_duplicates: int
  ks: tuple[int, ...]
  curve: dict[str, np.ndarray]
  intervals: np.ndarray
  two_nn: float
  per_class: dict[int, np.ndarray]


def describe(
  rows: np.ndarray,
  *,
  ks: Sequence[int] = (3, 5, 10, 20),
  labels: np.ndarray | None = None,
  num_anchors: int | None = None,
  seed: int = 0,
) -> Description:
  """Estimates of a set, for each number of neighbours.

  Args:
    rows: [N, ...]; equal ones are counted once.
    ks: Numbers of neighbours, from 3 on.
    labels: Classes, integers [N], for estimates within each; none if None.
    num_anchors: Rows whose neighbours are sought among all rows, of each class,
      too, >= 1; all if None.
    seed: Decides which, and the bootstrap.

  Raises:
    InputError: All rows are equal, a set or class has not more different rows
      than neighbours, labels are not one integer a row, or there are no
      anchors.
  """
  if not ks:
    raise types.InputError('ks names no number of neighbours; give some.')
  types.check_range('[3, inf)', **{'ks (smallest)': min(ks)})
  if num_anchors is not None:
    types.check_range('[1, inf)', num_anchors=num_anchors)
    if num_anchors != int(num_anchors):
      raise types.InputError(
        f'num_anchors is a whole number; got {num_anchors}.'
      )
    num_anchors = int(num_anchors)
  rows = nearest_neighbours.flat(rows)
  labels = None if labels is None else np.asarray(labels)
  if labels is not None and (
    labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer)
  ):
    raise types.InputError(
      f'Labels are one integer a row, [{len(rows)}]; got {labels.dtype} '
      f'{list(labels.shape)}.'
    )
  first, counts = nearest_neighbours.first_of_each(rows)
  if len(first) == 1:
    raise types.InputError(
      f'All {len(rows)} rows are equal, a point: give rows that differ.'
    )
  unique = rows[first]
  distances = _distances(unique, max(ks), num_anchors, seed, 'the set')
  per_class = {}
  for label in np.unique(np.empty(0, int) if labels is None else labels):
    own = rows[labels == label]  # Another class may have the same rows.
    own = own[nearest_neighbours.first_of_each(own)[0]]
    found = _distances(own, max(ks), num_anchors, seed, f'class {label}')
    per_class[int(label)] = _curve(found, ks, 'k-1')
  return Description(
    num_rows=len(unique),
    num_duplicates=int((counts - 1).sum()),
    ks=tuple(ks),
    curve={x: _curve(distances, ks, x) for x in ('k-1', 'k-2')},
    intervals=np.asarray([_interval(distances, k, seed) for k in ks]),
    two_nn=two_nn(distances),
    per_class=per_class,
  )


def _distances(rows, k, num_anchors, seed, name):
  if len(rows) <= k:
    raise types.InputError(
      f'{k} neighbours of {name}, which has {len(rows)} different rows: give '
      'more rows, or fewer neighbours.'
    )
  anchors = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
  return nearest_neighbours.nearest(
    rows, k, anchors=anchors[:num_anchors]
  ).distances


def _interval(distances, k, seed):
  return interval(
    lambda drawn: mle(drawn, k=k, normaliser='k-1'), distances, seed=seed
  )


def _curve(distances, ks, normaliser):
  return np.asarray([mle(distances, k=k, normaliser=normaliser) for k in ks])


def _inverse(distances, k, normaliser):
  """1 / m_k(x), [M]."""
  types.check_choice('normaliser', normaliser, tuple(_TAKEN))
  k = np.shape(distances)[1] if k is None else k
  divisor = k - _TAKEN[normaliser]
  if divisor < 1:
    raise types.InputError(
      f'k={k} neighbours with the normaliser {normaliser}: give at least '
      f'{_TAKEN[normaliser] + 1}.'
    )
  distances = _check(distances, k)[:, :k]
  return np.log(distances[:, -1:] / distances[:, :-1]).sum(1) / divisor


def _check(distances, k):
  """Distances with at least k columns, of which none is 0."""
  distances = np.asarray(distances, np.float64)
  if distances.shape[1] < k:
    raise types.InputError(
      f'k={k}, but distances to {distances.shape[1]} neighbours are given.'
    )
  equal = int((distances[:, 0] <= 0).sum())
  if equal:
    raise types.InputError(
      f'{equal} rows have an equal one, at distance 0: keep one of each '
      '(`nearest_neighbours.first_of_each`).'
    )
  return distances
