"""Alignment and uniformity are means over pairs, which loops can take."""

import itertools
import math

import numpy as np
import pytest

from repjax import types
from repjax.metrics import alignment

RNG = np.random.default_rng(0)


def sphere(num_rows, dim=3):
  x = RNG.normal(size=(num_rows, dim))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('alpha', [1, 2, 0.5])
def test_alignment_is_a_mean_over_views(alpha):
  x, y = sphere(9), sphere(9)
  each = [math.dist(a, b) ** alpha for a, b in zip(x, y, strict=True)]
  found = alignment.alignment(x, y, alpha)
  np.testing.assert_allclose(found, sum(each) / 9, rtol=1e-12)
  # Of directions alone.
  found = alignment.alignment(3 * x, 0.1 * y, alpha)
  np.testing.assert_allclose(found, sum(each) / 9, rtol=1e-12)


@pytest.mark.parametrize('t', [0.5, 2])
@pytest.mark.parametrize('rows', [1, 3, 4, 5, 1024])
def test_uniformity_is_a_mean_over_pairs_whatever_the_blocks(
  t, rows, monkeypatch
):
  monkeypatch.setattr(alignment, '_ROWS', rows)
  x = sphere(9)
  each = [
    math.exp(-t * math.dist(a, b) ** 2) for a, b in itertools.combinations(x, 2)
  ]
  expected = math.log(sum(each) / len(each))
  np.testing.assert_allclose(alignment.uniformity(x, t), expected, rtol=1e-12)
  np.testing.assert_allclose(
    alignment.uniformity(7 * x, t), expected, rtol=1e-12
  )


def test_a_steep_kernel_does_not_vanish():
  # The nearest pair has all of the mean.
  x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
  nearest = min(
    math.dist(a, b) ** 2
    for a, b in itertools.combinations(
      x / np.linalg.norm(x, axis=1, keepdims=True), 2
    )
  )
  np.testing.assert_allclose(
    alignment.uniformity(x, 1e4), -1e4 * nearest - math.log(3), rtol=1e-9
  )


def test_one_point_is_aligned_and_not_uniform():
  x = np.ones((5, 4), np.float32)
  assert alignment.alignment(x, x) == 0
  np.testing.assert_allclose(alignment.uniformity(x), 0, atol=1e-12)
  # Even rows of many dimensions lie at right angles: exp(-2 * 2).
  assert abs(alignment.uniformity(sphere(2000, 512)) + 4) < 0.05


@pytest.mark.parametrize(
  ('measure', 'says'),
  [
    (lambda: alignment.uniformity(np.ones((1, 3))), 'pairs of rows'),
    (lambda: alignment.uniformity(np.ones(3)), r'\[N, D\]'),
    (lambda: alignment.uniformity(np.eye(3)[[0, 1, 1]] * [[1], [1], [0]]), '2'),
    (lambda: alignment.uniformity(np.full((2, 2), np.nan)), 'row 0'),
    (lambda: alignment.uniformity(np.eye(2), 0), 't must be'),
    (lambda: alignment.alignment(np.eye(3), np.eye(3)[:2]), 'of pairs'),
    (lambda: alignment.alignment(np.eye(2), np.eye(2), -1), 'alpha'),
    (lambda: alignment.alignment(np.ones((0, 2)), np.ones((0, 2))), 'none'),
  ],
)
def test_what_has_no_pairs_is_refused(measure, says):
  with pytest.raises(types.InputError, match=says):
    measure()
