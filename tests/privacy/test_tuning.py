"""Private tuning: laws against sums, theorems against exact integrals."""

import math

import numpy as np
import pytest
from scipy import stats

from repjax.privacy import accounting
from repjax.privacy import tuning

pytestmark = pytest.mark.slow

ORDERS = np.array([1.1, 1.5, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 128, 256])


def gaussian(noise):
  """The curve of one Gaussian mechanism of sensitivity 1."""
  return accounting.RdpCurve(ORDERS, ORDERS / (2 * noise**2))


LAWS = [
  tuning.TruncatedNegativeBinomial(eta, gamma)
  for eta in (-0.5, 0, 0.5, 1, 3)
  for gamma in (0.05, 0.4)
]


@pytest.mark.parametrize('law', LAWS)
def test_the_mass_and_the_mean_are_those_of_definition_1(law):
  eta, gamma = law
  count = 2000
  pmf = law.pmf(count)
  np.testing.assert_allclose(pmf.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(pmf @ np.arange(1, count + 1), law.mean, rtol=1e-6)
  if eta == 0:
    np.testing.assert_allclose(
      pmf[:20], stats.logser.pmf(np.arange(1, 21), 1 - gamma)
    )
  elif eta == 1:
    np.testing.assert_allclose(
      pmf[:20], stats.geom.pmf(np.arange(1, 21), gamma)
    )
  elif eta > 0:
    negative = stats.nbinom.pmf(np.arange(21), eta, gamma)
    np.testing.assert_allclose(pmf[:20], negative[1:] / (1 - negative[0]))


@pytest.mark.parametrize('law', LAWS)
def test_samples_follow_the_law(law):
  drawn = law.sample(np.random.default_rng(0), 200_000)
  assert drawn.min() == 1
  np.testing.assert_allclose(drawn.mean(), law.mean, rtol=0.02)
  pmf = law.pmf(12)
  found = np.bincount(drawn, minlength=13)[1:13]
  rest = 200_000 - found.sum()
  expected = 200_000 * np.append(pmf, 1 - pmf.sum())
  keep = expected > 5
  found, expected = np.append(found, rest)[keep], expected[keep]
  expected *= found.sum() / expected.sum()
  assert stats.chisquare(found, expected).pvalue > 1e-4


def test_a_law_is_found_by_its_mean():
  for eta in (-0.9, 0, 0.5, 1, 10):
    for mean in (1.5, 10, 1000):
      law = tuning.truncated_negative_binomial(eta, mean)
      assert mean <= law.mean
      np.testing.assert_allclose(law.mean, mean, rtol=1e-6)


@pytest.mark.parametrize('eta', [-0.5, 0.0, 1.0])
def test_one_certain_run_is_the_base_mechanism(eta):
  law = tuning.truncated_negative_binomial(eta, 1)
  assert set(law.sample(np.random.default_rng(0), 100)) == {1}
  base = gaussian(1.0)
  chosen = tuning.rdp_of_best(base, law)
  np.testing.assert_allclose(chosen.epsilons, base.epsilons, rtol=1e-12)


def test_the_bound_is_that_of_corollary_4():
  # A curve rho * order, and orders dense enough to find the best one.
  orders = np.geomspace(1.0001, 400, 20_000)
  rho, gamma = 0.1, 0.05
  curve = accounting.RdpCurve(orders, rho * orders)
  for eta in (-0.5, 0.0, 1.0):
    law = tuning.TruncatedNegativeBinomial(eta, gamma)
    chosen = tuning.rdp_of_best(curve, law)
    turn = 1 + math.sqrt(math.log(law.mean) / rho)
    both = 2 * (1 + eta) * math.sqrt(rho * math.log(1 / gamma))
    flat = 2 * math.sqrt(rho * math.log(law.mean)) + both - eta * rho
    steep = (
      rho * (orders - 1) + math.log(law.mean) / (orders - 1) + both - eta * rho
    )
    expected = np.where(orders <= turn, flat, steep)
    np.testing.assert_allclose(chosen.epsilons, expected, rtol=1e-4)


def test_pure_privacy_costs_2_plus_eta_times_epsilon():
  # Corollary 3: at order infinity, where one run has epsilon.
  orders = np.array([2.0, 1e8])
  curve = accounting.RdpCurve(orders, np.array([0.3, 0.3]))
  law = tuning.TruncatedNegativeBinomial(0.5, 1e-3)
  chosen = tuning.rdp_of_best(curve, law)
  np.testing.assert_allclose(chosen.epsilons[-1], 2.5 * 0.3, rtol=1e-5)


def exact_divergence(noise, law, order):
  """Renyi divergence of the best of K Gaussian outputs, by integration.

  Outputs are ordered by their value, so the density of the best is
  q(y) f'(Q(y)), with f' the derivative of the law's generating function.
  """
  eta, gamma = law

  def slope(x):
    if eta == 0:
      return (1 - gamma) / (1 - (1 - gamma) * x) / -math.log(gamma)
    return law.mean * gamma ** (eta + 1) * (1 - (1 - gamma) * x) ** (-eta - 1)

  def log_density(y, mean):
    z = y - mean / noise
    return stats.norm.logpdf(z) + np.log(slope(stats.norm.cdf(z)))

  worst = 0.0
  for first, second in ((0, 1), (1, 0)):
    y = np.linspace(-40, 40 + 20 / noise, 40_001)
    a, b = log_density(y, first), log_density(y, second)
    total = np.logaddexp.reduce(order * a + (1 - order) * b) + math.log(
      y[1] - y[0]
    )
    worst = max(worst, total / (order - 1))
  return worst


@pytest.mark.parametrize('eta', [-0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize('noise', [1.0, 3.0])
def test_the_exact_divergence_is_below_the_bound(eta, noise):
  for mean in (5.5, 10, 100):
    law = tuning.truncated_negative_binomial(eta, mean)
    chosen = tuning.rdp_of_best(gaussian(noise), law)
    for order in (2, 8, 32):
      exact = exact_divergence(noise, law, order)
      assert exact <= chosen.epsilons[order == ORDERS].item()


def test_the_bound_is_not_looser_than_it_should_be():
  # Figures of an independent program.
  law = tuning.truncated_negative_binomial(0.0, 10)
  np.testing.assert_allclose(exact_divergence(1.0, law, 8), 4.329, rtol=1e-3)
  for eta, expected in ((0.0, 6.518), (1.0, 7.622)):
    law = tuning.truncated_negative_binomial(eta, 10)
    bound = tuning.rdp_of_best(gaussian(1.0), law).epsilons[
      list(ORDERS).index(8)
    ]
    np.testing.assert_allclose(bound, expected, rtol=0.02)


def test_the_exact_divergence_is_that_of_a_plain_gaussian_for_one_run():
  law = tuning.TruncatedNegativeBinomial(1.0, 1 - 1e-12)
  np.testing.assert_allclose(exact_divergence(1.0, law, 8), 4.0, rtol=1e-6)


def mnist():
  return accounting.rdp_curve(
    noise_multiplier=1.1, sampling_rate=256 / 60000, steps=14062
  )


def test_costs_and_naive_composition():
  pytest.importorskip('dp_accounting')
  run = mnist()
  one = tuning.epsilon(run, 1e-5)
  np.testing.assert_allclose(one, 2.5966, atol=2e-4)
  expected = {
    0.0: (4.294, 5.114, 5.777),
    0.5: (4.696, 5.753, 6.603),
    1.0: (5.049, 6.374, 7.444),
  }
  for eta, costs in expected.items():
    last = one
    for mean, cost in zip((10, 100, 1000), costs, strict=True):
      law = tuning.truncated_negative_binomial(eta, mean)
      found = tuning.epsilon_of_best(run, law, 1e-5)
      np.testing.assert_allclose(found, cost, atol=2e-3)
      naive = accounting.RdpCurve(run.orders, mean * run.epsilons)
      assert last < found < tuning.epsilon(naive, 1e-5)
      last = found


@pytest.mark.parametrize('shape', [0.0, 0.5, 1.0, math.inf])
def test_it_is_what_dp_accounting_says(shape):
  dp_accounting = pytest.importorskip('dp_accounting')
  accountant = dp_accounting.rdp.RdpAccountant(orders=ORDERS)
  event = dp_accounting.SelfComposedDpEvent(
    dp_accounting.GaussianDpEvent(10.0), 5
  )
  accountant.compose(
    dp_accounting.dp_event.RepeatAndSelectDpEvent(event, mean=20, shape=shape)
  )
  if shape == math.inf:
    law = tuning.Poisson(20)
  else:
    law = tuning.truncated_negative_binomial(shape, 20)
  run = accounting.RdpCurve(ORDERS, 5 * gaussian(10.0).epsilons)
  found = tuning.rdp_of_best(run, law)
  expected = np.minimum.accumulate(accountant.rdp[::-1])[::-1]
  np.testing.assert_allclose(found.epsilons, expected, rtol=1e-7)


def test_more_trials_and_larger_shapes_cost_more():
  run = gaussian(2.0)
  costs = [
    [
      tuning.epsilon_of_best(
        run, tuning.truncated_negative_binomial(eta, mean), 1e-6
      )
      for mean in (1, 2, 10, 100)
    ]
    for eta in (-0.9, -0.5, 0, 0.5, 1, 2)
  ]
  assert (np.diff(costs, axis=1) > 0).all()
  assert (np.diff(np.array(costs)[:, 1:], axis=0) > 0).all()


def test_poisson_trials_may_be_none():
  law = tuning.Poisson(2.0)
  drawn = law.sample(np.random.default_rng(0), 100_000)
  np.testing.assert_allclose((drawn == 0).mean(), math.exp(-2), rtol=0.05)
  np.testing.assert_allclose(law.pmf(5), stats.poisson.pmf(np.arange(1, 6), 2))


@pytest.mark.parametrize(
  'law',
  [
    tuning.TruncatedNegativeBinomial(-1.0, 0.5),
    tuning.TruncatedNegativeBinomial(1.0, 0.0),
    tuning.TruncatedNegativeBinomial(1.0, 1.5),
    tuning.Poisson(0.5),
  ],
)
def test_laws_out_of_range_are_refused(law):
  with pytest.raises(ValueError, match='Need'):
    tuning.rdp_of_best(gaussian(1.0), law)


def test_curves_that_are_none_are_refused():
  law = tuning.TruncatedNegativeBinomial(1.0, 0.5)
  with pytest.raises(ValueError, match='orders above 1'):
    tuning.rdp_of_best(accounting.RdpCurve([1.0, 2.0], [0.1, 0.2]), law)
  with pytest.raises(ValueError, match='mean'):
    tuning.truncated_negative_binomial(1.0, 0.5)
