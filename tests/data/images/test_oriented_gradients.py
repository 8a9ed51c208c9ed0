"""Histograms of oriented gradients against loops over pixels."""

import numpy as np
import pytest

from repjax.data.images import oriented_gradients

NONE = np.empty((1, 0))


def features(images, cell=4, bins=8):
  transform = oriented_gradients.oriented_gradients(cell=cell, bins=bins)
  return transform.apply({'image': images}, NONE)['image']


def by_pixels(image, cell, bins):
  """[H, W] -> [H / cell, W / cell, bins]."""
  height, width = image.shape
  found = np.zeros((height // cell, width // cell, bins))
  for y in range(height):
    for x in range(width):
      down = image[min(y + 1, height - 1), x] - image[max(y - 1, 0), x]
      right = image[y, min(x + 1, width - 1)] - image[y, max(x - 1, 0)]
      place = np.arctan2(down, right) / (2 * np.pi) * bins
      low = int(np.floor(place))
      size = np.hypot(down, right) / 2
      own = found[y // cell, x // cell]
      own[low % bins] += size * (1 - (place - low))
      own[(low + 1) % bins] += size * (place - low)
  return found / (np.linalg.norm(found) + 1e-3)


def test_it_equals_a_loop_over_pixels():
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 1), np.uint8)
  found = features(images)
  assert found.shape == (3, 2, 3, 8)
  assert found.dtype == np.float32
  for row, image in zip(found, images, strict=True):
    expected = by_pixels(image[..., 0].astype(float), 4, 8)
    np.testing.assert_allclose(row, expected, atol=1e-5)


def test_an_edge_has_the_direction_in_which_it_brightens():
  image = np.zeros((1, 8, 8, 1), np.uint8)
  image[:, :, 4:] = 255
  for turns, direction in ((0, 0), (1, 6), (2, 4), (3, 2)):
    turned = np.rot90(image, turns, axes=(1, 2))  # Counterclockwise.
    by_direction = features(turned)[0].sum((0, 1))
    assert by_direction.argmax() == direction
    np.testing.assert_allclose(
      by_direction.sum(), by_direction[direction], rtol=1e-5
    )


def test_brightness_and_colour_do_not_count():
  image = np.random.default_rng(1).uniform(1, 50, (1, 8, 8, 1))
  first = features(image)
  np.testing.assert_allclose(features(4 * image), first, atol=1e-4)
  np.testing.assert_allclose(features(image + 9), first, atol=1e-5)
  np.testing.assert_allclose(features(image.repeat(3, -1)), first, atol=1e-6)
  np.testing.assert_array_equal(features(0 * image), 0)


def test_cells_must_fit():
  with pytest.raises(ValueError, match='cell=3'):
    features(np.zeros((1, 8, 8, 1)), cell=3)
  with pytest.raises(ValueError, match='bins=1'):
    features(np.zeros((1, 8, 8, 1)), bins=1)
