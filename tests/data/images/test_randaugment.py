"""RandAugment's operations against Pillow and loops over pixels."""

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest

from repjax.data.images import randaugment


def images(channels=3, num_rows=4, seed=0):
  """Noise, a gradient, and a low-contrast image: the cases of the tables."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (num_rows, 13, 16, channels), np.uint8)
  pixels[1] = np.arange(16, dtype=np.uint8)[:, None] * 9 + 40
  pixels[2] = pixels[2] // 8 + 100
  pixels[3] = 77
  return pixels


def pillow(fn, pixels):
  def one(image):
    flat = image[..., 0] if image.shape[-1] == 1 else image
    return np.asarray(fn(Image.fromarray(flat))).reshape(image.shape)

  return np.stack([one(image) for image in pixels])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  ('ours', 'theirs', 'tolerance'),
  [
    (randaugment.autocontrast, ImageOps.autocontrast, 1),
    (randaugment.equalize, ImageOps.equalize, 0),
    (
      lambda x: randaugment.posterize(x, 3),
      lambda x: ImageOps.posterize(x, 3),
      0,
    ),
    (
      lambda x: randaugment.solarize(x, 90),
      lambda x: ImageOps.solarize(x, 90),
      0,
    ),
  ],
)
def test_tables_are_pillows(ours, theirs, tolerance, channels):
  pixels = images(channels)
  difference = ours(pixels).astype(int) - pillow(theirs, pixels).astype(int)
  assert abs(difference).max() <= tolerance


def test_equalize_is_pillows_where_every_level_has_pixels():
  pixels = np.random.default_rng(0).normal(90, 30, (5, 64, 50, 3))
  pixels = np.clip(pixels, 0, 255).astype(np.uint8)
  actual = randaugment.equalize(pixels)
  assert (actual != pixels).mean() > 0.9
  np.testing.assert_array_equal(actual, pillow(ImageOps.equalize, pixels))


@pytest.mark.parametrize(
  ('name', 'magnitude', 'expected'),
  [
    ('posterize', 5, lambda x: randaugment.posterize(x, 2)),
    ('solarize', 5, lambda x: randaugment.solarize(x, 128)),
    ('solarize_add', 5, lambda x: randaugment.solarize_add(x, 55)),
    ('color', 10, lambda x: randaugment.color(x, 1.9)),
    ('contrast', 0, lambda x: randaugment.contrast(x, 0.1)),
    ('brightness', 5, lambda x: x),
    ('sharpness', 10, lambda x: randaugment.sharpness(x, 1.9)),
    ('invert', 3, lambda x: 255 - x),
  ],
)
def test_magnitudes_are_the_authors(name, magnitude, expected):
  pixels = images()
  np.testing.assert_array_equal(
    operation(name, magnitude, pixels, 0.3), expected(pixels)
  )


@pytest.mark.parametrize('factor', [0.1, 0.64, 1.0, 1.9])
@pytest.mark.parametrize(
  'name', ['color', 'contrast', 'brightness', 'sharpness']
)
def test_blends_are_pillows(name, factor):
  pixels = images()
  enhancer = getattr(ImageEnhance, name.capitalize())
  expected = pillow(lambda x: enhancer(x).enhance(factor), pixels)
  actual = getattr(randaugment, name)(pixels, factor)
  # Grey values and the smoothed image are rounded differently by one level,
  # which a factor of 1.9 cannot enlarge to more than two.
  assert abs(actual.astype(int) - expected.astype(int)).max() <= 2


def test_color_does_nothing_to_grey_images():
  pixels = images(1)
  np.testing.assert_array_equal(randaugment.color(pixels, 0.3), pixels)


def test_solarize_add_brightens_the_dark_half():
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  actual = randaugment.solarize_add(pixels, 110).ravel()
  for value in range(256):
    assert actual[value] == (min(value + 110, 255) if value < 128 else value)


def test_posterize_to_no_bits_is_black_and_to_eight_the_identity():
  pixels = images()
  assert not randaugment.posterize(pixels, 0).any()
  np.testing.assert_array_equal(randaugment.posterize(pixels, 8), pixels)


def from_nearest(image, place):
  """The image whose pixel (y, x) is the nearest to place(y, x), else 128."""
  result = np.full_like(image, 128)
  height, width = image.shape[:2]
  for y in range(height):
    for x in range(width):
      source_y, source_x = (int(np.floor(k + 0.5)) for k in place(y, x))
      if 0 <= source_y < height and 0 <= source_x < width:
        result[y, x] = image[source_y, source_x]
  return result


def operation(name, magnitude, pixels, sign_draw):
  draws = np.full((len(pixels), 3), sign_draw)
  table = randaugment.operations(magnitude, translate=0.3, cutout=0.2)
  return table[name](pixels, draws)


@pytest.mark.parametrize('sign_draw', [0.2, 0.8])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'name', ['rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y']
)
def test_geometry_takes_the_nearest_pixel(name, channels, sign_draw):
  pixels = images(channels)
  sign = 1 if sign_draw < 0.5 else -1
  angle = sign * np.pi / 6 * 0.7

  def turned(y, x):
    y, x = y - 6, x - 7.5
    return (
      np.sin(angle) * x + np.cos(angle) * y + 6,
      np.cos(angle) * x - np.sin(angle) * y + 7.5,
    )

  place = {
    'rotate': turned,
    'shear_x': lambda y, x: (y, x + sign * 0.21 * y),
    'shear_y': lambda y, x: (y + sign * 0.21 * x, x),
    'translate_x': lambda y, x: (y, x + sign * 0.21 * 16),
    'translate_y': lambda y, x: (y + sign * 0.21 * 13, x),
  }[name]
  actual = operation(name, 7, pixels, sign_draw)
  for image, result in zip(pixels, actual, strict=True):
    np.testing.assert_array_equal(result, from_nearest(image, place))


def test_rotating_a_square_by_a_right_angle_is_rot90():
  pixels = images()[:, :13, :13]
  turned = randaugment.rotate(pixels, np.full(4, np.pi / 2))
  back = randaugment.rotate(turned, np.full(4, -np.pi / 2))
  np.testing.assert_array_equal(back, pixels)
  assert np.array_equal(turned, np.rot90(pixels, 1, (1, 2))) or np.array_equal(
    turned, np.rot90(pixels, -1, (1, 2))
  )


def test_cutout_fills_a_grey_square():
  pixels = np.zeros((1, 13, 16, 3), np.uint8)
  # Half the side is int(0.2 * 13) = 2, around row 6 and column 8.
  actual = operation('cutout', 10, pixels, 0.5)
  expected = np.zeros_like(pixels)
  expected[:, 4:8, 6:10] = 128
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('name', randaugment.operations(10, 0.4, 0.2))
@pytest.mark.parametrize('magnitude', [0, 10, 30])
def test_every_operation_keeps_shape_and_type(name, magnitude):
  for channels in (1, 3):
    pixels = images(channels)
    pixels.flags.writeable = False
    result = operation(name, magnitude, pixels, 0.3)
    assert result.shape == pixels.shape
    assert result.dtype == np.uint8


def test_each_row_goes_through_the_operations_that_it_drew():
  pixels = images(num_rows=60)
  transform = randaugment.rand_augment(2, 6)
  assert transform.num_draws == 8
  draws = np.random.default_rng(5).random((60, 8))
  actual = transform.apply({'image': pixels}, draws)['image']
  table = list(randaugment.operations(6, 100 / 224, 40 / 224).values())
  assert len(table) == 16
  chosen = set()
  for row, draw in enumerate(draws.reshape(60, 2, 4)):
    expected = pixels[row : row + 1]
    for layer in draw:
      number = int(layer[0] * 16)
      chosen.add(number)
      expected = table[number](expected, layer[None, 1:])
    np.testing.assert_array_equal(actual[row : row + 1], expected)
  assert chosen == set(range(16))


def test_no_layers_is_the_identity():
  transform = randaugment.rand_augment(0, 10)
  result = transform.apply({'image': images()}, np.empty((4, 0)))
  np.testing.assert_array_equal(result['image'], images())


def test_floats_are_refused():
  transform = randaugment.rand_augment(1, 10)
  with pytest.raises(ValueError, match='uint8'):
    transform.apply({'image': np.zeros((1, 4, 4, 3))}, np.zeros((1, 4)))
