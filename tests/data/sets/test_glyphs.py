"""Characters: strokes where their curves are, classes that stay themselves."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import glyphs


def test_a_straight_stroke_covers_its_length_times_its_width():
  # From (.2, .5) to (.8, .5), and half a circle at each end.
  points = np.array([[[[0.2, 0.5], [0.5, 0.5], [0.8, 0.5]]]])
  pen = np.array([0.05])
  image = glyphs.paint(points, pen, size=128)[0]
  expected = 0.6 * 0.1 + np.pi * 0.05**2
  np.testing.assert_allclose(image.mean(), expected, rtol=0.01)
  rows, columns = np.nonzero(image > 0.5)
  at = (np.array([rows, columns]) + 0.5) / 128
  np.testing.assert_allclose(at.min(1), [0.45, 0.15], atol=0.01)
  np.testing.assert_allclose(at.max(1), [0.55, 0.85], atol=0.01)


def test_a_curve_goes_through_its_middle():
  points = np.array([[[[0.1, 0.1], [0.5, 0.9], [0.9, 0.1]]]])
  image = glyphs.paint(points, np.array([0.04]), size=64)[0]
  # A quadratic curve at 1/2: a quarter of its ends, half of its control point.
  assert image[int(0.5 * 64), 32] == 1
  assert image[int(0.9 * 64), 32] == 0
  assert image[int(0.1 * 64), 32] == 0


def test_classes_are_even_and_the_same_however_many_there_are():
  few, many = (
    glyphs.draw(20 * n, num_classes=n, seed=0, size=16) for n in (5, 40)
  )
  columns = few.columns()
  assert few.num_classes == 5 and few.image_shape == (16, 16, 1)
  np.testing.assert_array_equal(np.bincount(columns['label']), [20] * 5)
  means = [
    np.stack([x['image'][x['label'] == k].mean(0) for k in range(5)])
    for x in (columns, many.columns())
  ]
  flat = [x.reshape(5, -1) - x.mean() for x in means]
  likeness = np.corrcoef(*flat)[:5, 5:]
  np.testing.assert_array_equal(likeness.argmax(1), np.arange(5))
  assert np.diag(likeness).min() > 0.9


def test_seeds_decide_rows_and_alphabets_classes():
  def drawn(**settings):
    source = glyphs.draw(100, num_classes=5, **settings)
    return source.columns()['image'].astype(float)

  assert (drawn(seed=0) == drawn(seed=0)).all()
  assert (drawn(seed=0) != drawn(seed=1)).any()
  mean, same, other = (
    drawn(**x).mean(0).ravel()
    for x in (dict(seed=0), dict(seed=1), dict(seed=1, alphabet=1))
  )
  assert np.corrcoef(mean, same)[0, 1] > np.corrcoef(mean, other)[0, 1]


@pytest.mark.parametrize(
  'settings', [dict(num_classes=1), dict(size=4), dict(num_strokes=0)]
)
def test_what_cannot_be_drawn_is_refused(settings):
  with pytest.raises(types.InputError):
    glyphs.draw(10, **dict(num_classes=2, seed=0) | settings)


def test_paint_is_near_a_curve():
  rng = np.random.default_rng(0)
  points, pen = rng.uniform(0.1, 0.9, (3, 2, 3, 2)), rng.uniform(0.04, 0.1, 3)
  size = 12
  found = glyphs.paint(points, pen, size=size)
  at = np.linspace(0, 1, 2001)[:, None]
  for image, curves, half in zip(found, points, pen, strict=True):
    # Bernstein's polynomials, so finely that a piece is no longer than a hair.
    path = np.concatenate(
      [
        (1 - at) ** 2 * a + 2 * at * (1 - at) * b + at**2 * c
        for a, b, c in curves
      ]
    )
    for row, column in np.ndindex(size, size):
      centre = (np.array([column, row]) + 0.5) / size  # Right, and down.
      away = np.hypot(*(path - centre).T).min()
      expected = np.clip(0.5 + (half - away) * size, 0, 1)
      # The curve is drawn as a few straight pieces.
      assert abs(image[row, column] - expected) < 0.1, (row, column)
