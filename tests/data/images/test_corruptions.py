"""Corruptions are the published ones, and a row's own.

`corruptions.npz` holds two photographs' crops, every fourth or eighth pixel of
what the authors' code (make_cifar_c.py; make_imagenet_c.py for elastic changes
and magnification) and imagecorruptions 1.1.2 (the rest of ImageNet-C's
constants, motion and snow) made of them, with OpenCV 4.11, scikit-image 0.22
and random numbers from NumPy's seed 7.
"""

import io
import pathlib
import pickle

import numpy as np
from PIL import Image
import pytest

from repjax import types
from repjax.data.images import corruptions
from repjax.data.images.corruptions import applying
from repjax.data.images.corruptions import blur
from repjax.data.reading import source as sources

_ALL = corruptions.COMMON + corruptions.HELD_OUT
_MADE = np.load(pathlib.Path(__file__).parent / 'corruptions.npz')
# OpenCV interpolates and measures distances in fixed point: share of pixels
# that are off by more than a level.
_OFF = {'elastic_transform': 0.04, 'spatter': 0.12}


class _Legacy:
  """The global random numbers that the authors' code draws from."""

  def __init__(self):
    self._state = np.random.RandomState(7)
    self._new = np.random.default_rng(7)  # scikit-image's.

  def normal(self, mean=0.0, std=1.0, size=None):
    return self._state.normal(mean, std, size)

  def uniform(self, low, high, size=None):
    return self._state.uniform(low, high, size)

  def poisson(self, mean):
    return self._state.poisson(mean)

  def integers(self, low, high=None, size=None):
    return self._state.randint(low, high, size)

  def random(self, size):
    return self._new.random(size)


@pytest.mark.parametrize('scale', ['cifar', 'imagenet'])
@pytest.mark.parametrize('place', range(len(_MADE['names'])))
def test_equals_public_code_to_a_grey_level(place, scale):
  name = str(_MADE['names'][place])
  image = _MADE[scale]
  if (name, scale) == ('elastic_transform', 'imagenet'):  # Made for 224 pixels.
    image = image.repeat(4, 0).repeat(4, 1)[:224, :224]
  found = applying.KINDS[name]
  step = len(image) // 8
  for severity in range(5):
    ours = found.apply(
      image[None] / 255, [_Legacy()], **found.constants[scale][severity]
    )
    ours = blur.to_levels(ours)[0, ::step, ::step].astype(int)
    theirs = _MADE['pixels'][int(scale == 'imagenet'), place, severity]
    off = abs(ours - theirs)
    assert (off > 1).mean() <= _OFF.get(name, 0.0), severity
  assert (theirs != image[::step, ::step]).any()


def _images(channels=3, count=3):
  tiles = np.stack(
    [_MADE['cifar'], *(_MADE['cifar'][::-1, ::-1],) * (count - 1)]
  )
  return tiles if channels == 3 else tiles.mean(-1, keepdims=True).astype('u1')


@pytest.mark.parametrize('name', _ALL)
def test_a_row_depends_on_seed_and_number_alone(name):
  images = _images()
  settings = dict(severity=3, scale='cifar', seed=5)
  every = corruptions.corrupt(images, name, **settings)
  assert every.shape == images.shape and every.dtype == np.uint8
  some = corruptions.corrupt(
    images[[2, 0]], name, rows=np.array([2, 0]), **settings
  )
  np.testing.assert_array_equal(some, every[[2, 0]])
  other = corruptions.corrupt(images, name, **{**settings, 'seed': 6})
  draws = not np.array_equal(other, every)
  # Rows 1 and 2 are one picture.
  assert draws == (not np.array_equal(every[1], every[2]))
  assert draws == (
    name
    not in (
      'defocus_blur',
      'zoom_blur',
      'brightness',
      'contrast',
      'pixelate',
      'jpeg_compression',
      'gaussian_blur',
      'saturate',
    )
  )


@pytest.mark.parametrize('name', _ALL)
def test_grey_images_and_floats_of_any_size(name):
  grey = _images(1)[:, :, :20]
  for severity in (1, 5):
    changed = corruptions.corrupt(grey, name, severity=severity)
    assert changed.shape == grey.shape
    assert (name == 'saturate') == np.array_equal(changed, grey)
    as_float = corruptions.corrupt(
      (grey / 255).astype(np.float32), name, severity=severity
    )
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(np.rint(as_float * 255), changed)
  tiny = corruptions.corrupt(np.zeros((2, 8, 8, 1), np.uint8), name, severity=5)
  assert tiny.shape == (2, 8, 8, 1)
  assert corruptions.corrupt(grey[:0], name, severity=1).shape == (0, 32, 20, 1)


@pytest.mark.parametrize('name', _ALL)
@pytest.mark.parametrize('scale', ['cifar', 'imagenet'])
def test_the_highest_severity_changes_more_than_the_lowest(name, scale):
  images = np.tile(_MADE['imagenet'], (4, 1, 1, 1))
  changes = [
    abs(
      corruptions.corrupt(images, name, severity=s, scale=scale).astype(int)
      - images
    ).mean()
    for s in (1, 5)
  ]
  # Published so: less saturation, then more; elastic changes get finer.
  if name not in ('saturate', 'elastic_transform'):
    assert changes[0] < changes[1]
  assert min(changes) > 0


def test_contrast_and_brightness_by_hand():
  grey = np.array([[0, 100], [200, 100]], np.uint8)[None, :, :, None]
  # The mean is 100; .15 of the distance from it is kept.
  np.testing.assert_array_equal(
    corruptions.corrupt(grey, 'contrast', severity=5)[0, ..., 0],
    [[85, 100], [115, 100]],
  )
  np.testing.assert_array_equal(
    corruptions.corrupt(grey, 'brightness', severity=5)[0, ..., 0],
    [[76, 176], [255, 176]],  # + 0.3 * 255
  )


def test_frost_has_the_measured_texture():
  black = np.zeros((200, 32, 32, 3), np.uint8)
  layer = corruptions.corrupt(black, 'frost', severity=1, scale='imagenet')
  layer = layer / 255 / 0.4
  # The mean of the five photographs, blue above red, and the texture's spread.
  np.testing.assert_allclose(
    layer.mean((0, 1, 2)), [0.572, 0.656, 0.701], atol=0.04
  )
  assert abs(layer.mean(-1).std((1, 2)).mean() - 0.062) < 0.005


def test_a_corrupted_set_is_read_like_any_other():
  images = _images()
  source = sources.from_arrays(
    'three', {'image': images, 'label': np.arange(3)}, num_classes=3
  )
  changed = corruptions.corrupted(source, 'shot_noise', severity=5, seed=1)
  expected = corruptions.corrupt(images, 'shot_noise', severity=5, seed=1)
  np.testing.assert_array_equal(changed.column('image'), expected)
  # Numbers of rows are those of the set that was corrupted.
  chosen = pickle.loads(pickle.dumps(changed.select([2, 1]))).read([0, 1])
  np.testing.assert_array_equal(chosen['image'], expected[[2, 1]])
  np.testing.assert_array_equal(chosen['label'], [2, 1])


def test_images_that_differ_in_size():
  def as_file(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()

  images = [_MADE['cifar'], _MADE['imagenet'][:40]]
  files = np.empty(2, object)
  files[:] = [as_file(x) for x in images]
  source = sources.Source(
    name='two',
    version='',
    split='train',
    num_rows=2,
    num_classes=None,
    class_names=None,
    image_shape=None,
    reader=lambda rows: {'image': files[rows]},
    encoded={'image': (None, None, 3)},
  )
  read = corruptions.corrupted(source, 'gaussian_noise', severity=2).read(
    [1, 0]
  )
  for row, image in zip((1, 0), read['image'], strict=True):
    expected = corruptions.corrupt(
      images[row][None], 'gaussian_noise', severity=2, rows=[row]
    )
    np.testing.assert_array_equal(image, expected[0])


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    (dict(name='contrst'), "Did you mean 'contrast'"),
    (dict(severity=6), 'severity'),
    (dict(severity=0), 'severity'),
    (dict(scale='mnist'), 'scale'),
    (dict(images=np.zeros((2, 8, 8), np.uint8)), r'\[N, H, W, 3\]'),
    (dict(images=np.zeros((2, 8, 8, 4), np.uint8)), r'\[N, H, W, 3\]'),
    (dict(images=np.zeros((2, 8, 8, 1), np.int32)), 'uint8'),
    (dict(images=np.full((2, 8, 8, 1), 1.5)), 'before normalising'),
    (dict(rows=np.array([3])), r'one number an image, .* got \(1,\)'),
  ],
)
def test_what_cannot_be_corrupted(change, says):
  given = {
    'images': _images(),
    'name': 'contrast',
    'severity': 1,
    'scale': 'cifar',
    **change,
  }
  with pytest.raises(types.InputError, match=says):
    corruptions.corrupt(given.pop('images'), given.pop('name'), **given)


def test_a_set_without_pictures():
  source = sources.from_arrays('table', {'features': np.zeros((3, 2))})
  with pytest.raises(types.InputError, match='no images'):
    corruptions.corrupted(source, 'fog', severity=1)
