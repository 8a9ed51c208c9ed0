"""Private tuning: laws against sums, theorems against exact integrals."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from repjax.privacy import accounting
from repjax.privacy import tuning
from repjax.privacy.search import laws
from repjax.privacy.search import tradeoff

ORDERS = np.array([1.1, 1.5, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 128, 256])


def gaussian(noise):
  """The curve of one Gaussian mechanism of sensitivity 1."""
  return accounting.RdpCurve(ORDERS, ORDERS / (2 * noise**2))


@pytest.mark.parametrize('eta', [-0.5, 0.0, 1.0])
def test_one_certain_run_is_the_base_mechanism(eta):
  law = laws.with_mean(eta, 1)
  assert set(laws.sample(law, np.random.default_rng(0), 100)) == {1}
  base = gaussian(1.0)
  chosen = tuning.rdp_of_best(base, law)
  np.testing.assert_allclose(chosen.epsilons, base.epsilons, rtol=1e-12)


def test_the_bound_is_that_of_corollary_4():
  # A curve rho * order, and orders dense enough to find the best one.
  orders = np.geomspace(1.0001, 400, 20_000)
  rho, gamma = 0.1, 0.05
  curve = accounting.RdpCurve(orders, rho * orders)
  for eta in (-0.5, 0.0, 1.0):
    law = laws.TruncatedNegativeBinomial(eta, gamma)
    chosen = tuning.rdp_by_theorem(curve, law)
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
  law = laws.TruncatedNegativeBinomial(0.5, 1e-3)
  chosen = tuning.rdp_by_theorem(curve, law)
  np.testing.assert_allclose(chosen.epsilons[-1], 2.5 * 0.3, rtol=1e-5)


def test_a_run_without_privacy_costs_the_law_at_most():
  # At lambda^ = 1 an epsilon counts for nothing, and 1 is left of gamma = 1/e.
  run = accounting.RdpCurve(np.array([2.0, 5.0]), np.array([10.0, 10.0]))
  for eta in (-0.5, 0.5, 1.0):
    law = laws.TruncatedNegativeBinomial(eta, math.exp(-1))
    expected = 10 + math.log(law.mean) / np.array([1, 4]) + (1 + eta)
    chosen = tuning.rdp_by_theorem(run, law)
    # Divergences grow with their order: that of 5 is a bound at 2.
    np.testing.assert_allclose(chosen.epsilons, expected.min(), rtol=1e-12)


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
def test_the_exact_divergence_is_below_the_bounds(eta, noise):
  run = gaussian(noise)
  power = gaussian_power(noise)
  for mean in (5.5, 10, 100):
    law = laws.with_mean(eta, mean)
    closed = tuning.rdp_by_theorem(run, law)
    numeric = tuning.rdp_by_lemma(run, law, power)
    assert (numeric.epsilons <= closed.epsilons).all()
    for order in (2, 8, 32):
      exact = exact_divergence(noise, law, order)
      assert exact <= numeric.epsilons[order == ORDERS].item()


def test_the_bound_is_not_looser_than_it_should_be():
  # Figures of an independent program.
  law = laws.with_mean(0.0, 10)
  np.testing.assert_allclose(exact_divergence(1.0, law, 8), 4.329, rtol=1e-3)
  for eta, expected in ((0.0, 6.518), (1.0, 7.622)):
    law = laws.with_mean(eta, 10)
    bound = tuning.rdp_by_theorem(gaussian(1.0), law).epsilons[
      list(ORDERS).index(8)
    ]
    np.testing.assert_allclose(bound, expected, rtol=0.02)


def test_the_exact_divergence_is_that_of_a_plain_gaussian_for_one_run():
  law = laws.TruncatedNegativeBinomial(1.0, 1 - 1e-12)
  np.testing.assert_allclose(exact_divergence(1.0, law, 8), 4.0, rtol=1e-6)


@functools.cache
def gaussian_power(noise):
  """By the mechanism's delta (Balle and Wang, 2018, theorem 8)."""
  epsilons = np.linspace(0, 30, 400)
  half, scaled = 1 / (2 * noise), epsilons * noise
  deltas = stats.norm.cdf(half - scaled) - np.exp(epsilons) * stats.norm.cdf(
    -half - scaled
  )
  return tradeoff.from_profile(epsilons, deltas)


@pytest.mark.parametrize(
  ('noise', 'eta', 'order', 'expected'),
  [(1, 0, 8, 5.55), (1, 1, 8, 5.91), (3, 0, 2, 1.10), (3, 1, 2, 1.18)],
)
def test_the_lemma_gives_the_figures_of_an_independent_program(
  noise, eta, order, expected
):
  power = gaussian_power(noise)
  law = laws.with_mean(eta, 10)
  found = tuning.rdp_by_lemma(gaussian(noise), law, power)
  at = list(ORDERS).index(order)
  # The program had no larger orders to take the least of.
  assert found.epsilons[at] <= expected * 1.002
  np.testing.assert_allclose(found.epsilons[at], expected, rtol=0.02)


# A mechanism with few outcomes, from worst to best: everything is a sum.
FINITE = {
  'response': (np.array([0.3, 0.7]), np.array([0.7, 0.3])),
  'four': (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.3, 0.3, 0.2])),
  'four, worst first': (
    np.array([0.4, 0.3, 0.2, 0.1]),
    np.array([0.2, 0.3, 0.3, 0.2]),
  ),
}


def divergence(first, second, order):
  seen = first > 0
  moment = (first[seen] ** order * second[seen] ** (1 - order)).sum()
  return math.log(moment) / (order - 1)


def finite_curve(first, second):
  return accounting.RdpCurve(
    ORDERS,
    np.array(
      [
        max(divergence(first, second, x), divergence(second, first, x))
        for x in ORDERS
      ]
    ),
  )


def finite_power(first, second):
  epsilons = np.unique(np.abs(np.log(first / second)))
  deltas = [
    max(
      np.maximum(first - np.exp(x) * second, 0).sum(),
      np.maximum(second - np.exp(x) * first, 0).sum(),
    )
    for x in epsilons
  ]
  return tradeoff.from_profile(epsilons, np.asarray(deltas))


def best_of(outcomes, law):
  """Law of the best of K outcomes, by summing over K."""
  pmf, k = law.pmf(4000), np.arange(1, 4001)
  below = np.concatenate([[0.0], np.cumsum(outcomes)]).clip(0, 1)
  generated = np.array([pmf @ x**k for x in below])
  # No trial at all publishes the default, an outcome of its own.
  return np.append(np.diff(generated), max(1 - pmf.sum(), 0.0))


@pytest.mark.parametrize('name', FINITE)
@pytest.mark.parametrize(
  'law',
  [
    laws.TruncatedNegativeBinomial(-0.5, 0.02),
    laws.TruncatedNegativeBinomial(0.0, 0.02),
    laws.TruncatedNegativeBinomial(2.0, 0.2),
    laws.Poisson(1.0),
    laws.Poisson(6.0),
  ],
)
def test_a_finite_mechanism_is_between_brute_force_and_the_theorems(name, law):
  first, second = FINITE[name]
  run, power = finite_curve(first, second), finite_power(first, second)
  closed = tuning.rdp_by_theorem(run, law)
  for known in (power, tradeoff.from_rdp(run)):
    numeric = tuning.rdp_by_lemma(run, law, known)
    # The theorem for Poisson's law can be tight; a cell of the grid is not.
    assert (numeric.epsilons <= closed.epsilons * 1.002).all()
    best = tuning.rdp_of_best(run, law, known)
    assert (best.epsilons <= closed.epsilons).all()
    assert (best.epsilons <= numeric.epsilons).all()
    chosen = best_of(first, law), best_of(second, law)
    for order, bound in zip(ORDERS, best.epsilons, strict=True):
      if order <= 64:
        assert divergence(*chosen, order) <= bound + 1e-9
        assert divergence(*chosen[::-1], order) <= bound + 1e-9


@pytest.mark.parametrize(
  'law', [laws.TruncatedNegativeBinomial(0.5, 0.02), laws.Poisson(6.0)]
)
def test_the_maximum_is_that_over_all_tests_of_randomized_response(law):
  p = 0.7
  # All tests: say yes with probability a on one output and b on the other.
  a, b = np.meshgrid(np.linspace(0, 1, 2001), np.linspace(0, 1, 2001))
  rest, rest_other = (1 - p) * a + p * b, p * a + (1 - p) * b
  with np.errstate(divide='ignore'):
    slopes = law.log_slope(np.log(rest)), law.log_slope(np.log(rest_other))
  run = finite_curve(*FINITE['response'])
  power = finite_power(*FINITE['response'])
  # One order at a time: no larger one may stand in.
  for order in (1.5, 2, 8, 32):
    brute = (order * slopes[0] - (order - 1) * slopes[1]).max()
    one = accounting.RdpCurve(
      np.array([order]), run.epsilons[order == run.orders]
    )
    found = tuning.rdp_by_lemma(one, law, power).epsilons - one.epsilons
    np.testing.assert_allclose(found * (order - 1), brute, rtol=0.02)
    assert found * (order - 1) >= brute - 1e-9


def test_the_profile_is_the_inverse_of_epsilon():
  settings = dict(noise_multiplier=2.0, sampling_rate=0.1, steps=30)
  found = [accounting.epsilon(delta=x, **settings) for x in (1e-3, 1e-6)]
  deltas = accounting.profile(np.array(found), **settings)
  np.testing.assert_allclose(deltas, [1e-3, 1e-6], rtol=2e-3)


@pytest.fixture(scope='module')
def mnist():
  """A run of DP-SGD: its curve, and what tests can tell of it."""
  settings = dict(noise_multiplier=1.1, sampling_rate=256 / 60000, steps=14062)
  run = accounting.rdp_curve(**settings)
  epsilons = np.linspace(0, 12, 121)
  profile = accounting.profile(epsilons, **settings)
  return run, tradeoff.both(
    tradeoff.from_rdp(run), tradeoff.from_profile(epsilons, profile)
  )


def test_costs_and_naive_composition(mnist):
  run, power = mnist
  one = tuning.epsilon(run, 1e-5)
  np.testing.assert_allclose(one, 2.5966, atol=2e-4)
  expected = {
    0.0: (4.294, 5.114, 5.777),
    0.5: (4.696, 5.753, 6.603),
    1.0: (5.049, 6.374, 7.444),
    math.inf: (5.75, 24.1),
  }
  for eta, costs in expected.items():
    last = one
    for mean, cost in zip((10, 100, 1000), costs, strict=False):
      if eta == math.inf:
        law = laws.Poisson(mean)
      else:
        law = laws.with_mean(eta, mean)
      closed = tuning.epsilon(tuning.rdp_by_theorem(run, law), 1e-5)
      np.testing.assert_allclose(closed, cost, atol=6e-4 if eta < 2 else 0.05)
      found = tuning.epsilon_of_best(run, law, 1e-5, power=power)
      naive = accounting.RdpCurve(run.orders, mean * run.epsilons)
      assert last < found < closed < tuning.epsilon(naive, 1e-5)
      last = found


def test_a_cut_number_of_trials_is_paid_for_by_delta(mnist):
  run, power = mnist
  law = laws.with_mean(0.0, 10)
  whole = tuning.epsilon_of_best(run, law, 1e-5, power=power)
  limit = laws.most(law, 1e-10)
  cut = tuning.epsilon_of_best(run, law, 1e-5, power=power, limit=limit)
  assert whole < cut < 1.01 * whole
  with pytest.raises(ValueError, match='trials at most') as error:
    tuning.epsilon_of_best(run, law, 1e-5, power=power, limit=20)
  allowed = int(str(error.value).split()[-4])
  tuning.epsilon_of_best(run, law, 1e-5, power=power, limit=allowed)
  for more in (dict(limit=allowed - 1), dict(limit=allowed, lost=1e-6)):
    with pytest.raises(ValueError, match='covers a loss'):
      tuning.epsilon_of_best(run, law, 1e-5, power=power, **more)


def test_a_plan_is_the_cheapest_law(mnist):
  run, power = mnist
  etas = (-0.5, 0.0, 1.0)
  by_mean = tuning.plan(run, delta=1e-5, mean=30, etas=etas, power=power)
  assert by_mean.law.eta == -0.5
  np.testing.assert_allclose(by_mean.mean, 30, rtol=1e-6)
  by_rank = tuning.plan(run, delta=1e-5, mean_rank=0.8, etas=etas, power=power)
  np.testing.assert_allclose(by_rank.mean_rank, 0.8, rtol=1e-6)
  for eta in etas[1:]:  # eta = -1/2 does not get there at all.
    law = laws.with_mean_rank(eta, 0.8)
    assert by_rank.epsilon <= tuning.epsilon_of_best(
      run, law, 1e-5, power=power
    )
  law = tuning.plan(run, delta=1e-5, mean_rank=0.5, power=power)
  np.testing.assert_allclose(law.epsilon, tuning.epsilon(run, 1e-5))
  with pytest.raises(ValueError, match='one of mean and mean_rank'):
    tuning.plan(run, delta=1e-5, power=power)


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
    law = laws.Poisson(20)
  else:
    law = laws.with_mean(shape, 20)
  run = accounting.RdpCurve(ORDERS, 5 * gaussian(10.0).epsilons)
  found = tuning.rdp_by_theorem(run, law)
  expected = np.minimum.accumulate(accountant.rdp[::-1])[::-1]
  np.testing.assert_allclose(found.epsilons, expected, rtol=1e-7)


def test_more_trials_and_larger_shapes_cost_more():
  run = gaussian(2.0)
  power = tradeoff.from_rdp(run)
  costs = [
    [
      tuning.epsilon_of_best(run, laws.with_mean(eta, mean), 1e-6, power=power)
      for mean in (1, 2, 10, 100)
    ]
    for eta in (-0.9, -0.5, 0, 0.5, 1, 2)
  ]
  assert (np.diff(costs, axis=1) > 0).all()
  assert (np.diff(np.array(costs)[:, 1:], axis=0) > 0).all()


def test_curves_that_are_none_are_refused():
  law = laws.TruncatedNegativeBinomial(1.0, 0.5)
  with pytest.raises(ValueError, match='orders above 1'):
    tuning.rdp_of_best(accounting.RdpCurve([1.0, 2.0], [0.1, 0.2]), law)
  with pytest.raises(ValueError, match='mean'):
    laws.with_mean(1.0, 0.5)
