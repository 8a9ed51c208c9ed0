"""Views are convex mixes of chains, and a row's draws decide them alone."""

import numpy as np
import pytest

from repjax import types
from repjax.data.images import augmix
from repjax.data.images import randaugment
from repjax.data.images import transforms

_RNG = np.random.default_rng(0)
IMAGES = _RNG.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def _apply(images, draws, **settings):
  return augmix.augmix(**settings).apply({'image': images}, draws)


def _draws(num_rows, **settings):
  count = augmix.augmix(**settings).num_draws
  return np.random.default_rng(1).random((num_rows, count))


def test_views_differ_and_the_image_stays():
  out = _apply(IMAGES, _draws(6))
  np.testing.assert_array_equal(out['image'], IMAGES)
  for name in ('strong', 'strong_2'):
    assert out[name].dtype == np.uint8 and out[name].shape == IMAGES.shape
    assert (out[name] != IMAGES).any((1, 2, 3)).sum() >= 4
  assert (out['strong'] != out['strong_2']).any((1, 2, 3)).sum() >= 4


def test_a_row_does_not_depend_on_the_others():
  draws = _draws(6)
  together = _apply(IMAGES, draws)
  for row in range(6):
    alone = _apply(IMAGES[row : row + 1], draws[row : row + 1])
    np.testing.assert_array_equal(alone['strong'][0], together['strong'][row])


def test_an_image_that_keeps_all_of_itself_is_itself():
  draws = _draws(6, views=('strong',))
  draws[:, 3] = 1.0  # m
  out = _apply(IMAGES, draws, views=('strong',))
  np.testing.assert_array_equal(out['strong'], IMAGES)


def test_one_operation_alone_is_that_operation():
  # Weight on the first chain alone, of one operation: autocontrast.
  draws = np.zeros((1, augmix.augmix(views=('strong',)).num_draws))
  draws[:, 0] = 0.5
  image = np.linspace(50, 100, 64).reshape(1, 8, 8, 1).astype(np.uint8)
  out = _apply(image, draws, views=('strong',))['strong']
  assert out.min() == 0 and out.max() == 255


def test_severity_is_the_strength():
  image = np.zeros((200, 16, 16, 1), np.uint8)
  image[:, 4:12, 4:12] = 200
  draws = _draws(200)
  distance = [
    abs(_apply(image, draws, severity=x)['strong'].astype(int) - image).mean()
    for x in (1.0, 3.0, 10.0)
  ]
  assert distance == sorted(distance)


@pytest.mark.parametrize('severity', [1.0, 3.0])
def test_levels_are_uniform_as_the_authors_are(severity, monkeypatch):
  seen = []
  monkeypatch.setattr(
    augmix,
    '_operations',
    lambda level: seen.append(level) or [lambda images, sign: images],
  )
  image = np.zeros((400, 2, 2, 1), np.uint8)
  draws = _draws(400, views=('strong',))
  _apply(image, draws, severity=severity, views=('strong',))
  levels = np.unique(seen)
  assert len(levels) == 10
  np.testing.assert_allclose(np.diff(levels), (severity - 0.1) / 10)
  assert levels.mean() == pytest.approx((0.1 + severity) / 2)


def test_scaling_reaches_the_views():
  scale = augmix.on_views(transforms.normalise((0.5,), (0.5,)))
  columns = _apply(IMAGES, _draws(6))
  out = scale.apply(columns, np.zeros((6, 0)))
  for name in ('image', 'strong', 'strong_2'):
    expected = (columns[name] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(out[name], expected, atol=1e-5)


def test_what_is_no_image_is_refused():
  with pytest.raises(types.InputError, match='uint8'):
    _apply(IMAGES.astype(np.float32), _draws(6))
  with pytest.raises(types.InputError, match='severity must be in'):
    augmix.augmix(0.0)


@pytest.mark.parametrize(
  ('level', 'bits', 'threshold'), [(0.1, 4, 254), (3.0, 3, 180), (10.0, 0, 0)]
)
def test_operations_get_stronger_with_their_level(level, bits, threshold):
  image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  table = augmix._operations(level)
  assert len(table) == 9
  np.testing.assert_array_equal(
    table[2](image, None), randaugment.posterize(image, bits)
  )
  np.testing.assert_array_equal(
    table[4](image, None), randaugment.solarize(image, threshold)
  )


def test_a_view_is_the_published_sum_of_three_chains():
  draws = _draws(6, views=('strong',))
  found = _apply(IMAGES, draws, views=('strong',))['strong']
  for image, draw, view in zip(IMAGES, draws, found, strict=True):
    rates, mixed = -np.log1p(-draw[:3]), np.zeros(image.shape)
    for rate, own in zip(rates, draw[5:].reshape((3, 10)), strict=True):
      done = image[None]
      for which, level, sign in own[1:].reshape((3, 3))[: 1 + int(3 * own[0])]:
        strength = (np.ceil(10 * level) - 0.5) / 10 * (3.0 - 0.1) + 0.1
        operation = augmix._operations(strength)[int(9 * which)]
        done = operation(done, np.array([[sign]]))
      mixed += rate / rates.sum() * done[0]
    expected = draw[3] * image + (1 - draw[3]) * mixed
    np.testing.assert_allclose(view, expected, atol=1)
