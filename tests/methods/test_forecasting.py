"""Forecasts: their losses, the naive ones, and how they are measured."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate
from scipy import stats

from repjax import types
from repjax.data.series import series as seriess
from repjax.data.series import windows
from repjax.methods import forecasting
from repjax.methods import naive_forecasts
from repjax.metrics import forecasting as metrics
from repjax.models import forecast


class _Fixed(nn.Module):
  """Forecasts two numbers, whatever it reads."""

  gaussian: bool = False

  @nn.compact
  def __call__(self, series, covariates, *, train, mask, entity):
    mean = self.param('mean', nn.initializers.zeros, (1, 2, 1))
    mean = jnp.broadcast_to(mean, (len(series), 2, 1))
    return forecast.Forecast(
      mean, jnp.full_like(mean, 2.0) if self.gaussian else None
    )


def _batch():
  values = [1.0, 2.0, 3.0, np.nan, 5.0]
  source = windows.windows(
    seriess.from_arrays('x', values), length=1, horizon=2
  )
  columns = source.read(np.arange(3))
  return {**columns, 'mask': np.ones(3, np.float32)}


@pytest.mark.parametrize('gaussian', [False, True])
@pytest.mark.parametrize('filled', [True, False])
def test_what_was_not_measured_counts_for_nothing(gaussian, filled):
  method = forecasting.make(_Fixed(gaussian), optax.sgd(1.0), squared_weight=3)
  batch = _batch()
  if not filled:
    measured = batch['target_observed'] > 0
    batch['target'] = np.where(measured, batch['target'], np.float32(np.nan))
  state = method.init(jax.random.key(0), batch)
  state, sums = jax.jit(method.update)(state, batch, jax.random.key(0))
  # Targets are (2, 3), (3, missing), (missing, 5).
  squares = np.array([(4 + 9) / 2, 9.0, 25.0])
  if gaussian:
    nll = [
      -stats.norm.logpdf([2, 3], 0, 2).mean(),
      -stats.norm.logpdf(3, 0, 2),
      -stats.norm.logpdf(5, 0, 2),
    ]
    expected = np.mean(nll) + 3 * squares.mean()
    per_unit = 1 / 4 + 3 * 2
  else:
    expected, per_unit = squares.mean(), 2
  np.testing.assert_allclose(
    sums['loss'][0] / sums['loss'][1], expected, rtol=1e-5
  )
  gradient = -per_unit * np.array([(2 / 2 + 3) / 3, (3 / 2 + 5) / 3])
  np.testing.assert_allclose(
    state.params['mean'][0, :, 0], -gradient, rtol=1e-5
  )


def test_a_weight_below_zero_is_refused():
  with pytest.raises(types.InputError, match='squared_weight'):
    forecasting.make(_Fixed(), optax.sgd(1.0), squared_weight=-1.0)


def test_naive_forecasts_by_hand():
  batch = {'series': np.arange(7.0).reshape(1, 7, 1)}
  last = naive_forecasts.last_value(4)(batch)
  assert last[0, :, 0].tolist() == [6, 6, 6, 6]
  seasonal = naive_forecasts.seasonal(4, period=3, length=7)(batch)
  assert seasonal[0, :, 0].tolist() == [4, 5, 6, 4]
  with pytest.raises(types.InputError, match=r'data.period=8 must be in'):
    naive_forecasts.seasonal(4, period=8, length=7)


def test_the_linear_map_finds_a_linear_rule():
  # x[t] = 1.8 x[t-1] - x[t-2] + 1: exact from two rows and a constant.
  values = [0.0, 1.0]
  for _ in range(98):
    values.append(1.8 * values[-1] - values[-2] + 1)
  one = seriess.from_arrays('x', values)
  parts = [
    windows.windows(one, length=3, horizon=4, rows=rows)
    for rows in ((0, 60), (60, 80), (80, 100))
  ]
  kernel = naive_forecasts.fit_linear(parts[0], parts[1], ridges=(1e-12, 1e3))
  test = parts[2].columns()
  np.testing.assert_allclose(
    naive_forecasts.linear(kernel)(test), test['target'], atol=1e-2
  )


def test_a_method_with_naive_ones_beside_it_learns_as_before():
  method = forecasting.make(_Fixed(), optax.sgd(1.0))
  both = naive_forecasts.beside(method, {'last': naive_forecasts.last_value(2)})
  batch = _batch()
  state = both.init(jax.random.key(0), batch)
  outputs = both.predict(state, batch)
  assert outputs['last forecast'][0, :, 0].tolist() == [1, 1]
  assert both.update is method.update


def test_measures_by_hand():
  shape = (1, 2, 1)
  outputs = {
    'forecast': np.zeros(shape),
    'last forecast': np.ones(shape),
    'target': np.array([1.0, 7.0]).reshape(shape),
    'target_observed': np.array([1.0, 0.0]).reshape(shape),
    'centre': np.array([[5.0]]),
    'scale': np.array([[2.0]]),
  }
  found = metrics.measure(outputs)
  assert found == pytest.approx(
    dict(
      mse=1,
      mae=1,
      mse_units=4,
      mae_units=2,
      nrmse=2 / 7,
      nd=2 / 7,
      crps=1,
      last_mse=0,
      last_mae=0,
    )
  )
  assert metrics.measure({**outputs, 'target_observed': np.zeros(shape)}) == {}


def test_crps_is_its_integral():
  error, deviation = np.array([0.7, -1.5]), np.array([0.5, 2.0])
  found = metrics.crps_of_gaussians(error, deviation)
  for e, d, value in zip(error, deviation, found, strict=True):
    # Of a forecast N(e, d^2) when 0 comes true.
    below, _ = integrate.quad(
      lambda x, e=e, d=d: stats.norm.cdf(x, e, d) ** 2, -40, 0
    )
    above, _ = integrate.quad(
      lambda x, e=e, d=d: (1 - stats.norm.cdf(x, e, d)) ** 2, 0, 40
    )
    np.testing.assert_allclose(value, below + above, rtol=1e-5)


def test_errors_of_several_seeds():
  rows = {
    'target': np.array([[[1.0], [9.0]]]),
    'target_observed': np.array([[[1.0], [0.0]]]),
  }
  outputs = {'forecast': np.array([[[[1.0], [0.0]]], [[[4.0], [0.0]]]])}
  assert metrics.mse(outputs, rows).tolist() == [0, 9]
  assert metrics.mae(outputs, rows).tolist() == [0, 3]


def test_squares_are_no_sizes_and_deviations_change_the_score():
  shape = (1, 1, 1)
  found = metrics.measure(
    {
      'forecast': np.full(shape, 3.0),
      'last forecast': np.full(shape, -2.0),
      'deviation': np.full(shape, 0.5),
      'target': np.zeros(shape),
      'target_observed': np.ones(shape),
      'centre': np.ones((1, 1)),
      'scale': np.full((1, 1), 2.0),
    }
  )
  names = ('mse', 'mae', 'last_mse', 'last_mae')
  assert [found[x] for x in names] == [9, 3, 4, 2]
  crps = metrics.crps_of_gaussians(np.array(3.0), np.array(0.5))
  assert found['crps'] == pytest.approx(float(crps))
  assert found['crps'] < 3


def test_many_columns_are_read_in_fewer_windows():
  values = np.random.default_rng(0).normal(size=(2000, 400))
  source = windows.windows(
    seriess.from_arrays('wide', values), length=3, horizon=2
  )
  past, future = naive_forecasts._pairs(source, 4000)
  assert len(past) == len(future) == 500 * 400
