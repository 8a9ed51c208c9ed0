"""An object in all places, and what is found of it."""

import functools

import numpy as np
import pytest

from repjax.analysis import blind_spots
from repjax.data.sets import spots
from repjax.types import InputError


def swept(side=9, size=3, repeats=2):
  paint = functools.partial(
    spots.paint, side=side, size=size, contrast=1.0, noise=0.0
  )
  return blind_spots.sweep(paint, side=side, size=size, repeats=repeats)


def test_an_object_is_drawn_in_every_place_where_it_fits():
  probe = swept()
  assert (probe.places, probe.repeats) == (7, 2)
  image = probe.columns['image'].reshape((7, 7, 2, 9, 9)) > 200
  box = probe.columns['box'].reshape((7, 7, 2, 4))
  for y in range(7):
    for x in range(7):
      expected = np.zeros((9, 9), bool)
      expected[y : y + 3, x : x + 3] = True
      np.testing.assert_array_equal(image[y, x], [expected] * 2)
      np.testing.assert_allclose(box[y, x], [[y + 1.5, x + 1.5, 3, 3]] * 2)


def test_a_detector_that_is_blind_at_the_top_shows_it_there():
  probe = swept()
  box = probe.columns['box']
  # One box on the object, surer than 0 below the first two rows of places, and
  # a surer one elsewhere, which is none of the object.
  score = np.where(box[:, 0] > 3, 0.8, 0.1)
  outputs = {
    'score': np.stack([score, np.full(len(box), 0.9)], -1)[None],
    'boxes': np.stack([box + [0.5, 0, 0, 0], box + 20], 1)[None],
  }
  maps = blind_spots.seen(outputs, probe)
  assert maps.shape == (1, 7, 7)
  np.testing.assert_allclose(maps[0, :2], 0.1)
  np.testing.assert_allclose(maps[0, 2:], 0.8)
  sides = blind_spots.of_sides(maps)
  np.testing.assert_allclose(
    [sides[x][0] for x in ('top', 'bottom', 'left', 'right', 'inside')],
    [0.1, 0.8, 0.8, 0.8, 0.8],
  )
  # Two thirds of 0.5 shifted by half a pixel: 2.5 of 3 rows in common.
  none = blind_spots.seen(outputs, probe, least=0.8)
  np.testing.assert_array_equal(none, 0)
  # Of 3.5 that both cover: .71.
  np.testing.assert_array_equal(
    blind_spots.seen(outputs, probe, least=0.7), maps
  )


def test_bad_input_is_told():
  with pytest.raises(InputError, match='leaves nothing inside of 4 places'):
    blind_spots.of_sides(np.zeros((4, 4)), width=2)
  with pytest.raises(InputError, match='size'):
    swept(size=10)
  with pytest.raises(InputError, match='repeats'):
    swept(repeats=0)
