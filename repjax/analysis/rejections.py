"""How often a test of two samples rejects: its power, and its errors.

What is drawn and tested over and over runs as one compiled program.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from repjax import types
from repjax.analysis import two_sample
from repjax.types import check_range

# (key, n) -> samples of P and of Q of n rows each; see `data.sets.two_samples`.
Draw = Callable[[jax.Array, int], tuple[types.PyTree, types.PyTree]]

# Rows of P and Q that are not tested -> the statistic. A bandwidth may be
# chosen on them; who chooses nothing ignores them.
Choose = Callable[[types.PyTree, types.PyTree], two_sample.Statistic]


class Rejections(NamedTuple):
  """How often p-values are at most alpha.

  Attributes:
    rate: Share of the repetitions: the power where P and Q differ, the type I
      error where they do not.
    low: Lower end of the exact 99 % interval of the rate (Clopper-Pearson).
    high: Its upper end.
    uniform: Where P = Q: p-value of a Kolmogorov-Smirnov test of whether
      p-values are uniform; a small one says that the test is not calibrated.
  """

  rate: float
  low: float
  high: float
  uniform: float

  def calibrated(self, alpha: float) -> bool:
    """Whether the type I error may be alpha, for all that was seen."""
    return self.low <= alpha


def p_values(
  draw: Draw,
  tests: Mapping[str, Choose],
  *,
  rngs: jax.Array,
  num_rows: int,
  num_permutations: int = 99,
  chunk: int = 128,
) -> dict[str, np.ndarray]:
  """p-values of tests of data sets that are drawn anew each time.

  All tests see the same rows and the same permutations, so that what they
  differ by is no luck of the draw.

  Args:
    draw: What is compared.
    tests: Name -> what makes the statistic, of another draw of the same size.
    rngs: Keys, one a repetition, [R].
    num_rows: Rows of each sample.
    num_permutations: Of each test.
    chunk: Splits that are computed at once.

  Returns:
    Name -> [R].
  """
  check_range('[1, inf)', num_permutations=num_permutations)
  check_range('[2, inf)', num_rows=num_rows)

  def one(key):
    key_choice, key_rows, key_splits = jax.random.split(key, 3)
    others = draw(key_choice, num_rows)
    statistic = two_sample.together(
      {name: choose(*others) for name, choose in tests.items()}
    )
    found, permuted = two_sample.values(
      statistic,
      *draw(key_rows, num_rows),
      key_splits,
      num_permutations=num_permutations,
      chunk=chunk,
    )
    return jax.tree.map(two_sample.num_larger, found, permuted)

  larger = jax.device_get(jax.jit(lambda x: jax.lax.map(one, x))(rngs))
  return {
    name: two_sample.p_value(x, num_permutations) for name, x in larger.items()
  }


def summary(
  p: np.ndarray, *, alpha: float = 0.05, num_permutations: int = 99
) -> Rejections:
  """Counts rejections.

  Args:
    p: p-values, [R].
    alpha: Level of the test. One that is no multiple of 1 / (permutations + 1)
      is not reached: the type I error is the multiple below it.
    num_permutations: Of each test.
  """
  check_range('(0, 1)', alpha=alpha)
  p = np.asarray(p, np.float64)
  rejected = int((p <= alpha).sum())
  interval = stats.binomtest(rejected, len(p)).proportion_ci(0.99)
  # p-values are multiples of a step: with uniform noise of one step, which is
  # the same at every call, they are continuous.
  noise = np.random.default_rng(0).uniform(size=len(p)) / (num_permutations + 1)
  return Rejections(
    rate=rejected / len(p),
    low=float(interval.low),
    high=float(interval.high),
    uniform=float(stats.kstest(p - noise, 'uniform').pvalue),
  )


def least_detectable(
  power: np.ndarray, num_rows: np.ndarray, *, wanted: float = 0.8
) -> float:
  """Rows with which a test has the power that is wanted, by interpolation.

  Args:
    power: At each size, [M].
    num_rows: Sizes of each sample, ascending, [M].
    wanted: In (0, 1).

  Returns:
    NaN where no size has that power; the smallest size where that has it.
  """
  check_range('(0, 1)', wanted=wanted)
  power = np.maximum.accumulate(np.asarray(power, np.float64))
  if power[-1] < wanted:
    return float('nan')
  sizes = np.asarray(num_rows, np.float64)
  first = np.flatnonzero(power >= wanted)[0]
  near = slice(max(first - 1, 0), first + 1)
  return float(np.interp(wanted, power[near], sizes[near]))
