"""Crops on the device are windows of their images, all places alike."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.data.images import crops


def test_a_crop_is_a_window_and_every_place_is_drawn():
  image = np.arange(5 * 5, dtype=np.float32).reshape(1, 5, 5, 1)
  images = np.repeat(image, 400, axis=0)
  windows = np.asarray(
    crops.random_crops(images, jax.random.split(jax.random.key(0), 400), size=3)
  )
  known = {
    image[0, i : i + 3, j : j + 3].tobytes(): (i, j)
    for i in range(3)
    for j in range(3)
  }
  places = [known[x.tobytes()] for x in windows]
  assert set(places) == set(known.values())  # The last ones, too.


def test_padding_repeats_the_edge():
  image = np.full((30, 4, 4, 1), 2.0, np.float32)
  rngs = jax.random.split(jax.random.key(0), 30)
  windows = crops.random_crops(image, rngs, size=4, padding=2)
  np.testing.assert_array_equal(windows, image)


def test_both_images_of_a_transition_have_places_of_their_own():
  image = np.repeat(
    np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1), 20, axis=0
  )
  batch = dict(image=image, next_image=image, action=0, mask=np.ones(20))
  out = crops.of_transitions(batch, jax.random.key(0), size=5)
  assert out['image'].shape == out['next_image'].shape == (20, 5, 5, 1)
  same = (out['image'] == out['next_image']).all((1, 2, 3))
  assert 0 < same.sum() + 1 < 20
  assert out['action'] == 0


def test_the_middle_is_the_middle():
  image = np.arange(49).reshape(1, 7, 7, 1)
  middle = crops.center_crop(image, size=3)
  np.testing.assert_array_equal(middle, image[:, 2:5, 2:5])
  with pytest.raises(types.InputError, match='8 x 8'):
    crops.center_crop(image, size=8)
