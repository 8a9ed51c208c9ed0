"""Bounds against exact laws, and audits that must and must not fail a run."""

import math

import numpy as np
import pytest
from scipy import stats

from repjax.privacy import accounting
from repjax.privacy import auditing
from repjax.protocols import canaries

DELTA = 1e-5


def gaussian_game(mu, count, seed):
  """Scores of a Gaussian mechanism: what the best attack sees."""
  rng = np.random.default_rng(seed)
  members = rng.random(count) < 0.5
  return members, mu * (members - 0.5) + rng.normal(size=count)


def test_without_delta_the_bound_is_that_of_randomized_response():
  # All canaries answered with truth at rate e / (1 + e): epsilon is 1.
  rng = np.random.default_rng(0)
  rate = math.e / (1 + math.e)
  bounds = []
  for _ in range(60):
    members = rng.random(2000) < 0.5
    answers = np.where(rng.random(2000) < rate, members, ~members)
    scores = np.where(answers, 1.0, -1.0)
    bounds.append(auditing.epsilon_lower_bound(scores, members, delta=0.0))
  # Right in 95 % of the cases, and not by being 0.
  assert np.mean(np.array(bounds) > 1) <= 0.1
  assert np.mean(bounds) > 0.6


def test_p_values_are_tails_of_the_binomial_and_delta_only_raises_them():
  for guesses, correct, epsilon in [(10, 9, 0.5), (50, 40, 1.0), (7, 7, 0.0)]:
    rate = 1 / (1 + math.exp(-epsilon))
    tail = sum(
      math.comb(guesses, k) * rate**k * (1 - rate) ** (guesses - k)
      for k in range(correct, guesses + 1)
    )
    exact = auditing._p_value(100, guesses, correct, epsilon, 0.0)
    assert exact == pytest.approx(tail)
    higher = [
      auditing._p_value(100, guesses, correct, epsilon, delta)
      for delta in (1e-6, 1e-4, 1e-2)
    ]
    assert sorted([exact, *higher]) == [exact, *higher]


def test_gaussian_epsilon_is_that_of_the_accountant():
  for noise, steps in [(1.0, 1), (2.0, 4), (5.0, 3)]:
    expected = accounting.epsilon(
      noise_multiplier=noise,
      sampling_rate=1.0,
      steps=steps,
      delta=DELTA,
      sampling='full',
    )
    found = auditing.gaussian_epsilon(math.sqrt(steps) / noise, DELTA)
    assert found == pytest.approx(expected, rel=1e-2)
    # From the definition: delta is what the likelihood ratio leaves.
    mu = math.sqrt(steps) / noise
    a = stats.norm.sf(found / mu - mu / 2)
    b = stats.norm.sf(found / mu + mu / 2)
    assert a - math.exp(found) * b == pytest.approx(DELTA, rel=1e-2)
  assert auditing.gaussian_epsilon(0.0, DELTA) == 0


@pytest.mark.parametrize('mu', [0.5, 1.0])
def test_the_gaussian_bound_holds_and_sees_half_of_the_noise(mu):
  claimed = auditing.gaussian_epsilon(mu, DELTA)
  above = {1: 0, 2: 0}
  for factor in above:
    for seed in range(20):
      members, scores = gaussian_game(factor * mu, 4000, seed)
      bound = auditing.gaussian_lower_bound(scores, members, delta=DELTA)
      above[factor] += bound > claimed
      general = auditing.epsilon_lower_bound(scores, members, delta=DELTA)
      truth = auditing.gaussian_epsilon(factor * mu, DELTA)
      assert general <= truth
  assert above[1] <= 2
  assert above[2] >= 18


def test_guesses_at_random_prove_nothing():
  rng = np.random.default_rng(0)
  bounds = [
    auditing.epsilon_lower_bound(
      rng.normal(size=300), rng.random(300) < 0.5, delta=DELTA
    )
    for _ in range(40)
  ]
  assert np.mean(np.array(bounds) > 0) <= 0.1


def test_scores_that_are_equal_tell_nothing():
  members = np.arange(200) < 100  # In the order of the scores, were it kept.
  assert auditing.epsilon_lower_bound(np.ones(200), members, delta=0.0) == 0


@pytest.fixture(scope='module')
def audits():
  """Audits of runs with all and with half of the claimed noise."""
  settings = dict(
    noise_multiplier=2.0,
    steps=4,
    num_canaries=2000,
    num_trials=4,
    delta=DELTA,
    seed=0,
  )
  return {
    share: canaries.audit(share=share, **settings) for share in (1.0, 0.5)
  }


def test_a_correct_run_of_dp_sgd_passes(audits):
  found = audits[1.0]
  assert found['runs it refutes'] <= 1 / 4
  assert found['runs that one refutes'] == 0
  # The canaries are strong: the bound is far from 0.
  assert found['Gaussian lower bound, mean'] > found['claimed epsilon'] / 3


def test_half_of_the_noise_is_found_out(audits):
  assert audits[0.5]['runs it refutes'] >= 3 / 4


def test_what_cannot_be_audited_is_refused():
  members = np.ones(4, bool)
  with pytest.raises(ValueError, match='one score a canary'):
    auditing.play(lambda members: members[:2], num_canaries=4, seed=0)
  with pytest.raises(ValueError, match='finite'):
    auditing.epsilon_lower_bound(np.full(4, np.nan), members, delta=0.0)
  with pytest.raises(ValueError, match='confidence'):
    auditing.epsilon_lower_bound(np.ones(4), members, delta=0.0, confidence=1.0)
  with pytest.raises(ValueError, match='delta'):
    auditing.gaussian_lower_bound(np.ones(4), members, delta=0.0)
