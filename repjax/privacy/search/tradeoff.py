"""Host side: how well tests can tell two neighbouring data sets apart.

A test of a mechanism's output says yes with probability s on one data set and
s' on its neighbour. Privacy bounds s' by a concave function of s, the power,
whichever of the two is the neighbour. What is known about the mechanism comes
as straight lines above that function, which hold at every s, so that nothing
here is an estimate. Dong, Roth and Su, 'Gaussian Differential Privacy', 2022
(https://arxiv.org/abs/1905.02383), section 2, has the same function upside
down.
"""

from typing import NamedTuple

import numpy as np

from repjax.privacy.accounting import RdpCurve

# Logarithms of s. Bounds on the grid's cells are off by about the step, which
# is larger where only laws of astronomically many trials look.
_FINE = np.concatenate(
  [
    [-np.inf],
    np.linspace(-150.0, -40.0, 5_500, endpoint=False),
    np.linspace(-40.0, 0.0, 40_001),
  ]
)
# Logits of s at which there are tangents.
_COARSE = np.concatenate(
  [np.arange(-150.0, -40.0), np.arange(-40.0, 40.0, 0.25)]
)


class Power(NamedTuple):
  """Upper bound of s' over a grid of s.

  Attributes:
    log_false: log s, increasing from -inf to 0, [G].
    log_true: log of the largest s', [G].
  """

  log_false: np.ndarray
  log_true: np.ndarray


def from_rdp(run: RdpCurve) -> Power:
  """All tests that Renyi differential privacy allows.

  The Renyi divergence between a test's two Bernoulli laws is at most that of
  the outputs. Its moment is jointly convex in (s, s'), so the tangents of its
  level sets are lines above the power.
  """
  orders, epsilons = (np.asarray(x, np.float64) for x in run)
  keep = np.isfinite(epsilons)
  orders, epsilons = orders[keep], epsilons[keep]
  if not orders.size:
    return Power(_FINE, np.zeros_like(_FINE))
  limits = (orders - 1) * epsilons + 1e-9  # Above what rounding does.

  def excess(logits):
    """Of both directions' log moments, [2, coarse, orders]."""
    log_s, log_no = _log_sigmoid(_COARSE)
    log_t, log_not = _log_sigmoid(logits)
    log_s, log_no, log_t, log_not = (
      x[:, None] for x in (log_s, log_no, log_t, log_not)
    )
    rest = 1 - orders
    forth = np.logaddexp(
      orders * log_t + rest * log_s, orders * log_not + rest * log_no
    )
    back = np.logaddexp(
      orders * log_s + rest * log_t, orders * log_no + rest * log_not
    )
    return np.stack([forth, back]) - limits

  low, high = _COARSE.copy(), np.full(_COARSE.shape, 700.0)
  for _ in range(46):
    middle = (low + high) / 2
    fine = excess(middle).max((0, 2)) <= 0
    low, high = np.where(fine, middle, low), np.where(fine, high, middle)
  # The tangent of the level set that goes through the point just outside.
  found = excess(high).transpose(1, 0, 2).reshape(len(_COARSE), -1)
  active = found.argmax(1)
  forth, order = active < orders.size, orders[active % orders.size]
  (log_s, log_no), (log_t, log_not) = _log_sigmoid(_COARSE), _log_sigmoid(high)
  ratio, rest = log_t - log_s, log_not - log_no
  gap = np.minimum(rest - ratio, -1e-12)
  factor = (order - 1) / order * np.expm1(order * gap)
  factor /= np.expm1((order - 1) * gap)
  slope = np.where(forth, np.exp(ratio) * factor, np.exp(rest) / factor)
  point, value = np.exp(log_s), np.exp(log_t)
  slope, value = (
    np.where(found.max(1) > 0, x, y) for x, y in ((slope, 0.0), (value, 1.0))
  )
  s = np.exp(_FINE)
  right = np.searchsorted(point, s).clip(1, len(point) - 1)
  lines = [value[i] + slope[i] * (s - point[i]) for i in (right - 1, right)]
  return _power(np.minimum(*lines))


def from_profile(epsilons: np.ndarray, deltas: np.ndarray) -> Power:
  """All tests that (epsilon, delta)-differential privacy at each pair allows.

  Args:
    epsilons: >= 0, [P].
    deltas: Upper bounds for both directions, [P].
  """
  s = np.exp(_FINE)
  best = np.ones_like(s)
  for epsilon, delta in zip(epsilons, deltas, strict=True):
    np.minimum(best, np.exp(epsilon) * s + delta, out=best)
    np.minimum(best, 1 - np.exp(-epsilon) * (1 - delta - s), out=best)
  return _power(best)


def both(first: Power, second: Power) -> Power:
  """The tests that both allow."""
  return Power(_FINE, np.minimum(first.log_true, second.log_true))


def _power(values):
  s = np.exp(_FINE)
  with np.errstate(divide='ignore'):
    return Power(_FINE, np.log(np.clip(values, s, 1.0)))


def _log_sigmoid(logits):
  """Logarithms of s and of 1 - s."""
  return -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits)
