"""Validation alone chooses the epoch and the rate of a forecaster."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.data.series import series as seriess
from repjax.data.series import windows
from repjax.methods import forecasting as methods
from repjax.methods import naive_forecasts
from repjax.models import forecast
from repjax.protocols import forecasting
from repjax.protocols import side_by_side


class _Constant(nn.Module):
  """Forecasts one number, whatever it reads."""

  @nn.compact
  def __call__(self, series, covariates, *, train, mask, entity):
    mean = self.param('mean', nn.initializers.zeros, (1, 1, 1))
    return forecast.Forecast(jnp.broadcast_to(mean, (len(series), 1, 1)), None)


def _rows():
  """Training wants 1, validation 0.45, the test 2."""

  def of(value, count):
    series = seriess.from_arrays('x', np.full(count + 1, value))
    return windows.windows(series, length=1, horizon=1).columns()

  return {
    'train': of(1.0, 8),
    'validation': of(0.45, 70),  # More than a chunk.
    'test': of(2.0, 3),
  }


def _train(rates):
  method = methods.make(_Constant(), side_by_side.swept(optax.sgd(1.0)))
  return forecasting.train(
    'constant',
    method,
    _rows(),
    seeds=(0, 1),
    rates=rates,
    batch_size=4,
    steps=10,
    points=10,
  )


def test_what_is_kept_was_best_on_validation():
  chosen = _train((0.1,))
  # A step of rate 0.1 on (mean - 1)^2: the mean is 1 - 0.8^t.
  means = 1 - 0.8 ** np.arange(1, 11)
  errors = np.square(means - 0.45)
  assert chosen.step.tolist() == [1 + errors.argmin()] * 2
  np.testing.assert_allclose(
    chosen.curve[1], np.stack([errors, errors], 1), atol=1e-5
  )
  best = means[errors.argmin()]
  scores = chosen.scores(_rows()['test'])
  np.testing.assert_allclose(scores['mse'], [(2 - best) ** 2] * 2, rtol=1e-4)
  np.testing.assert_allclose(scores['mae'], [2 - best] * 2, rtol=1e-4)


def test_the_rate_is_chosen_there_too():
  # A rate of 0.225 is at 0.45 after one step.
  chosen = _train((0.01, 0.225, 0.5))
  assert chosen.rate == 0.225
  assert chosen.step.tolist() == [1, 1]
  assert list(chosen.by_rate) == [0.01, 0.225, 0.5]
  with pytest.raises(types.InputError, match='rates must name one'):
    _train(())


def test_naive_forecasts_are_measured_on_the_test_windows():
  values = np.tile([0.0, 1.0, 2.0], 20)
  series = seriess.from_arrays('x', values)
  source = windows.windows(series, length=6, horizon=3)
  found = forecasting.naive(source, source, source.columns(), period=3)
  assert found['seasonal'] == {'mse': 0, 'mae': 0}
  # A season has one row of each distance from the last: 1, 2 or -1, ...
  assert found['last']['mse'] == pytest.approx(
    (0 + 1 + 4 + 1 + 0 + 1 + 4 + 1) / 9, rel=0.05
  )
  assert found['linear']['mse'] < 1e-2


def test_the_linear_map_is_fitted_to_training_and_its_ridge_is_not():
  rng = np.random.default_rng(0)

  def walk(count):
    series = seriess.from_arrays('x', np.cumsum(rng.normal(size=count)))
    return windows.windows(series, length=8, horizon=1)

  few, many = walk(24), walk(300)
  # Of a random walk nothing is known: what few windows say is noise.
  kernel = naive_forecasts.fit_linear(few, many, ridges=(1e-9, 1e6))
  assert abs(kernel).max() < 1e-3
  test = many.columns()
  found = forecasting.naive(few, many, test, period=1)['linear']['mse']
  errors = [
    np.square(naive_forecasts.linear(x)(test) - test['target']).mean()
    for x in (
      naive_forecasts.fit_linear(few, many),
      naive_forecasts.fit_linear(many, few),
    )
  ]
  assert found == pytest.approx(float(errors[0]), rel=1e-4)
  assert abs(errors[0] - errors[1]) > 1e-3 * errors[0]


def test_a_rate_that_diverges_is_not_chosen_and_stops_nothing():
  for rates in ((0.225, 1e30), (1e30, 0.225)):
    with np.errstate(over='ignore'):
      chosen = _train(rates)
    assert chosen.rate == 0.225
    assert np.isinf(chosen.by_rate[1e30]).all()
  with (
    np.errstate(over='ignore'),
    pytest.raises(types.NonFiniteError, match='at every rate'),
  ):
    _train((1e30,))


class _Exponential(nn.Module):
  """Forecasts what overflows where a series is large."""

  @nn.compact
  def __call__(self, series, covariates, *, train, mask, entity):
    scale = self.param('scale', nn.initializers.zeros, (1, 1, 1))
    return forecast.Forecast((scale + 1e-3) * jnp.exp(series), None)


def test_a_network_that_has_no_finite_error_on_validation_is_not_chosen():
  method = methods.make(_Exponential(), side_by_side.swept(optax.sgd(1.0)))
  rows = _rows()
  rows['validation'] = {
    name: 1e3 * x if name == 'series' else x
    for name, x in rows['validation'].items()
  }
  settings = dict(seeds=(0, 1), rates=(0.01,), batch_size=4, steps=2)
  with pytest.raises(types.NonFiniteError, match='at every rate'):
    forecasting.train('exponential', method, rows, **settings)
