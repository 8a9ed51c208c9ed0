"""Shapes are drawn as their attributes say."""

import colorsys

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import shapes

_AREAS = dict(
  square=4.0,
  ellipse=np.pi * 1.35 * 0.75,
  triangle=3 * np.sqrt(3) * 0.7**2,
  cross=2 * 2.4 * 0.7 - 0.7**2,
)


@pytest.mark.parametrize('number', range(4))
def test_area_and_centre_are_those_of_the_attributes(number):
  rng = np.random.default_rng(number)
  kind = np.full(50, number)
  x, y = rng.uniform(0.4, 0.6, (2, 50))
  scale, rotation = rng.uniform(0.16, 0.26, 50), rng.uniform(0, 7, 50)
  grey = shapes.paint(kind, x, y, scale, rotation, size=64)
  area = grey.mean((1, 2))
  expected = _AREAS[shapes.KINDS[number]] * scale**2
  np.testing.assert_allclose(area, expected, rtol=0.02)
  at = (np.arange(64) + 0.5) / 64
  across = (grey.mean(1) * at).sum(1) / grey.mean(1).sum(1)
  down = (grey.mean(2) * at).sum(1) / grey.mean(2).sum(1)
  np.testing.assert_allclose(across, x, atol=2e-3)
  np.testing.assert_allclose(down, y, atol=2e-3)


@pytest.mark.parametrize(('number', 'turn'), [(0, 4), (1, 2), (2, 3), (3, 4)])
def test_a_shape_looks_alike_after_its_own_turn_alone(number, turn):
  def painted(angle):
    args = (np.array([x]) for x in (number, 0.5, 0.5, 0.2, 0.3 + angle))
    return shapes.paint(*args, size=32)

  circle = 2 * np.pi
  np.testing.assert_allclose(painted(0), painted(circle / turn), atol=1e-9)
  assert abs(painted(0) - painted(circle / turn / 2)).max() > 0.5


def test_rows_are_even_over_cells_inside_the_image_and_of_one_ink():
  source = shapes.draw(601, seed=3, num_kinds=4, num_colours=5)
  columns = source.columns()
  counts = np.zeros((4, 5), int)
  np.add.at(counts, (columns['label_shape'], columns['label_colour']), 1)
  assert counts.sum() == 601
  assert set(counts.ravel()) == {30, 31}
  image = columns['image'] / 255
  assert image[:, [0, -1]].max() == image[:, :, [0, -1]].max() == 0
  inks = np.array([colorsys.hsv_to_rgb(i / 5, 1, 1) for i in range(5)])
  ink = inks[columns['label_colour']][:, None, None]
  grey = image.max(-1, keepdims=True)
  np.testing.assert_allclose(image, grey * ink, atol=1.01 / 255)


def test_the_seed_decides_all():
  first, again, other = (
    shapes.draw(40, seed=seed).columns() for seed in (1, 1, 2)
  )
  for name, x in first.items():
    np.testing.assert_array_equal(x, again[name])
  assert (first['image'] != other['image']).any()


@pytest.mark.parametrize(
  'wrong', [dict(num_kinds=5), dict(num_colours=1), dict(size=4)]
)
def test_what_cannot_be_drawn_is_refused(wrong):
  with pytest.raises(types.InputError, match=next(iter(wrong))):
    shapes.draw(10, seed=0, **wrong)
