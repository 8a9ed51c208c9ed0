"""A permutation test by one kernel matrix against refits of every split."""

import functools
import time
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

_NUM_ROWS, _PERMUTATIONS, _BANDWIDTH = 200, 100, 0.1


def two_sample(rounds: int) -> dict[str, Any]:
  """H-Min of kernel densities, 200 rows each and 100 permutations.

  The other side is a loop over splits, each of which fits the densities of the
  two samples and of the mixture: scikit-learn's `KernelDensity`, as in the
  paper's code, and the plainest NumPy. Their p-values
  stand beside each other; permutations differ.
  """
  import jax
  from sklearn import neighbors

  from repjax.analysis import decision_losses
  from repjax.analysis import h_divergence
  from repjax.analysis import two_sample as tests
  from repjax.data.sets import two_samples

  x, y = two_samples.blobs(jax.random.key(0), _NUM_ROWS)
  statistic = h_divergence.statistic(decision_losses.kde(_BANDWIDTH), phi='min')
  rng = jax.random.key(1)
  pool = np.concatenate([x, y]).astype(np.float64)

  def ours():
    start = time.perf_counter()
    test = tests.permutation_test(
      x, y, statistic, rng=rng, num_permutations=_PERMUTATIONS
    )
    return time.perf_counter() - start, test.p_value

  def loop(entropy):
    start = time.perf_counter()
    generator = np.random.default_rng(0)
    values = []
    for i in range(_PERMUTATIONS + 1):
      order = np.arange(len(pool))
      if i:
        order = generator.permutation(order)
      first, second = pool[order[:_NUM_ROWS]], pool[order[_NUM_ROWS:]]
      values.append(entropy(pool[order]) - min(entropy(first), entropy(second)))
    larger = (np.asarray(values[1:]) >= values[0]).sum()
    p = (1 + larger) / (_PERMUTATIONS + 1)
    return time.perf_counter() - start, p

  def of_sklearn(rows):
    density = neighbors.KernelDensity(bandwidth=_BANDWIDTH).fit(rows)
    return -density.score(rows) / len(rows)

  def of_numpy(rows):
    distances = np.square(rows[:, None] - rows[None]).sum(-1)
    kernel = np.exp(-distances / (2 * _BANDWIDTH**2))
    return -np.log(kernel.mean(1) / (2 * np.pi * _BANDWIDTH**2)).mean()

  result: dict[str, Any] = {}
  for name, entropy in (('scikit-learn', of_sklearn), ('NumPy', of_numpy)):
    ratio = timing.alternate(
      rounds, functools.partial(_seconds, loop, entropy), lambda: ours()[0]
    )
    logging.info('a loop of %s fits over one kernel: %.1f', name, ratio)
    result[f'loop of {name} over one kernel, time'] = ratio
    result[f'p-values, {name} and one kernel'] = (loop(entropy)[1], ours()[1])
  result['milliseconds'] = 1000 * min(ours()[0] for _ in range(rounds))
  return result


def _seconds(timed, *args):
  return timed(*args)[0]
