"""Dimensions of sets whose dimension is known; formulas against loops."""

import math

import numpy as np
import pytest

from repjax import types
from repjax.analysis import intrinsic_dimension
from repjax.analysis import nearest_neighbours


def _embedded(rows, width, seed=0):
  """Rows turned into a space of more dimensions, without a change of length."""
  rng = np.random.default_rng([seed, width])
  basis, _ = np.linalg.qr(rng.standard_normal((width, rows.shape[1])))
  return rows @ basis.T


def _gaussian(dim, count=3000, seed=0):
  return np.random.default_rng(seed).standard_normal((count, dim))


@pytest.mark.parametrize(
  ('dim', 'error'), [(2, 0.05), (5, 0.05), (10, 0.1), (20, 0.2)]
)
def test_dimension_of_an_embedded_gaussian(dim, error):
  rows = _embedded(_gaussian(dim), 100)
  distances = nearest_neighbours.nearest(rows, 5).distances
  found = intrinsic_dimension.mle(distances, normaliser='k-1')
  assert abs(found / dim - 1) < error
  low, high = intrinsic_dimension.interval(
    lambda x: intrinsic_dimension.mle(x, normaliser='k-1'), distances
  )
  assert low < found < high
  # k - 1 logarithms of 3,000 rows, were they independent.
  assert 0.5 < (high - low) / (4 * found / math.sqrt(3000 * 4)) < 2


@pytest.mark.parametrize(('dim', 'error'), [(2, 0.07), (5, 0.1)])
def test_dimension_of_a_cube(dim, error):
  rows = np.random.default_rng(1).uniform(size=(3000, dim))
  distances = nearest_neighbours.nearest(_embedded(rows, 30), 10).distances
  found = intrinsic_dimension.mle(distances, normaliser='k-1')
  assert abs(found / dim - 1) < error
  assert abs(intrinsic_dimension.two_nn(distances) / dim - 1) < error


def test_formulas_are_those_of_a_loop():
  distances = np.sort(np.random.default_rng(2).uniform(1, 2, (30, 8)), 1)
  each = []
  for row in distances:
    each.append(sum(math.log(row[5] / row[j]) for j in range(5)) / 5)
  found = intrinsic_dimension.mle
  assert found(distances, k=6, normaliser='k-1') == pytest.approx(
    1 / np.mean(each), rel=1e-12
  )
  means = [1 / (x * 5 / 4) for x in each]
  assert found(
    distances, k=6, normaliser='k-2', combine='mean'
  ) == pytest.approx(np.mean(means), rel=1e-12)
  assert found(
    distances, k=6, normaliser='k-2', combine='median'
  ) == pytest.approx(np.median(means), rel=1e-12)
  ratios = sorted(row[1] / row[0] for row in distances)[:27]
  x = [math.log(ratio) for ratio in ratios]
  y = [-math.log(1 - (i + 1) / 30) for i in range(27)]
  slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
  assert intrinsic_dimension.two_nn(distances) == pytest.approx(slope)


@pytest.mark.parametrize('k', [3, 5, 10])
def test_normalisers_differ_by_a_factor_that_knows_no_data(k):
  distances = np.sort(np.random.default_rng(k).uniform(1, 2, (50, 10)), 1)
  one, two = (
    intrinsic_dimension.mle(distances, k=k, normaliser=x)
    for x in ('k-1', 'k-2')
  )
  assert two / one == pytest.approx((k - 2) / (k - 1), rel=1e-12)


def test_turning_and_scaling_change_nothing():
  rows = _gaussian(4, count=400)
  turned = 1e3 * _embedded(rows, 9) + 5.0
  for estimate in (
    lambda x: intrinsic_dimension.mle(x, normaliser='k-1'),
    intrinsic_dimension.two_nn,
  ):
    one, other = (
      estimate(nearest_neighbours.nearest(x, 6).distances)
      for x in (rows, turned)
    )
    assert one == pytest.approx(other, rel=1e-6)


def test_a_description_counts_duplicates_once_and_knows_classes():
  line, plane = _embedded(_gaussian(1, 300), 8), _embedded(_gaussian(3, 300), 8)
  rows = np.concatenate([line, plane + 50, plane[:7] + 50])
  labels = np.repeat([4, 9], [300, 307])
  found = intrinsic_dimension.describe(rows, ks=(5, 10), labels=labels)
  assert (found.num_rows, found.num_duplicates) == (600, 7)
  assert found.per_class[4] == pytest.approx([1, 1], rel=0.15)
  assert found.per_class[9] == pytest.approx([3, 3], rel=0.2)
  np.testing.assert_allclose(
    found.curve['k-2'] / found.curve['k-1'], [3 / 4, 8 / 9], rtol=1e-12
  )
  assert (found.intervals[:, 0] < found.curve['k-1']).all()
  some = intrinsic_dimension.describe(rows, ks=(5, 10), num_anchors=100)
  assert np.ptp(some.intervals[0]) > 1.5 * np.ptp(found.intervals[0])


@pytest.mark.parametrize(
  ('rows', 'says'),
  [
    (np.ones((9, 3)), 'All 9 rows are equal'),
    (np.eye(4), '20 neighbours of the set, which has 4 different rows'),
  ],
)
def test_bad_sets_are_named(rows, says):
  with pytest.raises(types.InputError, match=says):
    intrinsic_dimension.describe(rows)


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    (dict(labels=np.zeros(29, int)), r'one integer a row, \[30\]; got int64'),
    (dict(labels=np.zeros((30, 1), int)), r'\[30, 1\]'),
    (dict(labels=['cat'] * 30), r'\[30\]; got <U3'),
    (dict(labels=np.repeat([0.5, 0.7], 15)), r'\[30\]; got float64'),
    (dict(num_anchors=-5), 'num_anchors'),
    (dict(num_anchors=0), 'num_anchors'),
    (dict(num_anchors=2.5), 'num_anchors'),
  ],
)
def test_bad_labels_and_numbers_of_anchors_are_named(settings, says):
  with pytest.raises(types.InputError, match=says):
    intrinsic_dimension.describe(_gaussian(3, 30), ks=(3,), **settings)


@pytest.mark.parametrize(
  ('distances', 'kwargs', 'says'),
  [
    ([[0.0, 1.0, 2.0]], dict(normaliser='k-1'), '1 rows have an equal one'),
    ([[1.0, 2.0]], dict(normaliser='k-2'), 'at least 3'),
    ([[1.0, 2.0]], dict(normaliser='k-1', k=3), 'to 2 neighbours'),
    ([[1.0, 1.0, 1.0]], dict(normaliser='k-1'), 'equally far'),
    ([[1.0, 2.0, 3.0]], dict(normaliser='paper'), 'normaliser'),
    ([[1.0, 2.0]], dict(normaliser='k-1', combine='sum'), 'combine'),
  ],
)
def test_bad_distances_are_named(distances, kwargs, says):
  with pytest.raises(types.InputError, match=says):
    intrinsic_dimension.mle(np.array(distances), **kwargs)


def test_two_nn_needs_two_rows():
  with pytest.raises(types.InputError, match='too few'):
    intrinsic_dimension.two_nn(np.array([[1.0, 2.0], [1.0, 3.0]]))


def test_classes_that_share_rows_each_keep_them():
  rows = np.random.default_rng(0).normal(size=(100, 3))
  found = intrinsic_dimension.describe(
    np.concatenate([rows, rows]), ks=(5,), labels=np.repeat([0, 1], 100)
  )
  assert found.num_duplicates == 100
  assert found.per_class.keys() == {0, 1}
  np.testing.assert_array_equal(found.per_class[0], found.per_class[1])


def test_an_interval_has_the_confidence_that_is_asked_for():
  distances = np.random.default_rng(0).uniform(1, 2, (40, 3))
  rng = np.random.default_rng(4)
  found = [distances[rng.integers(40, size=40)].mean() for _ in range(50)]
  interval = intrinsic_dimension.interval(
    np.mean, distances, num_draws=50, confidence=0.6, seed=4
  )
  np.testing.assert_allclose(interval, np.quantile(found, (0.2, 0.8)))
