"""Learning-rate schedules by their shape."""

import math

import numpy as np
import pytest

from repjax import optim


def values(steps, **settings):
  schedule = optim.warmup_cosine(2.0, steps=steps, **settings)
  return np.array([float(schedule(step)) for step in range(steps + 1)])


def test_the_warm_up_is_linear_and_the_rest_half_a_cosine():
  rates = values(40, warmup=0.25, end=0.1)
  np.testing.assert_allclose(rates[:11], 2 * np.arange(11) / 10, rtol=1e-6)
  expected = [
    0.2 + 1.8 * (1 + math.cos(math.pi * (step - 10) / 30)) / 2
    for step in range(10, 41)
  ]
  np.testing.assert_allclose(rates[10:], expected, rtol=1e-5)


def test_without_warm_up_it_starts_at_the_peak():
  rates = values(20, warmup=0.0, end=0.1)
  assert rates[0] == 2.0
  np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-6)
  assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize('steps', [1, 2, 3])
@pytest.mark.parametrize('warmup', [0.0, 0.3, 0.9])
def test_the_shortest_runs_have_finite_rates(steps, warmup):
  rates = values(steps, warmup=warmup)
  assert np.isfinite(rates).all()
  assert rates.min() >= 0 and rates.max() <= 2.0


def test_drops_multiply_also_where_they_fall_on_one_step():
  schedule = optim.drops(2.0, steps=10, at=(0.5, 0.52, 0.8), factors=(3, 5, 0))
  rates = [float(schedule(step)) for step in range(10)]
  np.testing.assert_allclose(rates, [2.0] * 5 + [30.0] * 3 + [0.0] * 2)


@pytest.mark.parametrize(
  ('at', 'factors', 'says'),
  [
    ((0.5,), (0.1, 0.1), 'one number a drop'),
    ((1.8,), (0.1,), 'at must be'),
    ((0.5,), (-0.1,), 'factors must be'),
  ],
)
def test_drops_that_cannot_be_are_refused(at, factors, says):
  with pytest.raises(ValueError, match=says):
    optim.drops(1.0, steps=10, at=at, factors=factors)


@pytest.mark.parametrize(
  'bad',
  [
    {'peak': 0.0},
    {'warmup': 1.0},
    {'warmup': -0.1},
    {'steps': 0},
    {'end': -0.1},
  ],
)
def test_settings_out_of_range_are_refused(bad):
  settings = {'peak': 1.0, 'steps': 10, **bad}
  with pytest.raises(ValueError, match=next(iter(bad))):
    optim.warmup_cosine(settings.pop('peak'), **settings)


def test_numbers_are_divided_by_what_is_above_one():
  schedule = optim.divided(6.0, lambda step: 0.5 * step)
  found = [float(schedule(step)) for step in (0, 1, 2, 4, 6)]
  np.testing.assert_allclose(found, [6, 6, 6, 3, 2], rtol=1e-6)
  assert float(optim.divided(6.0, 4.0)(7)) == 1.5
