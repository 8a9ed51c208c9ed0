"""Quantiles of a stream, whatever its parts and its scale."""

import jax
import numpy as np
import pytest

from repjax.analysis import quantile_sketch as sketch

ADD = jax.jit(sketch.add)


@pytest.fixture(scope='module')
def values():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 4)) * [1, 1e4, 1e-3, 1]
  x[:, 3] = np.maximum(x[:, 3], 0)  # Half of it is 0, as after a relu.
  return x.astype(np.float32)


@pytest.mark.parametrize('share', [0.01, 0.3, 0.5, 0.9, 0.99])
def test_quantiles_are_those_of_a_sort(values, share):
  counts = ADD(sketch.empty(4), values, np.ones(4000))
  expected = np.sort(values, axis=0)[int(share * 4000)]
  bound = sketch.RELATIVE * abs(expected) + 2e-3 * values.std(0)
  assert (abs(sketch.quantile(counts, share) - expected) <= bound).all()
  if share < 0.5:
    assert sketch.quantile(counts, share)[3] == 0


def test_parts_add_up_and_rows_without_weight_count_for_nothing(values):
  whole = ADD(sketch.empty(4), values, np.ones(4000))
  parts = sketch.empty(4)
  for rows in np.array_split(values, 5):
    dirty = np.concatenate([rows, np.full((3, 4), np.nan, np.float32)])
    weight = np.arange(len(dirty)) < len(rows)
    parts = ADD(parts, dirty, weight)
  np.testing.assert_array_equal(whole, parts)


def test_nothing_has_no_quantile():
  assert np.isnan(sketch.quantile(sketch.empty(2), 0.5)).all()


def test_what_is_too_large_or_too_small_stays_in_its_place():
  x = np.array([[1e30], [-1e30], [1e-30], [0.0]])
  counts = ADD(sketch.empty(1), x, np.ones(4))
  assert sketch.quantile(counts, 0.0) < -1e5
  assert sketch.quantile(counts, 0.6) == 0
  assert sketch.quantile(counts, 1.0) > 1e5


def test_the_least_share_is_the_least_value(values):
  counts = ADD(sketch.empty(4), values, np.ones(4000))
  least = values.min(0)
  bound = sketch.RELATIVE * abs(least)
  assert (abs(sketch.quantile(counts, 0.0) - least) <= bound).all()
