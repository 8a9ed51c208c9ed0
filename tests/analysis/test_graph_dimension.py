"""GeoMLE and shortest paths on sets whose dimension is known."""

import numpy as np
import pytest
from sklearn import linear_model

from repjax import types
from repjax.analysis import graph_dimension
from repjax.analysis import intrinsic_dimension
from repjax.analysis import nearest_neighbours


def _sphere(dim, count, seed=0):
  rows = np.random.default_rng([seed, dim]).standard_normal((count, dim + 1))
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(('dim', 'error'), [(2, 0.3), (4, 0.8)])
def test_shortest_paths_over_a_sphere(dim, error):
  found = nearest_neighbours.nearest(_sphere(dim, 800), 8)
  assert abs(graph_dimension.shortest_paths(found) - dim) < error


def test_geo_mle_takes_less_from_edges_and_curvature_than_its_parts():
  rows = np.random.default_rng(0).uniform(size=(1000, 5))
  found = nearest_neighbours.nearest(rows, 100)
  geo = graph_dimension.geo_mle(found).mean()
  parts = [
    intrinsic_dimension.mle(found.distances, k=k, normaliser='k-1')
    for k in (10, 40)
  ]
  assert max(parts) < geo < 5.6
  again = nearest_neighbours.nearest(1e4 * rows, 100)
  assert graph_dimension.geo_mle(again).mean() == pytest.approx(geo, rel=1e-6)


def test_the_regression_is_that_of_scikit_learn():
  rng = np.random.default_rng(1)
  x, y, weight = (rng.uniform(1, 2, (3, 12)) for _ in range(3))
  found = graph_dimension._at_zero(x, y, weight, 2, 5e-3)
  for i in range(3):
    radius = x[i] / x[i].mean()
    powers = np.stack([radius, radius**2], 1)
    expected = linear_model.Ridge(alpha=5e-3).fit(powers, y[i], weight[i])
    assert found[i] == pytest.approx(expected.intercept_, rel=1e-6)


def test_geo_mle_is_that_of_neighbours_in_bootstrap_samples():
  rows = np.random.default_rng(2).normal(size=(60, 3))
  rng, k1, k2 = np.random.default_rng(0), 3, 7
  # Anchors in another order: estimates are in that of the rows.
  found = nearest_neighbours.nearest(rows, 59, anchors=rng.permutation(60))
  told = graph_dimension.geo_mle(found, k1=k1, k2=k2, num_draws=4, seed=5)
  rng = np.random.default_rng(5)
  samples = [set(rng.integers(60, size=60)) for _ in range(4)]
  for i in range(3):
    radii, dims = np.zeros((2, 4, k2 - k1 + 1))
    for draw, sample in enumerate(samples):
      others = rows[sorted(sample - {i})] - rows[i]
      near = np.sort(np.linalg.norm(others, axis=1))
      radii[draw] = near[k1 - 1 : k2]
      dims[draw] = [
        (k - 2) / np.log(near[k - 1] / near[: k - 1]).sum()
        for k in range(k1, k2 + 1)
      ]
    radius = radii.mean(0) / radii.mean()
    fitted = linear_model.Ridge(alpha=5e-3).fit(
      np.stack([radius, radius**2], 1), dims.mean(0), 1 / dims.std(0, ddof=1)
    )
    assert told[i] == pytest.approx(fitted.intercept_, rel=1e-5)


def test_parts_beside_the_largest_count_for_nothing():
  sphere, other = _sphere(2, 300), 9 + 0.1 * _sphere(2, 40, seed=1)
  both = nearest_neighbours.nearest(np.concatenate([other, sphere]), 8)
  alone = nearest_neighbours.nearest(sphere, 8)
  assert graph_dimension.shortest_paths(both) == pytest.approx(
    graph_dimension.shortest_paths(alone), rel=1e-9
  )


def test_edges_as_long_as_paths_are_refused():
  found = nearest_neighbours.nearest(_sphere(2, 100), 60)
  with pytest.raises(types.InputError, match='fewer neighbours'):
    graph_dimension.shortest_paths(found)


@pytest.mark.parametrize('size', [10, 20])
def test_a_graph_that_falls_apart_is_refused(size):
  rows = _sphere(2, 40) + 100 * (np.arange(40)[:, None] // size)
  found = nearest_neighbours.nearest(rows, 3)
  with pytest.raises(types.InputError, match='falls apart'):
    graph_dimension.shortest_paths(found)


def test_too_few_neighbours_are_refused():
  found = nearest_neighbours.nearest(_sphere(2, 200), 40)
  with pytest.raises(types.InputError, match='bootstrap sample'):
    graph_dimension.geo_mle(found, k2=40)


def test_some_anchors_are_not_enough():
  found = nearest_neighbours.nearest(_sphere(2, 90), 9, anchors=np.arange(50))
  with pytest.raises(types.InputError, match='anchors'):
    graph_dimension.shortest_paths(found)


def test_equal_rows_are_refused():
  rows = np.repeat(_sphere(2, 60), 2, 0)
  found = nearest_neighbours.nearest(rows, 9)
  with pytest.raises(types.InputError, match='first_of_each'):
    graph_dimension.shortest_paths(found)


def test_neighbours_that_are_equally_far_are_refused():
  rows = np.unique(np.random.default_rng(0).random((600, 200)) < 0.02, axis=0)
  found = nearest_neighbours.nearest(rows.astype(np.float64), 60)
  with pytest.raises(types.InputError, match='equally far'):
    graph_dimension.geo_mle(found, k1=10, k2=20)
