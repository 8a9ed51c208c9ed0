"""Whole-batch transforms against loops over rows that nobody can doubt."""

import numpy as np
from PIL import Image
import pytest

from repjax.data.images import randaugment
from repjax.data.images import recipes
from repjax.data.images import transforms
from repjax.data.reading import source

_SHAPE = (7, 9, 12, 3)


def images(shape=_SHAPE, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def draws_for(transform, num_rows=_SHAPE[0], seed=1):
  return np.random.default_rng(seed).random((num_rows, transform.num_draws))


def apply(transform, pixels, draws):
  return transform.apply({'image': pixels}, draws)['image']


ALL = {
  'crop': transforms.random_crop(2),
  'crop_reflect': transforms.random_crop(2, mode='reflect'),
  'flip': transforms.random_flip(),
  'cutout': transforms.cutout(4),
  'erasing': transforms.random_erasing(),
  'erasing_fill': transforms.random_erasing(fill=(1, 2, 3)),
  'pad': transforms.pad(11, 13),
  'resize': transforms.resize(5, 7),
  'normalise': transforms.normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
  'scale': transforms.scale_to_unit(),
}


@pytest.mark.parametrize('name', ALL)
def test_a_row_does_not_depend_on_the_other_rows(name):
  pixels, transform = images(), ALL[name]
  draws = draws_for(transform)
  together = apply(transform, pixels, draws)
  alone = [
    apply(transform, pixels[i : i + 1], draws[i : i + 1])
    for i in range(len(pixels))
  ]
  np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize('name', ALL)
def test_the_input_is_never_written(name):
  pixels, transform = images(), ALL[name]
  pixels.flags.writeable = False
  columns = {'image': pixels, 'label': np.arange(len(pixels))}
  result = transform.apply(columns, draws_for(transform))
  assert columns['image'] is pixels
  assert result['label'] is columns['label']


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
@pytest.mark.parametrize('channels', [1, 3])
def test_random_crop_is_pad_and_slice(mode, channels):
  pixels = images((50, 9, 12, channels))
  transform = transforms.random_crop(3, mode=mode)
  draws = draws_for(transform, 50)
  actual = apply(transform, pixels, draws)
  places = set()
  for image, draw, crop in zip(pixels, draws, actual, strict=True):
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode)
    y, x = int(draw[0] * 7), int(draw[1] * 7)
    places.add((y, x))
    np.testing.assert_array_equal(crop, padded[y : y + 9, x : x + 12])
  assert len({y for y, _ in places}) == len({x for _, x in places}) == 7


def test_random_flip_mirrors_where_the_draw_is_below_one_half():
  pixels = images()
  draws = np.array([[0.0], [0.49], [0.5], [0.99], [0.2], [0.7], [0.1]])
  actual = apply(transforms.random_flip(), pixels, draws)
  for image, draw, result in zip(pixels, draws, actual, strict=True):
    expected = np.fliplr(image) if draw[0] < 0.5 else image
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('size', [1, 4, 5])
def test_cutout_fills_a_square_that_the_edge_cuts(size):
  pixels = images((40, 9, 12, 3))
  transform = transforms.cutout(size, fill=7)
  draws = draws_for(transform, 40)
  actual = apply(transform, pixels, draws)
  for image, draw, result in zip(pixels, draws, actual, strict=True):
    top = int(draw[0] * 9) - size // 2
    left = int(draw[1] * 12) - size // 2
    for y in range(9):
      for x in range(12):
        inside = top <= y < top + size and left <= x < left + size
        expected = 7 if inside else image[y, x]
        assert (result[y, x] == expected).all()


def test_random_erasing_fills_one_rectangle_within_the_ranges():
  pixels = np.zeros((400, 20, 30, 3), np.float32)
  transform = transforms.random_erasing(
    probability=0.7, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=(1, 2, 3)
  )
  actual = apply(transform, pixels, draws_for(transform, 400))
  erased = 0
  for image in actual:
    y, x = np.nonzero(image[..., 0])
    if not y.size:
      continue
    erased += 1
    box = image[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert (box == [1, 2, 3]).all()
    assert box.sum() == image.sum()
    # Rounding to whole pixels widens both ranges a little.
    assert 0.08 < box.shape[0] * box.shape[1] / 600 < 0.33
    assert 0.45 < box.shape[0] / box.shape[1] < 2.25
  assert 0.6 < erased / 400 < 0.8


def test_random_erasing_by_noise_fills_with_uniform_values():
  transform = transforms.random_erasing(
    probability=1.0, area=(0.3, 0.5), aspect=(0.8, 1.2)
  )
  draws = draws_for(transform, 300)
  blank = np.zeros((300, 20, 20, 3))
  noise = apply(transform, blank.astype(np.float32), draws)
  values = noise[noise != 0]
  assert 0.49 < values.mean() < 0.51
  assert values.min() < 0.01
  assert 0.99 < values.max() < 1
  pixels = apply(transform, blank.astype(np.uint8), draws)
  counts = np.bincount(pixels[pixels != 0], minlength=256)[1:]
  assert counts.min() > 0.8 * counts.mean()
  # Rows get noise of their own.
  patches = {image[image != 0][:20].tobytes() for image in noise}
  assert len(patches) > 290


def test_an_image_that_no_rectangle_fits_stays():
  pixels = images((5, 4, 40, 3))
  # Twice as high as wide, half of the area: 12.6 rows where there are 4.
  transform = transforms.random_erasing(
    probability=1.0, area=(0.5, 0.5), aspect=(2.0, 2.0)
  )
  actual = apply(transform, pixels, draws_for(transform, 5))
  np.testing.assert_array_equal(actual, pixels)


def test_normalise_is_value_over_255_minus_mean_over_std():
  pixels = images()
  mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
  actual = apply(transforms.normalise(mean, std), pixels, np.empty((7, 0)))
  assert actual.dtype == np.float32
  np.testing.assert_allclose(
    actual, (pixels / 255.0 - mean) / std, rtol=1e-5, atol=1e-6
  )
  single = apply(transforms.normalise(0.5, 0.25), pixels, np.empty((7, 0)))
  np.testing.assert_allclose(single, pixels / 63.75 - 2, rtol=1e-5, atol=1e-6)


def test_scale_to_unit_is_the_range_of_vit():
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  actual = apply(transforms.scale_to_unit(), pixels, np.empty((1, 0)))
  np.testing.assert_allclose(
    actual, (pixels.astype(np.float64) - 127.5) / 127.5, atol=1e-6
  )


def test_scaling_twice_is_refused():
  scale = transforms.scale_to_unit()
  floats = apply(scale, images(), np.empty((7, 0)))
  with pytest.raises(ValueError, match='uint8'):
    apply(scale, floats, np.empty((7, 0)))


@pytest.mark.parametrize('size', [(5, 7), (9, 12), (20, 31), (9, 3)])
def test_resize_is_pillows(size):
  pixels = images()
  actual = apply(transforms.resize(*size), pixels, np.empty((7, 0)))
  for image, result in zip(pixels, actual, strict=True):
    picture = Image.fromarray(image).resize(
      size[::-1], Image.Resampling.BILINEAR
    )
    difference = result.astype(int) - np.asarray(picture).astype(int)
    assert abs(difference).max() <= 1  # Pillow computes in whole numbers.


def test_pad_centres():
  pixels = images((2, 3, 4, 1))
  actual = apply(transforms.pad(6, 4, fill=9), pixels, np.empty((2, 0)))
  expected = np.full((2, 6, 4, 1), 9)
  expected[:, 1:4] = pixels
  np.testing.assert_array_equal(actual, expected)
  with pytest.raises(ValueError, match='3 x 9'):
    apply(transforms.pad(3, 9), images((2, 4, 4, 1)), np.empty((2, 0)))


def test_compose_gives_each_its_own_draws_in_order():
  chain = [ALL['crop'], ALL['flip'], ALL['cutout'], ALL['scale']]
  composed = transforms.compose(*chain)
  assert composed.num_draws == 5
  draws = draws_for(composed)
  expected = images()
  for transform, part in zip(
    chain, (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 5)), strict=True
  ):
    expected = apply(transform, expected, draws[:, part])
  np.testing.assert_array_equal(apply(composed, images(), draws), expected)


def test_compose_of_nothing_is_the_identity():
  identity = transforms.compose()
  columns = {'text': np.array([b'a'], object)}
  assert identity.num_draws == 0
  assert identity.apply(columns, np.empty((1, 0))) == columns


@pytest.mark.parametrize(
  'make',
  [
    lambda: transforms.random_crop(-1),
    lambda: transforms.random_crop(1, mode='wrap'),
    lambda: transforms.cutout(0),
    lambda: transforms.random_erasing(probability=1.5),
    lambda: transforms.random_erasing(area=(0.5, 0.1)),
    lambda: transforms.random_erasing(fill='mean'),
    lambda: transforms.normalise(127.5, 127.5),
    lambda: transforms.normalise(0.5, 0.0),
  ],
)
def test_wrong_settings_are_refused(make):
  with pytest.raises(ValueError, match='got'):
    make()


def test_a_recipe_is_its_steps_in_order():
  rows = source.from_arrays('rows', {'image': images((6, 8, 8, 3))})
  scale = dict(mean=(0.5,), std=(0.25,))
  made = recipes.images(
    rows,
    **dict(size=0, padding=2, flip=True, cutout=3, erasing=0.5),
    **dict(rand_augment_layers=1, rand_augment_magnitude=5),
    **scale,
  ).train
  steps = transforms.compose(
    transforms.random_crop(2),
    transforms.random_flip(),
    randaugment.rand_augment(1, 5),
    transforms.normalise(**scale),
    transforms.cutout(3),
    transforms.random_erasing(probability=0.5, fill=0.0),
  )
  assert made.num_draws == steps.num_draws
  draws, columns = draws_for(steps, 6), rows.read(np.arange(6))
  np.testing.assert_array_equal(
    made.apply(columns, draws)['image'], steps.apply(columns, draws)['image']
  )


def test_a_rectangle_lies_anywhere():
  transform = transforms.random_erasing(
    probability=1.0, area=(0.04, 0.04), aspect=(1.0, 1.0), fill=1.0
  )
  blank = np.zeros((500, 10, 10, 1), np.float32)
  found = apply(transform, blank, draws_for(transform, 500))[..., 0]
  top, left = (found.any(x).argmax(1) for x in (2, 1))
  assert set(top) == set(left) == set(range(9))  # Of 2 x 2 pixels.
  assert abs(np.corrcoef(top, left)[0, 1]) < 0.2
