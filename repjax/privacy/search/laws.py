"""Host side: laws of the number of trials of a private search.

Papernot and Steinke, 'Hyperparameter Tuning with Renyi Differential Privacy',
ICLR 2022, section 3 (https://arxiv.org/abs/2110.03620). With f(x) = E x^K, the
density of the best of K outputs is that of one output times f'(its quantile):
all that privacy (`repjax.privacy.tuning`) and usefulness depend on.
"""

import math
from typing import NamedTuple
from typing import TypeVar

import numpy as np

# No law with more trials than this at a tail of 1e-15 can be drawn from.
_LARGEST = 2**22


class TruncatedNegativeBinomial(NamedTuple):
  """The law of definition 1: P[K = k] for k >= 1.

  eta = 1 is the geometric law and eta = 0 the logarithmic one. Smaller eta is
  cheaper at the same mean, and more often runs a single trial.

  Attributes:
    eta: Shape, > -1.
    gamma: In (0, 1]; small gamma means many trials, 1 exactly one.
  """

  eta: float
  gamma: float

  @property
  def mean(self) -> float:
    """E K."""
    check(self)
    eta, gamma = self
    if gamma == 1:
      return 1.0
    if eta == 0:
      return (1 / gamma - 1) / -math.log(gamma)
    # gamma^eta overflows where the mean does not, for eta near -1.
    return math.exp(
      math.log(abs(eta) * (1 - gamma) / gamma)
      - _log_abs_expm1(eta * math.log(gamma))
    )

  @property
  def mean_rank(self) -> float:
    """E[K / (K + 1)]: expected quantile of the best among all candidates."""
    check(self)
    eta, gamma = self
    if gamma == 1:
      return 0.5
    log = math.log(gamma)
    if abs(eta) < 1e-6:
      return 1 - (1 - gamma + gamma * log) / ((1 - gamma) * -log)
    if -eta * log > 600:  # Where gamma^-eta overflows.
      return 1 - gamma / ((eta - 1) * (1 - gamma))
    # 1 minus the integral of f, whose inner part is that of x^-eta.
    area = -log if eta == 1 else math.expm1((1 - eta) * log) / (eta - 1)
    return 1 - (area / (1 - gamma) - 1) / math.expm1(-eta * log)

  def generating(self, x: np.ndarray) -> np.ndarray:
    """f(x) = E x^K: how likely no trial is above the quantile x."""
    eta, gamma = self
    if gamma == 1:
      return np.asarray(x, np.float64)
    # log(1 - (1 - gamma) x), without losing x near 0 or gamma near 1.
    x, log = np.asarray(x), math.log(gamma)
    inner = np.where(
      x < 0.5,
      np.log1p(-(1 - gamma) * np.minimum(x, 0.5)),
      np.log((1 - x) + gamma * x),
    )
    if eta == 0:
      return inner / log
    return np.expm1(-eta * inner) / math.expm1(-eta * log)

  def log_slope(self, log_rest: np.ndarray) -> np.ndarray:
    """Of f' at 1 - exp(log_rest), its logarithm; `log_rest` <= 0."""
    eta, gamma = self
    if gamma == 1:
      return np.zeros_like(log_rest)
    inner = np.logaddexp(math.log(gamma), math.log1p(-gamma) + log_rest)
    return math.log(self.mean) + (1 + eta) * (math.log(gamma) - inner)

  def pmf(self, count: int) -> np.ndarray:
    """P[K = 1], ..., P[K = count]."""
    check(self)
    eta, gamma = self
    first = np.zeros(count)
    if gamma == 1:
      first[:1] = 1.0
      return first
    if eta == 0:
      start = math.log1p(-gamma) - math.log(-math.log(gamma))
    else:
      start = math.log(abs(eta)) + math.log1p(-gamma)
      start -= _log_abs_expm1(-eta * math.log(gamma))
    k = np.arange(1, count)
    ratios = math.log1p(-gamma) + np.log((k + eta) / (k + 1))
    sums = np.concatenate([np.zeros(min(count, 1)), np.cumsum(ratios)])
    return np.exp(start + sums)

  def tail(self, count: int) -> float:
    """An upper bound of P[K > count], from the ratio of successive terms."""
    last = self.pmf(count)[-1]
    ratio = (1 - self.gamma) * max(1.0, (count + self.eta) / (count + 1))
    return min(1.0, last * ratio / (1 - ratio)) if ratio < 1 else 1.0


class Poisson(NamedTuple):
  """The Poisson law. K may be 0: then a fixed default is published.

  Attributes:
    mean: E K, >= 1.
  """

  mean: float

  @property
  def mean_rank(self) -> float:
    """E[K / (K + 1)]; the default counts as the worst of all."""
    return 1 + math.expm1(-self.mean) / self.mean

  def generating(self, x: np.ndarray) -> np.ndarray:
    """f(x) = E x^K: how likely no trial is above the quantile x."""
    return np.exp(self.mean * (np.asarray(x) - 1))

  def log_slope(self, log_rest: np.ndarray) -> np.ndarray:
    """Of f' at 1 - exp(log_rest), its logarithm; `log_rest` <= 0."""
    return math.log(self.mean) - self.mean * np.exp(log_rest)

  def pmf(self, count: int) -> np.ndarray:
    """P[K = 1], ..., P[K = count]."""
    check(self)
    log_factorials = np.cumsum(np.log(np.arange(1, count + 1)))
    k = np.arange(1, count + 1)
    return np.exp(k * math.log(self.mean) - self.mean - log_factorials)

  def tail(self, count: int) -> float:
    """P[K > count]."""
    from scipy import stats

    return float(stats.poisson.sf(count, self.mean))


Law = TruncatedNegativeBinomial | Poisson
_Law = TypeVar('_Law', bound=Law)


def with_mean(eta: float, mean: float) -> TruncatedNegativeBinomial:
  """The truncated negative binomial law with `mean` >= 1 trials on average."""
  if not mean >= 1 or not math.isfinite(mean):
    raise ValueError(f'Need a finite mean >= 1; got {mean=}')
  if mean == 1:
    return checked(TruncatedNegativeBinomial(eta, 1.0))
  return _solve(eta, lambda law: law.mean - mean, f'{mean=}')


def with_mean_rank(eta: float, rank: float) -> TruncatedNegativeBinomial:
  """The truncated negative binomial law whose `mean_rank` is `rank` >= 1/2."""
  if not 0.5 <= rank < 1:
    raise ValueError(f'Need 1/2 <= rank < 1; got {rank=}')
  if rank == 0.5:
    return checked(TruncatedNegativeBinomial(eta, 1.0))
  return _solve(eta, lambda law: law.mean_rank - rank, f'{rank=}')


def _solve(eta, excess, wanted):
  """The largest gamma at which the falling `excess` is not negative."""
  checked(TruncatedNegativeBinomial(eta, 0.5))
  low, high = -600.0, -1e-9  # Logarithms of gamma.
  if excess(TruncatedNegativeBinomial(eta, math.exp(low))) < 0:
    raise ValueError(f'Such a law needs gamma < 1e-260; got {eta=}, {wanted}')
  for _ in range(100):
    middle = (low + high) / 2
    law = TruncatedNegativeBinomial(eta, math.exp(middle))
    low, high = (middle, high) if excess(law) >= 0 else (low, middle)
  return TruncatedNegativeBinomial(eta, math.exp(low))


def most(law: Law, tail: float = 1e-15) -> int:
  """A number of trials that is exceeded with probability <= `tail`.

  Depends on the law alone, so that refusing it tells nothing about K.

  Raises:
    ValueError: If it is above four million: the law cannot be drawn from.
  """
  check(law)
  count = 16
  while law.tail(count) > tail:
    count *= 2
    if count > _LARGEST:
      raise ValueError(
        f'{law} goes beyond {_LARGEST} trials with probability > {tail:g}; '
        'take a larger eta or a smaller mean.'
      )
  low = count // 2
  while count - low > 1:
    middle = (low + count) // 2
    low, count = (middle, count) if law.tail(middle) > tail else (low, middle)
  return count


def sample(
  law: Law, rng: np.random.Generator, size: int, *, limit: int | None = None
) -> np.ndarray:
  """Draws numbers of trials, by the inverse of the distribution function.

  Args:
    law: The law.
    rng: Where they come from.
    size: How many to draw.
    limit: Larger ones become `limit`; `most(law)` by default. Give it to
      `tuning.epsilon_of_best`, too.

  Returns:
    [size].
  """
  count = most(law) if limit is None else limit
  pmf = law.pmf(count)
  none = math.exp(-law.mean) if isinstance(law, Poisson) else 0.0
  ends = none + np.cumsum(pmf)
  start = 0 if isinstance(law, Poisson) else 1
  if start == 0:
    ends = np.concatenate([[none], ends])
  drawn = start + np.searchsorted(ends, rng.random(size), side='right')
  return np.minimum(drawn, count)


def check(law: Law) -> None:
  """Raises a ValueError if the law's parameters are out of range."""
  if isinstance(law, Poisson):
    if not 1 <= law.mean < math.inf:
      raise ValueError(f'Need a finite mean >= 1; got {law=}')
  elif not -1 < law.eta < math.inf or not 0 < law.gamma <= 1:
    raise ValueError(f'Need a finite eta > -1, 0 < gamma <= 1; got {law=}')


def checked(law: _Law) -> _Law:
  """The law, if its parameters are in range."""
  check(law)
  return law


def _log_abs_expm1(x):
  """Logarithm of |exp(x) - 1|, also where exp(x) overflows."""
  return x if x > 600 else math.log(abs(math.expm1(x)))
