"""Mean kernels and how lopsided they are."""

import numpy as np
import pytest

from repjax.analysis import mean_kernels
from repjax.types import InputError


def test_means_are_over_channels_with_and_without_signs():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
  params = {
    'conv': {'kernel': kernel, 'bias': np.zeros(5)},
    'point': {'kernel': np.ones((1, 1, 4, 5))},
    'head': {'kernel': np.ones((5, 2))},
  }
  found = mean_kernels.mean_kernels(params)
  assert set(found) == {'conv'}
  signed, sizes = found['conv']
  for i, j in np.ndindex(3, 3):
    np.testing.assert_allclose(signed[i, j], kernel[i, j].sum() / 20)
    np.testing.assert_allclose(sizes[i, j], abs(kernel[i, j]).sum() / 20)
  of_seeds = mean_kernels.mean_kernels(
    {'conv': {'kernel': np.stack([kernel, 2 * kernel])}}, seeds=True
  )
  np.testing.assert_allclose(of_seeds['conv'][0], [signed, 2 * signed])
  with pytest.raises(InputError, match='no kernel'):
    mean_kernels.mean_kernels({'head': {'kernel': np.ones((5, 2))}})


def test_asymmetry_is_zero_for_mirror_images_and_scales_do_not_matter():
  even = np.array([[1, 2, 1], [3, 4, 3], [1, 2, 1.0]])
  assert mean_kernels.asymmetry(even) == 0
  assert mean_kernels.tilt(even) == 0
  # All weight in one corner: both mirror images lie elsewhere.
  corner = np.zeros((3, 3))
  corner[0, 0] = 5
  assert mean_kernels.asymmetry(corner) == 2
  assert mean_kernels.tilt(corner) == 1
  assert mean_kernels.tilt(corner[::-1, ::-1]) == -1
  assert mean_kernels.tilt(corner[::-1]) == 0  # Bottom and left.
  np.testing.assert_allclose(
    mean_kernels.asymmetry(np.stack([corner, 3 * even])), [2, 0]
  )


def test_a_side_of_one_weight_is_for_neither():
  assert mean_kernels.tilt(np.ones((1, 3))) == 0
  assert mean_kernels.tilt(np.ones((7, 1))) == 0
  assert mean_kernels.tilt(np.array([[2.0, 1, 1]])) == 1 / 8


def test_asymmetry_is_what_its_formula_says():
  mean = np.array([[2.0, 1.0], [1.0, 0.0]])
  # |M - up| = 1 + 1 + 1 + 1, |M - left| the same, |M| = 4.
  assert mean_kernels.asymmetry(mean) == 1.0
