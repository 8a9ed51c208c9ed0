"""Exemplars are those of a sort over all that units ever give."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from repjax import types
from repjax.analysis import exemplars

_ROWS, _SIDE, _K = 23, 6, 4


class _Net(nn.Module):
  """Maps, tokens with one in front, and a dense layer."""

  @nn.compact
  def __call__(self, image):
    x = nn.Conv(5, (3, 3), strides=2, name='conv')(image)
    tokens = x.reshape(len(x), -1, 5)
    tokens = nn.Dense(3, name='tokens')(
      jax.numpy.concatenate([tokens.mean(1, keepdims=True), tokens], 1)
    )
    return nn.Dense(2, name='head')(tokens.mean(1))


_NET = _Net()


def _predict(variables, batch):
  return _NET.apply(variables, batch['image'])


@pytest.fixture(scope='module')
def made():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(_ROWS, _SIDE, _SIDE, 1)).astype(np.float32)
  variables = _NET.init(jax.random.key(0), image[:1])
  _, seen = _NET.apply(
    variables, image, capture_intermediates=True, mutable='intermediates'
  )
  seen = jax.tree.map(np.asarray, seen['intermediates'])
  maps = {
    name: seen[name]['__call__'][0] for name in ('conv', 'tokens', 'head')
  }
  maps['tokens'] = maps['tokens'][:, 1:].reshape(_ROWS, 3, 3, 3)
  maps['head'] = maps['head'][:, None, None]
  return image, variables, maps


def _batches(image, size=8, **columns):
  for start in range(0, len(image), size):
    part = image[start : start + size]
    lacking = size - len(part)
    garbage = np.full((lacking, *image.shape[1:]), np.nan, np.float32)
    yield dict(
      image=np.concatenate([part, garbage]),
      mask=np.arange(size) < len(part),
      **{
        k: np.pad(x[start : start + size], (0, lacking))
        for k, x in columns.items()
      },
    )


@pytest.mark.parametrize('layer', ['conv', 'tokens', 'head'])
def test_they_are_those_of_a_sort(made, layer):
  image, variables, maps = made
  found = exemplars.collect(
    _predict, variables, _batches(image), (layer,), k=_K, quantile=0.9
  )[layer]
  peak = maps[layer].max((1, 2))
  order = np.argsort(-peak, axis=0, kind='stable')[:_K].T
  np.testing.assert_array_equal(found.row, order)
  np.testing.assert_allclose(
    found.peak, np.take_along_axis(peak.T, order, 1), rtol=1e-5
  )
  for unit, rows in enumerate(order):
    expected = maps[layer][rows, :, :, unit]
    np.testing.assert_allclose(found.maps[unit], expected, atol=1e-5)
  values = np.sort(maps[layer].reshape(-1, maps[layer].shape[-1]), axis=0)
  place = int(0.9 * len(values))
  assert (found.threshold >= values[place - 2] - 0.05).all()
  assert (
    found.threshold <= values[min(place + 2, len(values) - 1)] + 0.05
  ).all()


def test_the_order_of_the_images_and_of_batches_changes_nothing(made):
  image, variables, _ = made
  order = np.random.default_rng(1).permutation(_ROWS).astype(np.int32)
  collect = functools.partial(
    exemplars.collect, _predict, variables, layers=('conv',), k=_K
  )
  first = collect(_batches(image))['conv']
  other = collect(_batches(image[order], index=order))['conv']
  np.testing.assert_array_equal(first.row, other.row)
  np.testing.assert_allclose(first.maps, other.maps, atol=1e-6)
  np.testing.assert_array_equal(first.threshold, other.threshold)


def test_a_part_of_the_places_is_enough_for_a_quantile():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(400, 12, 12, 1)).astype(np.float32)

  def found(positions):
    return exemplars.collect(
      _pixels, {}, _batches(image, 100), ('same',), k=3, positions=positions
    )['same']

  whole, part = found(None), found(36)
  np.testing.assert_array_equal(whole.row, part.row)
  # Standard error of a .99 quantile of 14,400 normal numbers: .03.
  assert abs(whole.threshold - part.threshold) < 0.15
  assert abs(whole.threshold - np.quantile(image, 0.99)) < 0.05


class _Same(nn.Module):
  @nn.compact
  def __call__(self, image):
    return _Identity(name='same')(image)


class _Identity(nn.Module):
  def __call__(self, x):
    return x


def _pixels(variables, batch):
  return _Same().apply(variables, batch['image'])


@pytest.mark.parametrize('positions', [1, 30, 50, 80])
def test_no_place_is_left_out_of_a_quantile(positions):
  # Of 81 places the last ones have the largest values.
  image = np.broadcast_to(np.arange(81.0).reshape(9, 9, 1), (81, 9, 9, 1))
  found = exemplars.collect(
    _pixels,
    {},
    _batches(image.astype(np.float32), 81),
    ('same',),
    k=2,
    quantile=0.9,
    positions=positions,
  )
  assert found['same'].threshold == pytest.approx(0.9 * 81, rel=0.05)


def test_units_that_are_never_active_are_said_to_be():
  image = np.zeros((6, 2, 2, 3), np.float32)
  image[..., 1] = np.arange(6)[:, None, None] + 1
  image[..., 2] = -image[..., 1]
  found = exemplars.collect(_pixels, {}, _batches(image, 3), ('same',), k=2)
  assert found['same'].is_active.tolist() == [False, True, False]


def test_masks_are_where_maps_are_above_the_threshold():
  image = np.zeros((4, 4, 4, 1), np.float32)
  image[:, 1, 2] = np.arange(1, 5)[:, None]
  found = exemplars.collect(
    _pixels, {}, _batches(image, 4), ('same',), k=2, quantile=0.9
  )['same']
  masks = exemplars.masks(found, (4, 4))
  assert masks.shape == (1, 2, 4, 4)
  assert masks[0, :, 1, 2].all()
  assert masks.sum() == 2
  grown = exemplars.masks(found, (8, 8))
  assert grown[0, 0, 2:4, 4:6].all()
  assert not grown[0, 0, :1].any()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(k=0), 'k must be'),
    (dict(k=30), '23 images for 30 exemplars'),
    (dict(quantile=1.0), 'quantile must be'),
    (dict(positions=0), 'positions must be'),
    (dict(layers=()), 'at least one layer'),
    (dict(layers=('konv',)), "no layer 'konv'.*conv"),
    (dict(batches=()), 'no batch'),
  ],
)
def test_bad_input_is_said_in_one_line(made, change, message):
  image, variables, _ = made
  settings = dict(batches=_batches(image), layers=('conv',), k=2)
  with pytest.raises(types.InputError, match=message):
    exemplars.collect(_predict, variables, **{**settings, **change})


def test_a_unit_that_gives_no_number_is_named():
  image = np.ones((4, 2, 2, 2), np.float32)
  image[2, 0, 0, 1] = np.nan
  with pytest.raises(types.InputError, match="Unit 1 of the layer 'same'"):
    exemplars.collect(_pixels, {}, _batches(image, 4), ('same',), k=2)


def test_a_unit_that_gives_one_number_is_not_active():
  image = np.full((6, 2, 2, 2), 3.0, np.float32)
  image[..., 1] += np.arange(6)[:, None, None]
  found = exemplars.collect(_pixels, {}, _batches(image, 4), ('same',), k=2)
  assert found['same'].is_active.tolist() == [False, True]
