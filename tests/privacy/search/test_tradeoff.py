"""Bounds on tests: against the exact tests of known mechanisms."""

import numpy as np
import pytest
from scipy import stats

from repjax.privacy import accounting
from repjax.privacy.search import tradeoff


def gaussian_profile(noise, epsilons):
  """Delta of the Gaussian mechanism (Balle and Wang, 2018, theorem 8)."""
  half, scaled = 1 / (2 * noise), epsilons * noise
  return stats.norm.cdf(half - scaled) - np.exp(epsilons) * stats.norm.cdf(
    -half - scaled
  )


@pytest.mark.parametrize('noise', [0.5, 1.0, 3.0])
def test_the_gaussian_test_is_below_the_bounds_and_near_them(noise):
  orders = np.geomspace(1.05, 500, 60)
  from_rdp = tradeoff.from_rdp(
    accounting.RdpCurve(orders, orders / (2 * noise**2))
  )
  epsilons = np.linspace(0, 30, 400)
  from_profile = tradeoff.from_profile(
    epsilons, gaussian_profile(noise, epsilons)
  )
  seen = from_rdp.log_false > -12
  s = np.exp(from_rdp.log_false[seen])
  exact = stats.norm.cdf(stats.norm.ppf(s) + 1 / noise)
  # Moments tell less than the whole curve.
  for power, error in ((from_profile, 1e-3), (from_rdp, 0.2)):
    found = np.exp(power.log_true[seen])
    assert (found >= exact * (1 - 1e-12)).all()
    assert (found - exact).max() < error
  joint = tradeoff.both(from_rdp, from_profile)
  assert (joint.log_true <= from_rdp.log_true).all()
  assert (np.diff(joint.log_true[1:]) >= -1e-9).all()
  assert (joint.log_true >= joint.log_false).all()


def test_randomized_response_is_met_exactly():
  # Its tests are the triangle over (0, 0), (1 - p, p), (1, 1).
  p = 0.7
  bound = np.log(p / (1 - p))
  power = tradeoff.from_profile(np.array([bound]), np.array([0.0]))
  s = np.exp(power.log_false[1:])
  exact = np.minimum(s * p / (1 - p), 1 - (1 - s) * (1 - p) / p)
  np.testing.assert_allclose(np.exp(power.log_true[1:]), exact, rtol=1e-12)
  orders = np.concatenate([np.linspace(1.1, 9, 40), [20, 100, 1e4, 1e6]])
  yes, no = np.log(p), np.log(1 - p)
  epsilons = np.logaddexp(
    orders * yes + (1 - orders) * no, orders * no + (1 - orders) * yes
  ) / (orders - 1)
  from_rdp = tradeoff.from_rdp(accounting.RdpCurve(orders, epsilons))
  found = np.exp(from_rdp.log_true[1:])
  assert (found >= exact - 1e-9).all()
  # The best test says what the output says; no other comes near its corner.
  corner = np.argmin(np.abs(s - (1 - p)))
  np.testing.assert_allclose(found[corner], p, atol=1e-3)


def test_without_privacy_every_test_is_possible():
  curve = accounting.RdpCurve(np.array([2.0, 4.0]), np.full(2, np.inf))
  assert (tradeoff.from_rdp(curve).log_true == 0).all()


def test_with_perfect_privacy_no_test_is():
  orders = np.array([2.0, 8.0, 64.0])
  power = tradeoff.from_rdp(accounting.RdpCurve(orders, np.zeros(3)))
  np.testing.assert_allclose(
    np.exp(power.log_true), np.exp(power.log_false), atol=1e-4
  )
