"""Streams hold every row once, in their order; all forms see the same ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import types
from repjax.adapt import collapse
from repjax.adapt import norm_layers
from repjax.data.images import corruptions
from repjax.data.images import transforms
from repjax.data.reading import decode
from repjax.data.reading import decoded
from repjax.data.reading import source as sources
from repjax.methods import supervised
from repjax.models import resnet
from repjax.protocols import adaptation
from repjax.protocols import corrupted_streams

NUM_CLASSES = 3


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return sources.from_arrays(
    'noise',
    {
      'image': rng.integers(0, 256, (23, 8, 8, 1), np.uint8),
      'label': rng.integers(0, NUM_CLASSES, 23),
      'place': np.arange(23),
    },
    num_classes=NUM_CLASSES,
  )


@pytest.fixture(scope='module')
def trained(rows):
  """A method and two of its states."""
  method = supervised.make(
    resnet.PreActResNet(NUM_CLASSES, stage_sizes=(1,), width=4), optax.sgd(0.1)
  )
  columns = rows.columns()
  batch = {
    'image': np.float32(columns['image'] / 255),
    'label': columns['label'],
    'mask': np.ones(23, np.float32),
  }
  update = jax.jit(method.update)
  states = []
  for seed in (0, 1):
    state = loop.init(method, batch, seed, jax.local_devices()[:1])
    states.append(update(state, batch, jax.random.key(seed))[0])
  return method, jax.tree.map(lambda *x: np.stack(x), *jax.device_get(states))


def _streams(method, states, rows):
  return corrupted_streams.Streams(
    method,
    states,
    rows,
    transforms.scale_to_unit(0.0, 1.0),
    seeds=(5, 6),
    severity=5,
    scale='cifar',
    batch_size=8,
    blend=4.0,
  )


@pytest.mark.parametrize('order', ['shuffled', 'sorted', 'as it is'])
def test_a_stream_is_the_corrupted_set_in_its_order(rows, order):
  stream = adaptation.shifted(rows, 'fog', severity=4, order=order, seed=3)
  seen = stream.columns()
  assert sorted(seen['place']) == list(range(23))
  expected = corruptions.corrupt(
    rows.columns()['image'], 'fog', severity=4, seed=3
  )
  np.testing.assert_array_equal(seen['image'], expected[seen['place']])
  as_it_is = list(seen['place']) == list(range(23))
  assert as_it_is == (order == 'as it is')
  assert (order == 'sorted') == bool((np.diff(seen['label']) >= 0).all())
  clean = adaptation.shifted(rows, 'none', severity=4, order='as it is')
  assert clean is rows
  with pytest.raises(types.InputError, match='order'):
    adaptation.shifted(rows, 'none', severity=4, order='up')


def test_corruptions_are_those_of_images_as_networks_get_them():
  rng = np.random.default_rng(1)
  images = np.empty(5, object)
  images[:] = [
    rng.integers(0, 256, (24, 20 + i, 3), np.uint8) for i in range(5)
  ]
  rows = sources.from_arrays('photos', {'image': images, 'label': np.arange(5)})
  rows = dataclasses.replace(rows, encoded={'image': (None, None, 3)})
  middle = decode.central_crop(8)
  small = decoded.decoded(rows, middle)
  assert small.image_shape == (8, 8, 3)
  stream = adaptation.shifted(small, 'fog', severity=4, order='sorted', seed=3)
  np.testing.assert_array_equal(
    stream.columns()['image'],
    corruptions.corrupt(
      rows.read(np.arange(5), decode=middle)['image'], 'fog', severity=4, seed=3
    ),
  )
  with pytest.raises(ValueError, match='draws 22 numbers'):
    decoded.decoded(rows, decode.inception_crop(8))


def test_the_last_batch_is_filled_up():
  found = adaptation.batched({'x': np.arange(7)}, 3)
  np.testing.assert_array_equal(
    found['mask'], [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
  )
  np.testing.assert_array_equal(found['x'][found['mask'] > 0], np.arange(7))


def test_each_network_meets_its_own_stream(rows, trained):
  method, states = trained
  streams = _streams(method, states, rows)
  found = streams.errors('contrast', rate=0.0)
  assert list(found) == list(adaptation.NAMES)
  # At rate 0 Tent is the statistics of the batch.
  np.testing.assert_array_equal(found['Tent'], found['BN'])
  images = corruptions.corrupt(rows.columns()['image'], 'contrast', severity=5)
  labels = rows.columns()['label']
  predict = jax.jit(norm_layers.with_statistics(method.predict, 0.0))
  for i, seed in enumerate((5, 6)):
    state = jax.tree.map(lambda x: x[i], states)  # noqa: B023
    order = np.random.default_rng([seed, 1]).permutation(23)
    wrong = 0
    for start in (0, 8, 16):
      chosen = order[start : start + 8]
      batch = {
        'image': np.float32(images[chosen] / 255),
        'label': labels[chosen],
        'mask': np.ones(len(chosen), np.float32),
      }
      logits = np.asarray(predict(state, batch)['logits'])
      wrong += (logits.argmax(-1) != labels[chosen]).sum()
    np.testing.assert_allclose(found['BN'][i], wrong / 23)
  moved = streams.errors('contrast', rate=0.3, forms=('Tent',))
  assert list(moved) == ['Tent']
  mean = streams.mean_errors(['contrast', 'none'], rate=0.0, forms=('source',))
  clean = streams.errors('none', rate=0.0, forms=('source',))['source']
  np.testing.assert_allclose(mean['source'], (found['source'] + clean) / 2)


def test_no_network_stands_in_for_another(rows, trained):
  method, states = trained
  one = jax.tree.map(lambda x: jnp.asarray(x[:1]), states)
  with pytest.raises(types.InputError, match='1 states need as many streams'):
    _streams(method, one, rows).errors('none', rate=0.0, forms=('source',))


def test_blended_statistics_are_those_of_so_many_rows(rows, trained):
  method, states = trained
  state = jax.tree.map(lambda x: x[0], states)
  columns = rows.columns()
  batch = {
    'image': np.float32(columns['image'][:8] / 255),
    'label': columns['label'][:8],
    'mask': np.ones(8, np.float32),
  }
  made = adaptation.forms(
    method.predict, state, batch, optax.sgd(0.1), blend=4.0
  )
  _, found = jax.jit(made.step)(state, made.init(state), batch)
  for name, prior in (('BN', 0.0), ('blended', 4.0)):
    predict = jax.jit(norm_layers.with_statistics(method.predict, prior))
    np.testing.assert_allclose(
      found[name], predict(state, batch)['logits'], rtol=1e-5, atol=1e-6
    )
  assert np.abs(found['BN'] - found['blended']).max() > 1e-3
  with pytest.raises(types.InputError, match="'Bn'"):
    adaptation.forms(
      method.predict, state, batch, optax.sgd(0.1), blend=4.0, names=('Bn',)
    )


def _measured():
  """Labels, logits that are sure of them, and logits that are of one class."""
  labels = np.array([0, 1, 2, 0])
  sure = 5.0 * np.eye(NUM_CLASSES)[labels]
  return labels, sure, 20.0 * np.eye(NUM_CLASSES)[[0, 0, 0, 0]]


def test_what_is_measured():
  labels, sure, one = _measured()
  found = adaptation.measure(
    {'source': sure, 'BN': sure, 'Tent': one}, labels, window=4
  )
  assert found['source']['error'] == 0 and found['Tent']['error'] == 0.5
  assert found['Tent']['classes'] == pytest.approx(1)
  assert found['Tent']['collapsed_at'] == 0
  assert found['BN']['collapsed_at'] is None
  with pytest.raises(types.NonFiniteError, match='Tent'):
    adaptation.measure(
      {'source': sure, 'Tent': np.nan * sure}, labels, window=4
    )
  # What no rate of Tent changes.
  with pytest.raises(types.NonFiniteError, match='checkpoint'):
    adaptation.measure(
      {'source': np.nan * sure, 'Tent': sure}, labels, window=4
    )


def test_a_network_that_diverged_predicts_no_class(rows, trained):
  method, states = trained
  broken = jax.tree.map(
    lambda x: x * np.float32(np.nan) if x.dtype == np.float32 else x, states
  )
  streams = _streams(method, broken, rows)
  for found in streams.errors('contrast', rate=0.0).values():
    np.testing.assert_array_equal(found, [1.0, 1.0])


def test_tent_collapses_against_the_same_network_without_updates():
  labels, sure, one = _measured()
  found = adaptation.measure(
    {'source': sure, 'BN': one, 'Tent': one}, labels, window=4
  )
  assert found['Tent']['collapsed_at'] is None
  assert found['source']['entropy'] == collapse.look(sure).entropy
  loss = np.log(1 + 2 * np.exp(-5.0))
  np.testing.assert_allclose(found['source']['loss'], loss, rtol=1e-5)
  found = adaptation.measure({'source': sure, 'Tent': one}, labels, window=4)
  assert found['Tent']['collapsed_at'] == 0


def test_streams_may_be_sorted_and_of_other_batches(rows, trained, monkeypatch):
  seen, batched = [], adaptation.batched

  def noted(columns, size):
    seen.append((columns['label'], size))
    return batched(columns, size)

  monkeypatch.setattr(adaptation, 'batched', noted)
  how = dict(rate=0.0, forms=('source',), order='sorted', batch_size=6)
  _streams(*trained, rows).errors('none', **how)
  assert [size for _, size in seen] == [6, 6]
  assert all((np.diff(label) >= 0).all() for label, _ in seen)
