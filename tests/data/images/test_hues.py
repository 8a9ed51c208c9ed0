"""Hues turn as `colorsys` turns them, pixel by pixel."""

import colorsys

import numpy as np
import pytest

from repjax.data.images import hues


def test_every_pixel_turns_as_colorsys_says():
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(6, 4, 4, 3), dtype=np.uint8)
  images[0, 0] = 77  # Grey.
  images[0, 1] = 0
  turns = rng.random(6)
  expected = np.empty(images.shape)
  for row, turn in enumerate(turns):
    for i in range(4):
      for j in range(4):
        hue, *rest = colorsys.rgb_to_hsv(*images[row, i, j] / 255)
        expected[row, i, j] = colorsys.hsv_to_rgb((hue + turn) % 1, *rest)
  np.testing.assert_allclose(
    hues.turned(images, turns), 255 * expected, atol=0.51
  )


def test_a_third_of_the_circle_moves_the_channels():
  images = np.random.default_rng(1).integers(
    256, size=(2, 3, 3, 3), dtype=np.uint8
  )
  turned = hues.turned(images, np.full(2, 1 / 3))
  np.testing.assert_allclose(turned, np.roll(images, 1, axis=-1), atol=1)


def test_images_of_a_batch_turn_on_their_own():
  red = np.zeros((200, 2, 2, 3), np.uint8)
  red[..., 0] = 200
  transform = hues.random_hue()
  draws = np.random.default_rng(2).random((200, transform.num_draws))
  made = transform.apply({'image': red}, draws)['image']
  assert (made.max(-1) == 200).all()
  assert (made.min(-1) == 0).all()
  assert (made == made[:, :1, :1]).all()
  strongest = np.bincount(made[:, 0, 0].argmax(-1), minlength=3)
  assert strongest.min() > 40  # A third each.


def test_grey_images_have_no_hue():
  with pytest.raises(ValueError, match='3 channels'):
    hues.turned(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1))
