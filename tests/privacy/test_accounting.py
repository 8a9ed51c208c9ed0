"""Accounting against published figures, closed forms and its own refusals."""

import json
import math

import numpy as np
import pytest
from scipy import optimize
from scipy import special
from scipy import stats

from repjax import types
from repjax.privacy import accounting
from repjax.privacy import statements

dp_accounting = pytest.importorskip('dp_accounting')

# 60 epochs of MNIST in batches of 256.
MNIST = dict(
  noise_multiplier=1.1, sampling_rate=256 / 60000, steps=14062, delta=1e-5
)
# Three epochs of SST-2 in batches of 1,000 (Li et al., ICLR 2022).
SST2 = dict(
  sampling_rate=1000 / 67349, steps=math.ceil(3 * 67.349), delta=0.5 / 67349
)


def test_the_figures_of_mnist():
  found = accounting.epsilon(**MNIST, accountant='rdp')
  np.testing.assert_allclose(found, 2.5966, atol=2e-4)
  # Rounded up on a grid of privacy losses, so a finer grid has a lower one.
  found = accounting.epsilon(**MNIST, accountant='pld')
  assert 2.375 < found <= 2.3905


def test_the_noise_of_sst2():
  found = accounting.noise_multiplier_for(3.0, **SST2, accountant='rdp')
  np.testing.assert_allclose(found, 0.8221, rtol=1e-3)
  # It is enough, and hardly more than that.
  reached = accounting.epsilon(noise_multiplier=found, **SST2, accountant='rdp')
  assert 2.99 < reached <= 3.0
  tight = accounting.epsilon(noise_multiplier=0.7619, **SST2)
  np.testing.assert_allclose(tight, 3.0, rtol=2e-3)


def gaussian_epsilon(noise, delta):
  """Balle and Wang, 2018, theorem 8: the Gaussian mechanism, exactly."""

  def gap(epsilon):
    high = stats.norm.cdf(0.5 / noise - epsilon * noise)
    low = stats.norm.cdf(-0.5 / noise - epsilon * noise)
    return high - math.exp(epsilon) * low - delta

  return optimize.brentq(gap, 0, 100)


@pytest.mark.parametrize('noise, steps', [(1.0, 1), (4.0, 9)])
def test_without_sampling_it_is_the_gaussian_mechanism(noise, steps):
  settings = dict(
    noise_multiplier=noise,
    sampling_rate=1.0,
    steps=steps,
    delta=1e-5,
    sampling='full',
  )
  exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
  found = accounting.epsilon(**settings)
  assert exact - 1e-6 <= found <= exact + 2e-3
  loose = accounting.epsilon(**settings, accountant='rdp')
  assert exact < loose < 1.2 * exact


def test_the_noise_for_an_epsilon_inverts_the_gaussian_mechanism():
  exact = gaussian_epsilon(2.5, 1e-5)
  found = accounting.noise_multiplier_for(
    exact, sampling_rate=1.0, steps=4, delta=1e-5, sampling='full'
  )
  assert 5.0 <= found <= 5.0 * 1.003


def test_the_renyi_curve_is_the_binomial_sum():
  # Mironov, Talwar and Zhang, 2019, section 3.3, at whole orders.
  curve = accounting.rdp_curve(
    noise_multiplier=1.1, sampling_rate=0.01, steps=7
  )
  for order in (2, 5, 20):
    k = np.arange(order + 1)
    terms = (
      np.log(special.comb(order, k))
      + (order - k) * math.log(0.99)
      + k * math.log(0.01)
      + (k**2 - k) / (2 * 1.1**2)
    )
    expected = 7 * special.logsumexp(terms) / (order - 1)
    found = curve.epsilons[np.flatnonzero(np.isclose(curve.orders, order))[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_epsilon_falls_with_noise_and_rises_with_steps_rate_and_certainty():
  def value(**changes):
    return accounting.epsilon(**{**MNIST, 'accountant': 'rdp', **changes})

  base = value()
  assert value(noise_multiplier=1.2) < base
  assert value(steps=10000) < base
  assert value(sampling_rate=0.004) < base
  assert value(delta=1e-4) < base
  assert value(noise_multiplier=0.0) == math.inf


def test_overflows_cost_delta():
  settings = {**MNIST, 'accountant': 'rdp'}
  base = accounting.epsilon(**settings)
  rare = accounting.epsilon(**settings, overflow=1e-15)
  # 1 % of delta is set aside.
  less = accounting.epsilon(**{**settings, 'delta': 0.99e-5})
  assert base < rare == less
  with pytest.raises(types.InputError, match='overflow too often'):
    accounting.epsilon(**settings, overflow=1e-9)


def test_an_epsilon_out_of_reach_is_an_error():
  with pytest.raises(types.InputError, match=r'out of reach.*have epsilon'):
    accounting.noise_multiplier_for(
      1e-4, sampling_rate=0.5, steps=10**6, delta=1e-7
    )
  with pytest.raises(types.InputError, match='overflow too often'):
    accounting.noise_multiplier_for(3.0, **SST2, overflow=1e-3)


def test_shuffled_batches_are_refused_with_the_reason():
  for ask in (accounting.epsilon, statements.statement):
    with pytest.raises(types.InputError, match='not Poisson samples'):
      ask(**MNIST, sampling='shuffled')


def test_a_large_delta_is_warned_about():
  settings = {**MNIST, 'accountant': 'rdp'}
  with pytest.warns(UserWarning, match='publishing one row in full'):
    accounting.epsilon(**{**settings, 'delta': 1e-4}, num_rows=10000)


def test_a_statement_says_what_it_rests_on():
  said = statements.statement(**MNIST, accountant='rdp', num_rows=60000)
  read = json.loads(json.dumps(said.to_dict()))
  np.testing.assert_allclose(read['epsilon'], 2.5966, atol=2e-4)
  assert read['sampling'] == 'Poisson'
  assert 'adding or removing' in read['neighbours']
  assert any('hyperparameters' in x for x in read['not_covered'])
  # The noise, the divisor and delta follow from it.
  assert any(
    'number of rows (or users)' in x and 'public' in x
    for x in read['not_covered']
  )
  assert read['software'].startswith('dp-accounting ')


@pytest.mark.parametrize(
  'bad',
  [
    {'noise_multiplier': -1.0},
    {'sampling_rate': 0.0},
    {'sampling_rate': 1.5},
    {'steps': 0},
    {'steps': 1.5},
    {'delta': 0.0},
    {'delta': 1.0},
    {'overflow': 1.0},
    {'sampling': 'sorted'},
    {'accountant': 'moments'},
  ],
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(types.InputError, match=next(iter(bad))):
    accounting.epsilon(**{**MNIST, **bad})


def test_targets_out_of_range_are_refused():
  with pytest.raises(types.InputError, match='target_epsilon'):
    accounting.noise_multiplier_for(0.0, **SST2)
  with pytest.raises(types.InputError, match='accountant'):
    accounting.noise_multiplier_for(1.0, **SST2, accountant='moments')
