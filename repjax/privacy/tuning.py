"""Host side: what choosing the best of several private runs costs.

Papernot and Steinke, 'Hyperparameter Tuning with Renyi Differential Privacy',
ICLR 2022. Draw a number of trials K from a law that knows nothing of the data;
K times draw a candidate (with replacement) and run it; publish only the best.
The price hardly grows with the number of trials, because only one run gets
out.

What it rests on: K, the other runs and when they ended stay secret; the score
by which runs are compared is part of each run's private output, or comes from
public rows; candidates are drawn independently of the data and of each other
(no Bayesian search, no early stopping across runs); the curve is the worst of
all candidates. Fixing K, or cutting it at a budget, is another law.
"""

import math
from typing import NamedTuple

import numpy as np

from repjax.privacy.accounting import RdpCurve


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
    _check_law(self)
    eta, gamma = self
    if gamma == 1:
      return 1.0
    if eta == 0:
      return (1 / gamma - 1) / -math.log(gamma)
    return eta * (1 - gamma) / (gamma * -math.expm1(eta * math.log(gamma)))

  def pmf(self, count: int) -> np.ndarray:
    """P[K = 1], ..., P[K = count]."""
    _check_law(self)
    eta, gamma = self
    first = np.zeros(count)
    if gamma == 1:
      first[:1] = 1.0
      return first
    if eta == 0:
      start = (1 - gamma) / -math.log(gamma)
    else:
      start = eta * (1 - gamma) / math.expm1(-eta * math.log(gamma))
    k = np.arange(1, count)
    ratios = (1 - gamma) * (k + eta) / (k + 1)
    return start * np.concatenate([np.ones(min(count, 1)), np.cumprod(ratios)])

  def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of trials, [size]."""
    draws, count = rng.random(size), 64
    while True:  # Inverse of the distribution function, as far as needed.
      ends = np.cumsum(self.pmf(count))
      if draws.max(initial=0.0) < ends[-1] or count > 2**24:
        return 1 + np.searchsorted(ends, draws, side='right')
      count *= 4


class Poisson(NamedTuple):
  """The Poisson law. K may be 0: then a fixed default is published.

  Attributes:
    mean: E K, >= 1.
  """

  mean: float

  def pmf(self, count: int) -> np.ndarray:
    """P[K = 1], ..., P[K = count]."""
    _check_law(self)
    log_factorials = np.cumsum(np.log(np.arange(1, count + 1)))
    k = np.arange(1, count + 1)
    return np.exp(k * math.log(self.mean) - self.mean - log_factorials)

  def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of trials, [size]."""
    _check_law(self)
    return rng.poisson(self.mean, size)


Law = TruncatedNegativeBinomial | Poisson


def truncated_negative_binomial(
  eta: float, mean: float
) -> TruncatedNegativeBinomial:
  """The law of shape `eta` > -1 with `mean` >= 1 trials on average."""
  if not mean >= 1 or not math.isfinite(mean):
    raise ValueError(f'Need a finite mean >= 1; got {mean=}')
  if mean == 1:
    return _checked(TruncatedNegativeBinomial(eta, 1.0))
  _checked(TruncatedNegativeBinomial(eta, 0.5))
  low, high = -700.0, -1e-12  # Logarithms of gamma; the mean falls with gamma.
  for _ in range(200):
    middle = (low + high) / 2
    law = TruncatedNegativeBinomial(eta, math.exp(middle))
    low, high = (middle, high) if law.mean > mean else (low, middle)
  return TruncatedNegativeBinomial(eta, math.exp(low))  # At least the mean.


def rdp_of_best(run: RdpCurve, law: Law) -> RdpCurve:
  """Renyi differential privacy of the best of K runs.

  Theorem 2 for the truncated negative binomial law, theorem 6 for the Poisson
  law, and that Renyi divergences grow with their order.

  Args:
    run: Curve of one run, an upper bound for every candidate.
    law: Of the number of trials.

  Returns:
    The curve at the same orders.
  """
  _check_law(law)
  orders, epsilons = (np.asarray(x, np.float64) for x in run)
  if orders.shape != epsilons.shape or orders.ndim != 1 or orders.min() <= 1:
    raise ValueError(
      'A curve has one epsilon an order, and orders above 1; got '
      f'{orders.shape=}, {epsilons.shape=}, {orders.min()=}'
    )
  chosen = epsilons + math.log(law.mean) / (orders - 1)
  if isinstance(law, Poisson):
    deltas = [_delta(run, math.log1p(1 / (order - 1))) for order in orders]
    chosen += law.mean * np.asarray(deltas)
  else:
    eta, gamma = law
    # lambda^ = 1, where only log(1 / gamma) is left, is allowed, too.
    inner = (1 - 1 / orders) * epsilons - math.log(gamma) / orders
    chosen += (1 + eta) * min(inner.min(), -math.log(gamma))
  order = np.argsort(orders)
  chosen[order] = np.minimum.accumulate(chosen[order][::-1])[::-1]
  return RdpCurve(orders, chosen)


def epsilon(curve: RdpCurve, delta: float) -> float:
  """Epsilon of a curve (Canonne, Kamath and Steinke, 2020, proposition 12)."""
  if not 0 < delta < 1:
    raise ValueError(f'Need 0 < delta < 1; got {delta=}')
  orders, epsilons = (np.asarray(x, np.float64) for x in curve)
  bounds = (
    epsilons + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
  )
  return max(0.0, float(bounds.min()))


def epsilon_of_best(run: RdpCurve, law: Law, delta: float) -> float:
  """Epsilon of publishing the best of K runs."""
  return epsilon(rdp_of_best(run, law), delta)


def _delta(curve, epsilon):
  """Delta at an epsilon: the least of two bounds at each order."""
  orders, epsilons = (np.asarray(x, np.float64) for x in curve)
  bounds = (orders - 1) * (epsilons - epsilon + np.log1p(-1 / orders))
  bounds = np.exp(np.minimum(bounds - np.log(orders), 0.0))
  # By the Kullback-Leibler divergence, which no order is below.
  total_variation = np.sqrt(-np.expm1(-epsilons))
  return min(bounds.min(), total_variation.min())


def _check_law(law):
  if isinstance(law, Poisson):
    if not 1 <= law.mean < math.inf:
      raise ValueError(f'Need a finite mean >= 1; got {law=}')
  elif not law.eta > -1 or not 0 < law.gamma <= 1:
    raise ValueError(f'Need eta > -1 and 0 < gamma <= 1; got {law=}')


def _checked(law):
  _check_law(law)
  return law
