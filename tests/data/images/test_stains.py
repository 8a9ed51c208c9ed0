"""Jitter of stains: an affine map of each channel, contrast and blur."""

import numpy as np
import pytest

from repjax import types
from repjax.data.images import stains

IMAGE = np.random.default_rng(0).integers(
  256, size=(6, 5, 4, 3), dtype=np.uint8
)


def test_draws_in_the_middle_change_nothing_but_sharpness():
  made = stains.stain_jitter(0.7, blur=0.0)
  same = made.apply({'image': IMAGE}, np.full((6, 8), 0.5))['image']
  np.testing.assert_array_equal(same, IMAGE)
  flat = np.full_like(IMAGE, 93)
  blurred = stains.stain_jitter(0.7).apply(
    {'image': flat}, np.full((6, 8), 0.5)
  )
  np.testing.assert_array_equal(blurred['image'], flat)


def test_each_image_is_the_formula():
  strength, blur = 0.6, 0.8
  draws = np.random.default_rng(1).random((6, 8))
  made = stains.stain_jitter(strength, blur=blur)
  shown = made.apply({'image': IMAGE}, draws)['image']
  for image, out, draw in zip(IMAGE, shown, draws, strict=True):
    x = image / 255
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), 'edge')
    box = np.mean(
      [padded[i : i + 5, j : j + 4] for i in range(3) for j in range(3)], 0
    )
    x = x + blur * draw[7] * (box - x)
    for channel in range(3):
      gain = 2 ** (strength * (2 * draw[channel] - 1))
      offset = strength / 2 * (2 * draw[3 + channel] - 1)
      contrast = 2 ** (strength * (2 * draw[6] - 1))
      y = contrast * (gain * x[..., channel] + offset - 0.5) + 0.5
      expected = 255 * np.clip(y, 0, 1)
      np.testing.assert_allclose(out[..., channel], expected, atol=0.51)


def test_rows_do_not_see_each_other_and_the_input_stays():
  before = IMAGE.copy()
  draws = np.random.default_rng(2).random((6, 8))
  made = stains.stain_jitter()
  whole = made.apply({'image': IMAGE}, draws)['image']
  one = made.apply({'image': IMAGE[3:4]}, draws[3:4])['image']
  np.testing.assert_array_equal(whole[3:4], one)
  np.testing.assert_array_equal(IMAGE, before)
  grey = made.apply({'image': IMAGE[..., :1]}, draws)['image']
  np.testing.assert_array_equal(grey, whole[..., :1])


def test_settings_and_images_that_do_not_fit_are_refused():
  with pytest.raises(types.InputError, match='strength must be in'):
    stains.stain_jitter(-1.0)
  with pytest.raises(types.InputError, match='blur must be in'):
    stains.stain_jitter(blur=2.0)
  with pytest.raises(ValueError, match='float64'):
    stains.stain_jitter().apply({'image': IMAGE / 255}, np.zeros((6, 8)))
