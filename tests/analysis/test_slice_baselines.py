"""Baselines find what they can find, and nothing else."""

import numpy as np
import planted_slices
import pytest

from repjax import types
from repjax.analysis import slice_baselines
from repjax.analysis import slice_scores


@pytest.fixture(scope='module')
def rows():
  *valid, _ = planted_slices.draw(seed=0)
  *test, truth = planted_slices.draw(seed=1)
  return valid, test, truth[:, None]


def test_cells_of_the_confusion_matrix_rank_errors_first(rows):
  _, (z, labels, probs), _ = rows
  found = slice_baselines.confusion(3)(z, labels, probs)
  np.testing.assert_allclose(found[:, 0], (labels == 0) * probs[:, 1])
  np.testing.assert_allclose(found[:, 1], (labels == 1) * probs[:, 0])
  np.testing.assert_allclose(found[:, 2], (labels == 0) * probs[:, 0])


def test_a_blob_is_a_cluster_of_its_class(rows):
  valid, test, truth = rows
  slicing = slice_baselines.george(
    *valid, seed=0, num_components=6, pca_dim=4, num_slices=4
  )
  found = slicing(*test)
  assert found.shape == (600, 4)
  assert slice_scores.best_precision(found, truth) >= 0.9
  # Two slices of each class have no row of the other.
  np.testing.assert_array_equal(found[test[1] == 1, :2], 0)
  np.testing.assert_array_equal(found[test[1] == 0, 2:], 0)


def test_the_first_ball_is_where_losses_are(rows):
  valid, test, truth = rows
  found = slice_baselines.spotlight(*valid, num_slices=2)(*test)
  assert (found <= 0).all()
  assert slice_scores.precision_at(found, truth)[0] >= 0.9
  # It holds at least about min_weight of the rows.
  assert np.exp(found[:, 0]).sum() > 0.01 * len(found)


@pytest.mark.parametrize(
  ('num_classes', 'num_slices'), [(3, 4), (3, 5), (2, 5)]
)
def test_every_class_has_slices(num_classes, num_slices):
  rng, label = np.random.default_rng(0), np.arange(60) % num_classes
  embeddings = rng.normal(size=(60, 4)) + 5 * label[:, None]
  probs = rng.dirichlet(np.ones(num_classes), 60)
  data = embeddings, label, probs
  found = slice_baselines.george(
    *data, seed=0, num_slices=num_slices, num_components=4
  )(*data)
  assert found.shape == (60, num_slices)
  own = [(found[label == x].sum(0) > 0).sum() for x in range(num_classes)]
  assert sum(own) == num_slices
  assert min(own) == num_slices // num_classes


def test_large_clusters_with_errors_come_first_and_first_classes_have_more():
  # In each class 50 rows of loss log 2 here, and 10 of loss log 4 there.
  label, far = np.repeat([0, 1], 60), np.tile(np.arange(60) >= 50, 2)
  spread = np.random.default_rng(0).normal(size=(120, 2))
  embeddings = spread + 30 * far[:, None]
  probs = np.eye(2)[label]
  probs = np.abs(probs - np.where(far, 0.75, 0.5)[:, None])
  data = embeddings, label, probs
  found = slice_baselines.george(*data, seed=0, num_slices=3, num_components=2)(
    *data
  )
  own = label[:, None] == [0, 0, 1]
  there = far[:, None] == [False, True, False]
  np.testing.assert_allclose(found, own & there, atol=1e-3)


def test_no_class_is_left_without_a_slice(rows):
  valid, _, _ = rows
  with pytest.raises(types.InputError, match=r'num_slices must be in \[2'):
    slice_baselines.george(*valid, seed=0, num_slices=1)
