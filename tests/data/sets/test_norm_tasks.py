"""Tasks whose labels can be recomputed from their rows."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import norm_tasks


def test_labels_say_which_half_is_longer():
  columns = norm_tasks.halves(50, dim=6, seed=0).columns()
  for row, label in zip(columns['features'], columns['label'], strict=True):
    assert label == (sum(row[:3] ** 2) > sum(row[3:] ** 2))
  assert 10 < columns['label'].sum() < 40


def test_labels_say_which_colour_is_longer():
  columns = norm_tasks.channels(50, side=3, seed=0).columns()
  for row, label in zip(columns['features'], columns['label'], strict=True):
    assert label == (sum(row[:9] ** 2) > sum(row[9:18] ** 2))


def test_targets_have_unit_variance_and_one_rule():
  train, test = (
    norm_tasks.weighted_squares(
      4000, dim=5, seed=seed, weights_seed=3
    ).columns()
    for seed in (0, 1)
  )
  assert train['target'].std() == pytest.approx(1, abs=0.1)
  squares = np.square(train['features']) - 1
  weights, *_ = np.linalg.lstsq(squares, train['target'], rcond=None)
  np.testing.assert_allclose(abs(weights), 10**-0.5, rtol=1e-4)
  np.testing.assert_allclose(
    (np.square(test['features']) - 1) @ weights, test['target'], atol=1e-4
  )


def test_pairs_of_a_texture_are_one_or_two_pixels_apart():
  columns = norm_tasks.texture(7).columns()
  for row, label in zip(columns['features'], columns['label'], strict=True):
    first, second = np.flatnonzero(row)
    assert {second - first, 7 + first - second} & {label + 1}
  assert len(np.unique(columns['features'], axis=0)) == 14
  train, test = norm_tasks.positions(7, 6, seed=0)
  assert sorted([*train, *test]) == list(range(14))
  assert columns['label'][train].sum() == 3


def test_an_axis_has_the_sign_of_its_label():
  columns = norm_tasks.signed_axes(30, dim=4, seed=0).columns()
  sums = columns['features'].sum(1)
  np.testing.assert_array_equal(sums, 2 * columns['label'] - 1)
  assert (np.abs(columns['features']).sum(1) == 1).all()


@pytest.mark.parametrize(
  'make',
  [
    lambda: norm_tasks.halves(4, dim=5, seed=0),
    lambda: norm_tasks.halves(0, dim=4, seed=0),
    lambda: norm_tasks.texture(4),
    lambda: norm_tasks.positions(6, 5, seed=0),
    lambda: norm_tasks.positions(6, 12, seed=0),
  ],
)
def test_bad_sizes_are_refused(make):
  with pytest.raises(types.InputError):
    make()
