"""Laws of the number of trials: against sums, scipy and draws."""

import math

import numpy as np
import pytest
from scipy import integrate
from scipy import stats

from repjax.privacy.search import laws

LAWS = [
  laws.TruncatedNegativeBinomial(eta, gamma)
  for eta in (-0.5, 0, 0.5, 1, 3)
  for gamma in (0.05, 0.4)
]
ALL = [*LAWS, laws.Poisson(1.0), laws.Poisson(7.5)]


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
  else:  # The definition, as it is written.
    k = np.arange(1, 21)
    products = np.cumprod((k - 1 + eta) / k)
    np.testing.assert_allclose(
      pmf[:20], (1 - gamma) ** k / (gamma**-eta - 1) * products
    )


@pytest.mark.parametrize('law', ALL)
def test_slope_rank_and_tail_are_sums_over_the_mass(law):
  count = 3000
  k, pmf = np.arange(1, count + 1), law.pmf(count)
  for rest in (1e-9, 0.01, 0.3, 0.9, 1.0):
    slope = (k * pmf * (1 - rest) ** (k - 1.0)).sum()
    np.testing.assert_allclose(
      np.exp(law.log_slope(np.log(rest))), slope, rtol=1e-6
    )
    none = 1 - pmf.sum() if isinstance(law, laws.Poisson) else 0.0
    np.testing.assert_allclose(
      law.generating(1 - rest), none + pmf @ (1 - rest) ** k, rtol=1e-6
    )
  np.testing.assert_allclose(law.mean_rank, pmf @ (k / (k + 1)), rtol=1e-6)
  for at in (1, 5, 60):
    exact = pmf[at:].sum()
    assert exact - 1e-12 <= law.tail(at) <= 1
    assert law.tail(at) <= 30 * exact + 1e-12


@pytest.mark.parametrize('eta', [-0.5, 0.0, 1.0])
def test_some_trial_is_always_at_most_the_best(eta):
  # Also where 1 - gamma is 1 in floating point: warnings are errors here.
  law = laws.TruncatedNegativeBinomial(eta, 1e-30)
  np.testing.assert_allclose(law.generating(np.array([0.0, 1.0])), [0, 1])


def test_the_mean_rank_is_that_of_the_best_of_uniform_scores():
  # The integral of 1 - f, which E max is for scores that are uniform.
  law = laws.TruncatedNegativeBinomial(-0.5, 0.01)
  pmf = law.pmf(6000)
  k = np.arange(1, 6001)
  area, _ = integrate.quad(lambda x: pmf @ x**k, 0, 1, limit=200)
  np.testing.assert_allclose(law.mean_rank, 1 - area, atol=1e-6)
  rng = np.random.default_rng(0)
  drawn = laws.sample(law, rng, 100_000)
  found = rng.random(100_000) ** (1 / drawn)  # The largest of K uniforms.
  np.testing.assert_allclose(found.mean(), law.mean_rank, atol=0.003)


@pytest.mark.parametrize('law', ALL)
def test_samples_follow_the_law(law):
  drawn = laws.sample(law, np.random.default_rng(0), 200_000)
  assert drawn.min() == (0 if isinstance(law, laws.Poisson) else 1)
  np.testing.assert_allclose(drawn.mean(), law.mean, rtol=0.02)
  pmf = law.pmf(12)
  found = np.bincount(drawn, minlength=13)[1:13]
  rest = 200_000 - found.sum()  # None at all, or many.
  expected = 200_000 * np.append(pmf, 1 - pmf.sum())
  keep = expected > 5
  found, expected = np.append(found, rest)[keep], expected[keep]
  expected *= found.sum() / expected.sum()
  assert stats.chisquare(found, expected).pvalue > 1e-4


def test_a_law_is_found_by_its_mean_and_by_its_rank():
  for eta in (-0.9, 0, 0.5, 1, 10, 2000):
    for mean in (1.5, 10, 1000):
      law = laws.with_mean(eta, mean)
      assert mean <= law.mean
      np.testing.assert_allclose(law.mean, mean, rtol=1e-6)
      # Large shapes come near Poisson's, where a search is never skipped.
      if eta == 2000 and mean == 10:
        np.testing.assert_allclose(
          law.pmf(30), laws.Poisson(10.0).pmf(30), atol=1e-3
        )
    rank = 0.52 if eta < 0 else 0.9
    law = laws.with_mean_rank(eta, rank)
    np.testing.assert_allclose(law.mean_rank, rank, rtol=1e-6)
  assert laws.with_mean(0.5, 1) == (0.5, 1.0)
  assert laws.with_mean_rank(0.5, 0.5) == (0.5, 1.0)


def test_what_cannot_be_reached_is_refused():
  # With eta below 0 most searches are short, however long the mean one is.
  with pytest.raises(ValueError, match='rank'):
    laws.with_mean_rank(-0.9, 0.9)
  with pytest.raises(ValueError, match='mean'):
    laws.with_mean(-0.999, 10)
  with pytest.raises(ValueError, match='mean'):
    laws.with_mean(1.0, 0.5)
  with pytest.raises(ValueError, match='larger eta'):
    laws.most(laws.with_mean(-0.9, 10))


def test_the_number_of_trials_has_a_limit_that_is_hardly_reached():
  law = laws.with_mean(0.0, 10)
  limit = laws.most(law, 1e-9)
  k = np.arange(1, 40 * limit)
  tail = law.pmf(len(k))[limit:].sum()
  assert tail <= 1e-9 < 2 * law.pmf(limit)[-1] + tail * 30
  drawn = laws.sample(law, np.random.default_rng(0), 10_000, limit=20)
  assert drawn.max() == 20
  np.testing.assert_allclose(
    (drawn == 20).mean(), 1 - law.pmf(19).sum(), atol=0.01
  )


def test_poisson_trials_may_be_none():
  law = laws.Poisson(2.0)
  drawn = laws.sample(law, np.random.default_rng(0), 100_000)
  np.testing.assert_allclose((drawn == 0).mean(), math.exp(-2), rtol=0.05)
  np.testing.assert_allclose(law.pmf(5), stats.poisson.pmf(np.arange(1, 6), 2))


@pytest.mark.parametrize(
  'law',
  [
    laws.TruncatedNegativeBinomial(-1.0, 0.5),
    laws.TruncatedNegativeBinomial(math.inf, 0.5),
    laws.TruncatedNegativeBinomial(1.0, 0.0),
    laws.TruncatedNegativeBinomial(1.0, 1.5),
    laws.Poisson(0.5),
  ],
)
def test_laws_out_of_range_are_refused(law):
  with pytest.raises(ValueError, match='Need'):
    laws.most(law)
