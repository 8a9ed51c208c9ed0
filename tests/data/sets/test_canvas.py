"""Images on a canvas: all of them there, once, at places of their own."""

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source
from repjax.data.sets import canvas

IMAGE = (
  np.random.default_rng(0).integers(1, 255, (40, 3, 3, 2)).astype(np.uint8)
)
ROWS = source.from_arrays('told', {'image': IMAGE, 'label': np.arange(40)})


def test_every_image_is_whole_and_the_rest_is_dark():
  placed = canvas.place(ROWS, 6).columns()
  assert placed['image'].shape == (40, 6, 6, 2)
  np.testing.assert_array_equal(placed['label'], np.arange(40))
  places = set()
  for image, wide in zip(IMAGE, placed['image'], strict=True):
    top, left = (np.flatnonzero(wide.any((1 - x, 2)))[0] for x in (0, 1))
    found = wide[top : top + 3, left : left + 3]
    np.testing.assert_array_equal(found, image)
    assert (wide > 0).sum() == image.size
    places.add((top, left))
  assert len(places) > 8


def test_a_seed_decides():
  first, again, other = (
    canvas.place(ROWS, 6, seed=x).column('image') for x in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_a_canvas_of_their_size_changes_nothing_and_a_smaller_one_is_refused():
  np.testing.assert_array_equal(canvas.place(ROWS, 3).column('image'), IMAGE)
  with pytest.raises(types.InputError, match=r'config\.data\.canvas=2'):
    canvas.place(ROWS, 2)
