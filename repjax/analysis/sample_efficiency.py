"""Host side: what a learner makes of how many rows, and how many it needs.

For the question of Li, Zhang and Arora, ICLR 2021
(https://arxiv.org/abs/2010.08515): which of two learners needs fewer rows, and
how does that number grow with the dimension? All sizes and seeds of a curve are
trained side by side in one compiled program; `equivariance` tells whether the
paper's bounds are about a learner at all.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Curve(NamedTuple):
  """Test scores of a learner, by the number of rows that it was given.

  Attributes:
    sizes: Numbers of training rows, ascending, [N].
    scores: On test rows, [N, S].
    fitted: On the training rows, [N, S].
  """

  sizes: np.ndarray
  scores: np.ndarray
  fitted: np.ndarray


class PowerLaw(NamedTuple):
  """y = factor * x ** exponent, least squares of logarithms.

  Attributes:
    exponent: Slope of log y in log x.
    factor: y at x = 1.
    residual: Largest error of log y.
  """

  exponent: float
  factor: float
  residual: float


def curve(
  name: str,
  method: types.Method,
  pool: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  sizes: Sequence[int],
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  score: side_by_side.Score = side_by_side.accuracy,
) -> Curve:
  """Trains on the first rows of an order of each seed's own, for each size.

  A seed has one initialization and one order of the pool, so that a larger
  training set has all rows of a smaller one. All take the same number of
  updates. Where a set is smaller than a batch, each batch is the whole set.

  Args:
    name: For the progress lines.
    method: What is trained.
    pool: Rows to choose training rows from, name -> [M, ...].
    test: Test rows.
    sizes: Numbers of training rows, at most M.
    seeds: S seeds.
    batch_size: Rows of a step.
    steps: Number of updates.
    score: (outputs, rows) -> one number a model.

  Raises:
    InputError: A size is no number of rows of the pool.
  """
  counts = np.sort(np.asarray(sizes, np.int64))
  num_rows, num_test = (len(next(iter(x.values()))) for x in (pool, test))
  types.check_range('[1, inf)', batch_size=batch_size, steps=steps)
  if not counts.size or counts[0] < 1 or counts[-1] > num_rows:
    raise types.InputError(
      f'sizes={counts.tolist()} must be in [1, {num_rows}], the rows of the '
      'pool: give fewer, or a larger pool.'
    )
  chosen = [
    np.random.default_rng([seed, num_rows]).permutation(num_rows)[:size]
    for size in counts
    for seed in seeds
  ]
  order = np.concatenate(
    [
      _order(rows, seed, batch_size, steps)
      for rows, seed in zip(chosen, [*seeds] * len(counts), strict=True)
    ]
  )

  @functools.wraps(score)
  def of_test(outputs, rows):
    del rows  # These are followed by the pool's.
    return score({k: x[:, :num_test] for k, x in outputs.items()}, test)

  trained = side_by_side.train(
    name,
    method,
    {},
    # One program says what test rows and training rows are taken for.
    {k: np.concatenate([x, pool[k]]) for k, x in test.items()},
    seeds=[*seeds] * len(counts),
    batch_size=batch_size,
    steps=steps,
    points=1,
    shared=pool,
    score=of_test,
    order=order,
  )
  fitted = [
    score(
      {k: x[i : i + 1, num_test + rows] for k, x in trained.outputs.items()},
      {k: x[rows] for k, x in pool.items()},
    )[0]
    for i, rows in enumerate(chosen)
  ]
  shape = len(counts), len(seeds)
  return Curve(counts, trained.score.reshape(shape), np.reshape(fitted, shape))


def _order(rows, seed, batch_size, steps):
  """Rows of each step, [1, T, B]: epochs, with -1 where the set is small."""
  size = min(batch_size, len(rows))
  epochs = seed_loop.epochs(len(rows), [seed], steps=steps, batch_size=size)
  padding = ((0, 0), (0, 0), (0, batch_size - size))
  return np.pad(rows[epochs], padding, constant_values=-1).astype(np.int32)


def needed(found: Curve, score: float) -> np.ndarray:
  """Rows at which each seed's curve first reaches a score, [S].

  Between two sizes the score is taken to be linear in the logarithm of the
  size. Infinite where no size reaches it; the smallest size where that does.
  """
  sizes = np.log(found.sizes)
  out = np.full(found.scores.shape[1], np.inf)
  for seed, scores in enumerate(found.scores.T):
    reached = np.flatnonzero(scores >= score)
    if not reached.size:
      continue
    first = reached[0]
    at = sizes[first]
    if first:
      share = (score - scores[first - 1]) / (scores[first] - scores[first - 1])
      at = sizes[first - 1] + share * (at - sizes[first - 1])
    out[seed] = np.exp(at)
  return out


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
  """Fits y = factor * x ** exponent, such as rows needed by dimension.

  Args:
    x: At least two different numbers above 0, [N].
    y: Numbers above 0, [N].

  Raises:
    InputError: They are not, such as a score that no size reached.
  """
  xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
  good = np.isfinite(xs).all() and np.isfinite(ys).all()
  if xs.shape != ys.shape or not good or (xs <= 0).any() or (ys <= 0).any():
    raise types.InputError(
      f'A power law needs finite numbers above 0, got x={xs.tolist()} and '
      f'y={ys.tolist()}: try larger sizes, or a score that they reach.'
    )
  if len(np.unique(xs)) < 2:
    raise types.InputError(f'A power law needs two sizes, got x={xs.tolist()}')
  slope, level = np.polyfit(np.log(xs), np.log(ys), 1)
  error = np.log(ys) - slope * np.log(xs) - level
  return PowerLaw(float(slope), float(np.exp(level)), float(abs(error).max()))


def collapse(curves: Sequence[Curve]) -> np.ndarray:
  """How far curves are apart at equal places, with the mean over seeds, [N].

  If d dimensions need c d^2 rows, curves over n / d^2 fall on one another;
  their sizes are to be the same multiples of d^2.

  Returns:
    Largest minus smallest mean score at each place.
  """
  means = np.stack([x.scores.mean(1) for x in curves])
  return np.ptp(means, axis=0)
