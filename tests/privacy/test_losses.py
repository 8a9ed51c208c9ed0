"""Privacy losses against closed forms and three other accountants."""

import math

import mpmath
import numpy as np
import pytest

from repjax.privacy import accounting
from repjax.privacy import losses

# 1,024 of ImageNet's rows a step, for 90 epochs.
IMAGENET = dict(sampling_rate=1024 / 1281167, steps=112603, delta=0.5 / 1281167)
SHORT = dict(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)


def one_step(noise, rate, epsilon):
  """Delta of one step, the larger of both directions, with 60 digits."""
  with mpmath.workdps(60):
    noise, rate = mpmath.mpf(noise), mpmath.mpf(rate)

    def above(x):
      return mpmath.erfc(x / noise / mpmath.sqrt(2)) / 2

    def point(loss):
      inner = (mpmath.exp(loss) - 1 + rate) / rate
      return noise**2 * mpmath.log(inner) + mpmath.mpf(1) / 2

    x = point(epsilon)
    with_row = (1 - rate) * above(x) + rate * above(x - 1)
    removed = with_row - mpmath.exp(epsilon) * above(x)
    if math.exp(-epsilon) <= 1 - rate:
      return float(removed)
    x = point(-epsilon)
    with_row = (1 - rate) * above(-x) + rate * above(1 - x)
    return float(max(removed, above(-x) - mpmath.exp(epsilon) * with_row))


@pytest.mark.parametrize('delta', [1e-3, 1e-8, 1e-30, 1e-100])
@pytest.mark.parametrize('noise, rate', [(1.0, 0.01), (0.6, 0.5), (3.0, 0.9)])
def test_one_step_is_the_closed_form(noise, rate, delta):
  found = accounting.epsilon(
    noise_multiplier=noise, sampling_rate=rate, steps=1, delta=delta
  )
  if found == 0:
    assert one_step(noise, rate, 0.0) <= delta
    return
  assert one_step(noise, rate, found) <= delta
  assert one_step(noise, rate, 0.999 * found) > delta


@pytest.mark.parametrize('delta', [1e-2, 1e-9, 1e-14, 1e-30, 1e-200])
def test_many_steps_are_composed_exactly_however_small_delta_is(delta):
  # A rate of nearly 1 is the Gaussian mechanism, which has a closed form.
  full = dict(noise_multiplier=8.0, steps=40, delta=delta)
  exact = accounting.epsilon(**full, sampling_rate=1.0)
  found = accounting.epsilon(**full, sampling_rate=1 - 1e-9)
  assert exact * (1 - 1e-6) <= found <= exact * (1 + 1e-3)


@pytest.mark.parametrize(
  'rate, noise, steps, delta, theirs',
  [
    # prv-accountant 0.2.0 (Gopi et al., 2021), the middle of its interval.
    (1e-4, 1.0, 20_000, 1e-8, 0.08782621),
    (1e-5, 1.0, 200_000, 1e-9, 0.02837229),
    (1e-3, 34.8, 10_000, 1e-6, 0.00870724),
    (256 / 60000, 1.1, 14_062, 1e-5, 2.38159954),
    (1e-2, 1.0, 1000, 1e-10, 3.29044569),
    (1024 / 60000, 0.8124622813, 1172, 1e-8, 7.98877666),
    (1024 / 1281167, 0.5616, 112_603, 0.5 / 1281167, 7.98612404),
  ],
)
def test_epsilon_is_that_of_a_numerical_accountant(
  rate, noise, steps, delta, theirs
):
  found = accounting.epsilon(
    noise_multiplier=noise, sampling_rate=rate, steps=steps, delta=delta
  )
  assert theirs * (1 - 1e-4) < found < theirs * (1 + 1e-3)


def test_epsilon_is_that_of_dp_accounting_on_a_fine_grid():
  pld = pytest.importorskip('dp_accounting.pld')
  theirs = pld.privacy_loss_distribution.from_gaussian_mechanism(
    1.0, value_discretization_interval=2e-4, sampling_prob=0.01
  ).self_compose(1000)
  found = accounting.epsilon(**SHORT, delta=1e-6)
  np.testing.assert_allclose(
    found, theirs.get_epsilon_for_delta(1e-6), rtol=1e-3
  )
  at = np.array([0.5, 1.0, 2.0])
  np.testing.assert_allclose(
    accounting.profile(at, **SHORT),
    [theirs.get_delta_for_epsilon(float(x)) for x in at],
    rtol=5e-3,
  )


def test_a_small_delta_costs_little_and_never_more_than_by_renyi():
  before = 0.0
  for delta in (1e-10, 1e-13, 1e-14, 1e-15, 1e-16, 1e-30):
    found = accounting.epsilon(**SHORT, delta=delta)
    loose = accounting.epsilon(**SHORT, delta=delta, accountant='rdp')
    assert before < found < loose < 1.2 * found
    before = found
  # 8.78 and infinity, where a transform of 1e-16 of all mass decided.
  assert 4.54 < accounting.epsilon(**SHORT, delta=1e-14) < 4.55
  assert 4.85 < accounting.epsilon(**SHORT, delta=1e-15) < 4.86


@pytest.mark.parametrize(
  'target, settings, noise',
  [
    (8.0, IMAGENET, 0.5616),
    (8.0, dict(sampling_rate=1024 / 60000, steps=1172, delta=1e-20), 1.0932),
    (3.0, dict(sampling_rate=0.01, steps=100, delta=1e-16), 1.1223),
    (0.01, dict(sampling_rate=1e-3, steps=10_000, delta=1e-6), 30.66),
    (0.001, dict(sampling_rate=1e-3, steps=10_000, delta=1e-6), 243.7),
  ],
)
def test_the_noise_is_the_least_to_a_thousandth(target, settings, noise):
  found = accounting.noise_multiplier_for(target, **settings)
  np.testing.assert_allclose(found, noise, rtol=2e-3)
  spent = accounting.epsilon(noise_multiplier=found, **settings)
  assert 0.995 * target < spent <= target


def test_rounding_is_upwards_and_within_what_is_said(monkeypatch):
  cases = [
    dict(SHORT, delta=1e-6),
    dict(SHORT, delta=1e-30),
    dict(SHORT, sampling_rate=1e-4, noise_multiplier=0.7, delta=1e-8),
    dict(SHORT, sampling_rate=0.3, noise_multiplier=30.0, delta=1e-6),
  ]
  coarse = [accounting.epsilon(**x) for x in cases]
  monkeypatch.setattr(losses, '_ROUNDED', 1e-5)
  fine = [accounting.epsilon(**x) for x in cases]
  excess = np.array(coarse) / fine - 1
  assert (excess > 0).all()
  assert (excess < 7e-4).all()


def test_the_profile_is_the_inverse_of_epsilon():
  for delta in (1e-2, 1e-5, 1e-9):
    at = accounting.epsilon(**SHORT, delta=delta)
    found = accounting.profile(np.array([at, 0.0, at / 2]), **SHORT)
    np.testing.assert_allclose(found[0], delta, rtol=1e-2)
    assert found[0] < found[2] < found[1] < 1


def test_the_largest_losses_keep_their_order():
  """So much or so little noise that numbers leave their usual range."""
  settings = dict(sampling_rate=0.01, steps=1000, delta=1e-5)
  values = [
    accounting.epsilon(noise_multiplier=x, **settings)
    for x in (2.0**-6, 0.1, 0.3, 30.0, 1024.0)
  ]
  assert all(math.isfinite(x) for x in values)
  assert values == sorted(values, reverse=True)
  assert values[-1] < 1e-3
