"""Tent's published network and streams fit together, with their real shapes."""

import functools

import jax
import numpy as np
import optax
import pytest

from configs import tent
from configs.studies import tent as study
from repjax import parallel
from repjax import types
from repjax.data.reading import source
from repjax.experiments import of_images
from repjax.protocols import adaptation


@pytest.fixture
def cifar10(monkeypatch):
  """A set with CIFAR-10's shapes, in place of the prepared one."""

  def load(config, split):
    assert config.data.name == 'cifar10'
    rows = {'train': 500, 'test': 250}[split]
    columns = {
      'image': np.zeros((rows, 32, 32, 3), np.uint8),
      'label': np.arange(rows) % 10,
    }
    return source.from_arrays('cifar10', columns, num_classes=10, split=split)

  monkeypatch.setattr(of_images, 'load', load)


@pytest.mark.devices(4)
@pytest.mark.parametrize(
  ('preset', 'parameters', 'norms'), [('paper', 36.5e6, 25), ('gpu', 2.7e6, 13)]
)
def test_cifar_presets_build_on_four_devices(
  cifar10, preset, parameters, norms
):
  config = study.get_config(preset)
  experiment = tent.build(config)
  assert experiment.steps == round(config.epochs * 500 / config.batch_size)
  batch = experiment.train.batch(0)
  row = {name: x[:1] for name, x in batch.items()}
  state = jax.eval_shape(experiment.method.init, jax.random.key(0), row)
  size = sum(x.size for x in jax.tree.leaves(state.params))
  assert size == pytest.approx(parameters, rel=0.02)
  # WRN-28-10 has 36.5 million parameters (Zagoruyko and Komodakis, table 4).
  step = parallel.train_step(experiment.method.update)
  after, _ = jax.eval_shape(
    step, state, parallel.shard(batch), jax.random.key(0)
  )
  assert jax.tree.structure(after) == jax.tree.structure(state)

  rows = {
    'image': np.zeros((200, 32, 32, 3), np.float32),
    'label': np.zeros(200, np.int32),
    'mask': np.ones(200, np.float32),
  }
  assert config.study.batch_size == 200
  made = adaptation.forms(
    experiment.method.predict, state, rows, optax.adam(1e-3), blend=16.0
  )
  adapted, logits = jax.eval_shape(
    lambda s, b: made.step(s, made.init(s), b), state, rows
  )
  assert len(adapted.leaves) == 2 * norms
  assert {x.shape for x in logits.values()} == {(200, 10)}
  assert set(logits) == set(adaptation.NAMES)


def test_images_are_resized_before_all_else():
  config = tent.get_config('small')
  rows = tent.load(config, 'test')
  assert rows.image_shape == (16, 16, 1)
  config.data.side = 0
  whole = tent.load(config, 'test')
  assert whole.image_shape == (8, 8, 1)
  means = [x.read([3])['image'].mean() for x in (rows, whole)]
  assert means[0] == pytest.approx(means[1], abs=4)
  config.data.side = -1
  with pytest.raises(types.InputError, match=r'config\.data\.side'):
    tent.load(config, 'test')


@pytest.mark.parametrize('preset', ['small', 'mnist', 'smoke'])
def test_streams_are_of_rows_that_were_not_trained_on(preset):
  config = study.get_config(preset)
  rows = dict(train=set(range(70)), test=set(range(70, 100)))

  def places(split):
    found = set()
    for part in split.split('+'):
      name, _, span = part.partition('[')
      base = sorted(rows[name])
      low, _, high = span.rstrip(']').partition(':')
      cut = functools.partial(_place, len(base))
      found |= set(base[cut(low, 0) : cut(high, len(base))])
    return found

  trained, stream = places(config.data.train_split), places(config.study.split)
  assert trained and stream and not trained & stream


def _place(count, text, default):
  if not text:
    return default
  if text.endswith('%'):
    return round(count * int(text[:-1]) / 100)
  return min(int(text), count)
