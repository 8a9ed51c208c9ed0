"""Decoding and cropping of images that differ in size."""

import io

import numpy as np
from PIL import Image
import pytest

from repjax.data.reading import decode


def picture(width, height, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return decode.to_picture(
    rng.integers(0, 256, (height, width, channels), np.uint8)
  )


def draws_for(decoder, num_rows=1, seed=0):
  return np.random.default_rng(seed).random((num_rows, decoder.num_draws))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pictures_and_arrays_are_inverse(channels):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
  np.testing.assert_array_equal(
    decode.to_array(decode.to_picture(pixels)), pixels
  )


def test_files_are_converted_to_the_number_of_channels():
  stream = io.BytesIO()
  Image.fromarray(np.eye(4, dtype=bool)).save(stream, 'PNG')  # One bit.
  for channels in (1, 3):
    pixels = decode.to_array(decode.to_picture(stream.getvalue(), channels))
    expected = np.repeat(255 * np.eye(4, dtype=int)[..., None], channels, -1)
    np.testing.assert_array_equal(pixels, expected)


def test_arrays_that_are_no_pictures_are_refused():
  for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8)):
    with pytest.raises(ValueError, match='uint8 pixels with 1, 3 or 4'):
      decode.to_picture(pixels)


@pytest.mark.parametrize('size', [6, (4, 9)])
def test_resize_takes_the_whole_image(size):
  source = picture(12, 8)
  height, width = (6, 6) if size == 6 else size
  expected = source.resize((width, height), Image.Resampling.BILINEAR)
  actual = decode.resize(size).apply(source, np.empty(0))
  np.testing.assert_array_equal(actual, np.asarray(expected))


@pytest.mark.parametrize(
  ('full', 'size', 'fraction', 'resized'),
  [
    ((256, 256), (224, 224), 0.875, (256, 256)),
    ((512, 256), (56, 56), 0.875, (128, 64)),
    ((64, 256), (16, 8), 0.5, (16, 64)),
    ((30, 60), (10, 10), 1.0, (10, 20)),
  ],
)
def test_central_crop_is_the_middle_of_the_resized_image(
  full, size, fraction, resized
):
  source = picture(*full)
  small = np.asarray(source.resize(resized, Image.Resampling.BILINEAR))
  top, left = (small.shape[0] - size[0]) // 2, (small.shape[1] - size[1]) // 2
  expected = small[top : top + size[0], left : left + size[1]]
  decoder = decode.central_crop(size, fraction=fraction)
  actual = decoder.apply(source, np.empty(0)).astype(int)
  assert abs(actual - expected).max() <= 1  # Pillow rounds in between.


@pytest.mark.parametrize(
  ('full', 'largest'), [((64, 48), 0.7), ((31, 97), 0.42), ((9, 9), 0.69)]
)
def test_crops_keep_to_the_ranges(full, largest):
  area, aspect = (0.2, 0.7), (3 / 4, 4 / 3)
  seen = []
  for draws in np.random.default_rng(0).random((500, 20)):
    width, height = decode.crop_shape(full, draws, area=area, aspect=aspect)
    seen.append((width, height))
    part = width * height / (full[0] * full[1])
    assert 0.2 <= part <= 0.7
    assert (width - 0.5) / height <= 4 / 3
    assert (width + 0.5) / height >= 3 / 4
  parts = [w * h / (full[0] * full[1]) for w, h in seen]
  assert min(parts) < 0.25
  assert max(parts) > largest - 0.03


def test_heights_are_uniform_as_in_tensorflow():
  # With one aspect ratio, heights of a 100 x 100 image go from 50 to 100.
  draws = np.random.default_rng(0).random((5100, 2))
  heights = [
    decode.crop_shape((100, 100), row, area=(0.25, 1.0), aspect=(1.0, 1.0))[1]
    for row in draws
  ]
  counts = np.bincount(heights, minlength=101)[50:]
  assert counts.sum() == 5100
  assert counts.min() > 60
  assert counts.max() < 145


def test_a_crop_sees_nothing_of_its_surroundings():
  pixels = np.zeros((30, 30, 1), np.uint8)
  pixels[10:20, 10:20] = 200
  # Only 10 x 10 fits the ranges, and the draws put it into the middle.
  decoder = decode.inception_crop(4, area=(0.11, 0.112), aspect=(1.0, 1.0))
  draws = np.full(decoder.num_draws, 0.5)
  crop = decoder.apply(decode.to_picture(pixels), draws)
  assert (crop == 200).all()


def test_the_whole_image_is_taken_where_no_crop_fits():
  shape = decode.crop_shape(
    (100, 4), np.full(20, 0.5), area=(0.5, 1.0), aspect=(3 / 4, 4 / 3)
  )
  assert shape == (100, 4)
  full = decode.inception_crop(8, area=(0.5, 1.0))
  source = picture(100, 4)
  np.testing.assert_array_equal(
    full.apply(source, draws_for(full)[0]),
    decode.resize(8).apply(source, np.empty(0)),
  )


def test_a_crop_of_its_own_size_is_a_slice():
  # One area and one ratio: every crop is 10 x 10, so nothing is resized.
  area = 100 / (40 * 25)
  decoder = decode.inception_crop(10, area=(area, area), aspect=(1.0, 1.0))
  source = picture(40, 25)
  pixels = decode.to_array(source)
  places = set()
  for draws in draws_for(decoder, 300):
    x, y = int(draws[0] * 31), int(draws[1] * 16)
    places.add((x, y))
    np.testing.assert_array_equal(
      decoder.apply(source, draws), pixels[y : y + 10, x : x + 10]
    )
  assert {0, 30} <= {x for x, _ in places}
  assert {0, 15} <= {y for _, y in places}


@pytest.mark.parametrize(
  'make',
  [
    lambda: decode.resize(0),
    lambda: decode.central_crop(4, fraction=0.0),
    lambda: decode.inception_crop(4, area=(0.0, 1.0)),
    lambda: decode.inception_crop(4, area=(0.8, 0.2)),
    lambda: decode.inception_crop(4, aspect=(2.0, 1.0)),
    lambda: decode.inception_crop(4, attempts=0),
  ],
)
def test_wrong_settings_are_refused(make):
  with pytest.raises(ValueError, match='got'):
    make()
