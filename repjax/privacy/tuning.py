"""Host side: what choosing the best of several private runs costs.

Papernot and Steinke, 'Hyperparameter Tuning with Renyi Differential Privacy',
ICLR 2022, https://arxiv.org/abs/2110.03620. Draw a number of trials K from a
law that knows nothing of the data (`repjax.privacy.search.laws`); K times draw
a candidate (with replacement) and run it; publish only the best. The price
hardly grows with the number of trials, because only one run gets out.

What it rests on: K, the other runs and when they ended stay secret; the score
by which runs are compared is part of each run's private output, or comes from
public rows; candidates are drawn independently of the data and of each other
(no Bayesian search, no early stopping across runs); the curve is the worst of
all candidates. Fixing K, or cutting it at a budget, is another law.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from repjax.privacy.accounting import RdpCurve
from repjax.privacy.search import laws
from repjax.privacy.search import tradeoff

# Share of delta that is set aside for cutting the number of trials.
_CUT_SHARE = 0.01


def rdp_by_theorem(run: RdpCurve, law: laws.Law) -> RdpCurve:
  """Renyi differential privacy of the best of K runs, in closed form.

  Theorem 2 for the truncated negative binomial law (all eta > -1), theorem 6
  for the Poisson law, and that Renyi divergences grow with their order.

  Args:
    run: Curve of one run, an upper bound for every candidate.
    law: Of the number of trials.

  Returns:
    The curve at the same orders.
  """
  laws.check(law)
  orders, epsilons = _checked_curve(run)
  chosen = epsilons + math.log(law.mean) / (orders - 1)
  if isinstance(law, laws.Poisson):
    deltas = [_delta(run, math.log1p(1 / (order - 1))) for order in orders]
    chosen += law.mean * np.asarray(deltas)
  else:
    eta, gamma = law
    # lambda^ = 1, where only log(1 / gamma) is left, is allowed, too.
    inner = (1 - 1 / orders) * epsilons - math.log(gamma) / orders
    chosen += (1 + eta) * min(inner.min(), -math.log(gamma))
  return _growing(orders, chosen)


def rdp_by_lemma(
  run: RdpCurve, law: laws.Law, power: tradeoff.Power
) -> RdpCurve:
  """Privacy of the best of K runs by the paper's general lemma, for any law.

  D(A | A') <= D(Q | Q') + log(max f'(q)^order f'(q')^(1 - order)) /
  (order - 1), with f(x) = E x^K and (q, q') the probabilities of an event (or
  a test) under Q and Q'. Why: outputs are ordered, so the best of K has the
  density q(y) f'(Q(y)), and the factors f' come out of the integral. The
  theorems bound that maximum by one inequality between q and q'; here it is
  taken over all tests that privacy allows, cell by cell of a grid: f' grows,
  so that its values at a cell's ends bound it. But for the grid's step it is
  never above the theorems. The outcome that K = 0 adds
  under the Poisson law is covered from a mean of 1 on: with phi = (order - 1)
  s' - order s at the thresholds s = 1 - q and AM-GM, dphi <= Q^order
  Q'^(1 - order), whence the slack of the bound is at least mean - 1 +
  exp(-mean).

  Args:
    run: Curve of one run, an upper bound for every candidate.
    law: Of the number of trials.
    power: How well tests tell one run's neighbours apart; `from_rdp(run)`, and
      tighter where more is known, as `accounting.profile`.

  Returns:
    The curve at the same orders.
  """
  laws.check(law)
  orders, epsilons = _checked_curve(run)
  no, yes = (law.log_slope(x) for x in power)
  no, yes = no[:-1], yes[1:]
  most = [(order * no - (order - 1) * yes).max() for order in orders]
  return _growing(orders, epsilons + np.asarray(most) / (orders - 1))


def rdp_of_best(
  run: RdpCurve, law: laws.Law, power: tradeoff.Power | None = None
) -> RdpCurve:
  """The smaller of both bounds at each order; arguments as of `rdp_by_lemma`.

  Args:
    run: Curve of one run, an upper bound for every candidate.
    law: Of the number of trials.
    power: How well tests tell neighbours apart; `from_rdp(run)` by default.
  """
  closed = rdp_by_theorem(run, law)
  if power is None:
    power = tradeoff.from_rdp(run)
  numeric = rdp_by_lemma(run, law, power)
  return _growing(closed.orders, np.minimum(closed.epsilons, numeric.epsilons))


def epsilon(curve: RdpCurve, delta: float) -> float:
  """Epsilon of a curve (proposition 12 of https://arxiv.org/abs/2004.00010)."""
  if not 0 < delta < 1:
    raise ValueError(f'Need 0 < delta < 1; got {delta=}')
  orders, epsilons = (np.asarray(x, np.float64) for x in curve)
  bounds = (
    epsilons + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
  )
  return max(0.0, float(bounds.min()))


def epsilon_of_best(
  run: RdpCurve,
  law: laws.Law,
  delta: float,
  *,
  power: tradeoff.Power | None = None,
  limit: int | None = None,
  lost: float = 0.0,
) -> float:
  """Epsilon of publishing the best of K runs.

  Args:
    run: Curve of one run, an upper bound for every candidate.
    law: Of the number of trials.
    delta: In (0, 1).
    power: How well tests tell neighbours apart; `from_rdp(run)` by default.
    limit: Where the number of trials is cut, if it is. Up to a probability of
      P[K > limit] nothing changes, so (1 + e^epsilon) of it come off delta, of
      which 1 % is set aside.
    lost: Probability that the search differs from that of K runs for another
      reason (a batch that overflows), paid for in the same way.

  Raises:
    ValueError: If K exceeds `limit`, or the search is lost, too often.
  """
  curve = rdp_of_best(run, law, power)
  cut = 0.0 if limit is None else law.tail(limit)
  if not cut + lost:
    return epsilon(curve, delta)
  found = epsilon(curve, delta * (1 - _CUT_SHARE))
  covered = loss_covered(found, delta)
  if cut + lost > covered:
    raise ValueError(
      f'{delta=} covers a loss of {covered:.1e}, but its probability is '
      f'{cut + lost:.1e}; {law} stays below it with {laws.most(law, covered)} '
      'trials at most.'
    )
  return found


def loss_covered(epsilon: float, delta: float) -> float:
  """Probability that a search may differ from that of K runs.

  Args:
    epsilon: Of the search, at 99 % of delta.
    delta: Of the search.
  """
  return delta * _CUT_SHARE / (1 + math.exp(min(epsilon, 700.0)))


class Plan(NamedTuple):
  """A law and what it gives.

  Attributes:
    law: Of the number of trials.
    epsilon: Of the whole search.
    mean: Expected number of trials.
    mean_rank: Expected quantile of the winner among all candidates.
  """

  law: laws.Law
  epsilon: float
  mean: float
  mean_rank: float


def plan(
  run: RdpCurve,
  *,
  delta: float,
  mean: float | None = None,
  mean_rank: float | None = None,
  etas: Sequence[float] = (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
  power: tradeoff.Power | None = None,
) -> Plan:
  """The law of least epsilon for a wanted number of trials or a wanted rank.

  At the same mean a smaller eta is cheaper without end: it leaves more and
  more to a few huge searches and most often runs one trial. So with `mean`
  the smallest eta that can be drawn from wins; `mean_rank` asks for what the
  search is for. Large eta comes near the Poisson law.

  Args:
    run: Curve of one run, an upper bound for every candidate.
    delta: In (0, 1).
    mean: Wanted E K >= 1, or None.
    mean_rank: Wanted expected quantile of the winner in [1/2, 1), or None.
    etas: Shapes to choose from, > -1; those without such a law are left out.
    power: How well tests tell neighbours apart; `from_rdp(run)` by default.

  Raises:
    ValueError: If not exactly one of `mean` and `mean_rank` is given, or no
      eta has such a law.
  """
  if (mean is None) == (mean_rank is None):
    raise ValueError(
      f'Give one of mean and mean_rank; got {mean=}, {mean_rank=}'
    )
  if power is None:
    power = tradeoff.from_rdp(run)
  plans = []
  for eta in etas:
    try:
      if mean is not None:
        law = laws.with_mean(eta, mean)
      elif mean_rank is not None:
        law = laws.with_mean_rank(eta, mean_rank)
      laws.most(law)
    except ValueError:  # No such law, or none that can be drawn from.
      continue
    found = epsilon_of_best(run, law, delta, power=power)
    plans.append(Plan(law, found, law.mean, law.mean_rank))
  if not plans:
    raise ValueError(f'No such law; got {mean=}, {mean_rank=}, {etas=}')
  return min(plans, key=lambda plan: plan.epsilon)


def _delta(curve, epsilon):
  """Delta at an epsilon: the least of two bounds at each order."""
  orders, epsilons = (np.asarray(x, np.float64) for x in curve)
  bounds = (orders - 1) * (epsilons - epsilon + np.log1p(-1 / orders))
  bounds = np.exp(np.minimum(bounds - np.log(orders), 0.0))
  # By the Kullback-Leibler divergence, which no order is below.
  total_variation = np.sqrt(-np.expm1(-epsilons))
  return min(bounds.min(), total_variation.min())


def _growing(orders, epsilons):
  """Each order's bound, or that of a larger one where it is smaller."""
  order = np.argsort(orders)
  epsilons = epsilons.copy()
  epsilons[order] = np.minimum.accumulate(epsilons[order][::-1])[::-1]
  return RdpCurve(orders, epsilons)


def _checked_curve(run):
  orders, epsilons = (np.asarray(x, np.float64) for x in run)
  if orders.shape != epsilons.shape or orders.ndim != 1 or orders.min() <= 1:
    raise ValueError(
      'A curve has one epsilon an order, and orders above 1; got '
      f'{orders.shape=}, {epsilons.shape=}, {orders.min()=}'
    )
  return orders, epsilons
