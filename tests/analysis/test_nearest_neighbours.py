"""Neighbours are those of a full matrix of float64 distances."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import nearest_neighbours


def _brute(rows, k):
  rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
  distances = np.sqrt(np.square(rows[:, None] - rows[None]).sum(-1))
  np.fill_diagonal(distances, np.inf)
  return np.sort(distances, 1)[:, :k]


@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.float64])
def test_distances_are_exact(dtype):
  rng = np.random.default_rng(0)
  rows = (rng.uniform(size=(300, 4, 5)) * 255).astype(dtype)
  found = nearest_neighbours.nearest(rows, 7, chunk=64)
  np.testing.assert_allclose(found.distances, _brute(rows, 7), rtol=1e-12)
  own = rows.reshape(300, -1).astype(np.float64)
  away = np.linalg.norm(own[found.indices] - own[:, None], axis=-1)
  np.testing.assert_allclose(away, found.distances, rtol=1e-12)


def test_what_float32_cannot_tell_is_measured_again():
  # Clusters of 100 rows that differ in the fifth digit, and lie far apart.
  rng = np.random.default_rng(1)
  centres = 100 * rng.standard_normal((4, 6))
  rows = centres[np.arange(400) % 4] + 1e-3 * rng.standard_normal((400, 6))
  found = nearest_neighbours.nearest(rows, 5)
  assert found.rechecked == 400
  np.testing.assert_allclose(found.distances, _brute(rows, 5), rtol=1e-9)


def test_clear_rows_are_not_measured_again():
  rows = np.random.default_rng(2).standard_normal((500, 10))
  assert not nearest_neighbours.nearest(rows, 5).rechecked


def test_rows_far_from_zero_keep_their_digits():
  rows = np.random.default_rng(3).standard_normal((200, 3)) + 1e6
  found = nearest_neighbours.nearest(rows, 4)
  np.testing.assert_allclose(found.distances, _brute(rows, 4), rtol=1e-9)


def test_anchors_have_neighbours_among_all_rows():
  rows = np.random.default_rng(4).standard_normal((150, 3))
  anchors = np.array([5, 149, 0])
  found = nearest_neighbours.nearest(rows, 3, anchors=anchors, chunk=2)
  whole = nearest_neighbours.nearest(rows, 3)
  np.testing.assert_array_equal(found.indices, whole.indices[anchors])


def test_an_equal_row_is_a_neighbour_and_a_row_itself_is_none():
  rows = np.array([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [9.0, 9.0]])
  found = nearest_neighbours.nearest(rows, 1)
  np.testing.assert_array_equal(found.indices[[0, 2], 0], [2, 0])
  first, counts = nearest_neighbours.first_of_each(rows)
  np.testing.assert_array_equal(first, [0, 1, 3])
  np.testing.assert_array_equal(counts, [2, 1, 1])


def test_minus_zero_is_zero():
  first, _ = nearest_neighbours.first_of_each(np.array([[0.0], [-0.0], [1.0]]))
  np.testing.assert_array_equal(first, [0, 2])


@pytest.mark.parametrize(
  ('rows', 'k', 'says'),
  [
    (np.zeros((3, 2)), 3, 'only 2 others'),
    (np.zeros((3, 2)), 0, 'num_neighbours'),
    (np.full((3, 2), np.nan), 1, 'not finite'),
    (np.array(['a', 'b']), 1, 'of numbers'),
  ],
)
def test_bad_input_is_named(rows, k, says):
  with pytest.raises(types.InputError, match=says):
    nearest_neighbours.nearest(rows, k)


def test_anchors_must_be_rows():
  with pytest.raises(types.InputError, match='anchors'):
    nearest_neighbours.nearest(np.eye(4), 1, anchors=np.array([4]))


@pytest.mark.parametrize('scale', [1e-27, 1e-20, 1e20, 1e25])
def test_units_of_the_rows_change_no_neighbour(scale):
  rows = np.random.default_rng(0).normal(size=(300, 8))
  plain = nearest_neighbours.nearest(rows, 3)
  found = nearest_neighbours.nearest(rows * scale, 3)
  np.testing.assert_array_equal(found.indices, plain.indices)
  np.testing.assert_allclose(found.distances, plain.distances * scale)
