"""EsViT's recipe: all methods, the paper's shapes, files that are read back."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import launching
import numpy as np
from PIL import Image
import pytest

from configs import esvit as recipe
from configs.parts import self_supervised
from launch.lib import judged_features
from repjax import loop
from repjax import parallel
from repjax import run
from repjax import types
from repjax.methods import esvit


def _config(**changes):
  config = recipe.get_config('smoke')
  config.update(changes)
  return config


@pytest.mark.parametrize('name', ['dino', 'simclr', 'moco', 'supcon'])
@pytest.mark.parametrize('network', ['swin', 'vit'])
def test_every_method_takes_every_network(name, network):
  config = _config(method=name, network=network)
  made = recipe.build(config)
  batch = made.train.batch(0)
  rows = {x: y[:1] for x, y in batch.items()}
  state = jax.eval_shape(made.method.init, jax.random.key(0), rows)
  after, sums = jax.eval_shape(
    made.method.update, state, batch, jax.random.key(1)
  )
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  assert 'loss' in sums
  assert ('region' in sums) == (name == 'esvit')
  found = jax.eval_shape(made.method.predict, after, batch)
  assert set(found) == {'features'}


def _distilled(monkeypatch, config, steps):
  """What `esvit.make` is given in a run of so many steps."""
  seen = {}
  make = lambda model, tx, **own: seen.update(own)  # noqa: E731
  monkeypatch.setattr(esvit, 'make', make)
  self_supervised.method(config, steps)
  return seen


def test_schedules_go_by_the_length_of_the_run(monkeypatch):
  seen = _distilled(monkeypatch, recipe.get_config('paper'), 3000)
  assert seen['learn_norm'] is True
  assert seen['frozen_steps'] == 10  # Of 300 epochs the first one.
  temperatures = [
    float(seen['teacher_temperature'](step)) for step in (0, 150, 300, 3000)
  ]
  assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
  momenta = [float(seen['momentum'](step)) for step in (0, 1500, 3000)]
  assert momenta == pytest.approx([0.996, 0.998, 1.0])


def test_dino_has_no_part_of_regions(monkeypatch):
  config = _config(method='dino')
  config.esvit.update(
    region_weight=0.5, teacher_temperature=(0.02, 0.06), warm=0.5, frozen=0.25
  )
  seen = _distilled(monkeypatch, config, 8)
  assert seen['region_weight'] == 0.0
  assert seen['frozen_steps'] == 2
  temperatures = [float(seen['teacher_temperature'](x)) for x in (0, 2, 4, 8)]
  assert temperatures == pytest.approx([0.02, 0.04, 0.06, 0.06])


def test_what_cannot_be_is_said():
  for field, named in (
    (dict(method='blue'), 'config.method is one of esvit, dino'),
    (dict(network='blue'), "config.network must be one of ('swin'"),
    (dict(crops=dict(local_size=13)), 'local_size=13'),
    (dict(data=dict(canvas=7)), 'config.data.canvas=7'),
    (dict(step=dict(ema_decay=0.9)), 'config.step.ema_decay must be 0'),
    (dict(esvit=dict(momentum=2.0)), 'config.esvit.momentum'),
    (dict(method='dino', network='mlp'), 'method encode'),
    (dict(augment=dict(flip=True)), 'config.augment.flip=True'),
    (dict(augment=dict(padding=2)), 'config.augment.padding=2'),
  ):
    with pytest.raises(types.InputError) as error:
      recipe.build(_config(**field))
    assert named in str(error.value)
  made = recipe.build(_config(weights='x.safetensors', network='vit'))
  with pytest.raises(types.InputError, match=r'set config\.network=swin'):
    made.warm_start(loop.init(made.method, made.train.batch(0), 0))


def test_places_of_test_rows_are_not_those_of_training_rows():
  config = _config()
  train, test = (
    self_supervised.rows(config, x).column('image')[:300] > 0
    for x in ('train', 'test')
  )
  assert train.shape[1:] == (12, 12, 1)
  tops = [x.any((2, 3)).argmax(1) for x in (train, test)]
  assert (tops[0] != tops[1]).any()
  # And each is the same on every reading.
  again = self_supervised.rows(config, 'test').column('image')[:300] > 0
  np.testing.assert_array_equal(test, again)


def test_a_run_leaves_a_file_that_another_starts_from(tmp_path):
  config = _config(probe=dict(strengths=()))
  made = recipe.build(config)
  report = run.fit(made, config, tmp_path / 'run')
  # By accuracies of features, without a choice.
  assert {'test/knn', 'test/spread'} <= set(report['result'])
  assert config.run.best == ''
  file = tmp_path / 'run' / 'swin' / 'model.safetensors'
  other = recipe.build(_config(weights=str(file)))
  fresh = loop.init(other.method, other.train.batch(0), 1)
  state = other.warm_start(fresh)
  teacher = state.extra.teacher['backbone']
  chex.assert_trees_all_equal(state.params['backbone'], teacher)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(fresh.params['backbone'], teacher)
  seen, _ = loop.Evaluator(other.method)(state, other.evals('test'))
  # The teacher of the run, not its student.
  knn = other.companion.measures['test/knn']
  assert knn(state) == pytest.approx(report['result']['test/knn'])
  judged = judged_features.measure(
    other,
    state,
    'test',
    layer='head',
    ways=5,
    shots=1,
    queries=5,
    count=20,
    seed=0,
  )
  assert 0 < judged['accuracy']['cosine'][0] < 1
  assert seen['features'].shape[1] == 2 * config.swin.hidden_dim


@pytest.mark.devices(4)
def test_the_papers_shapes_are_a_step_of_four_devices():
  config = recipe.get_config('paper')
  config.batch_size = 16  # Rows of a step; all other shapes are the paper's.
  method = self_supervised.method(config, 1000)
  row = {'image': jnp.zeros((1, 224, 224, 3)), 'mask': jnp.ones(1)}
  state = jax.eval_shape(method.init, jax.random.key(0), row)
  count = sum(x.size for x in jax.tree.leaves(state.params['backbone']))
  assert count == 27_519_354 + 769  # Swin-T; its head, unused, is of one class.
  assert state.params['region']['prototypes'].shape == (256, 65_536)
  batch = {
    'image': jax.ShapeDtypeStruct((4, 4, 224, 224, 3), jnp.float32),
    'mask': jax.ShapeDtypeStruct((4, 4), jnp.float32),
  }
  step = parallel.train_step(method.update, jax.local_devices()[:4])
  after, sums = jax.eval_shape(step, state, batch, jax.random.key(1))
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  assert {'loss', 'view', 'region', 'clusters'} <= set(sums)


def test_the_notebooks_flags_take_images_of_ones_own(tmp_path):
  path = launching.ROOT / 'colabs' / '06_self_supervised.ipynb'
  cell = ''.join(json.loads(path.read_text('utf-8'))['cells'][-1]['source'])
  (said,) = re.findall(r'`python -m launch\.train\s([^`]*)`', cell)
  rng = np.random.default_rng(0)
  for i in range(120):
    file = tmp_path / 'mine' / ('cat', 'dog')[i % 2] / f'{i}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(file)
  places = {'FOLDER': tmp_path / 'mine', 'WORKDIR': tmp_path / 'run'}
  for name, place in {**places, ':small': ':smoke'}.items():
    said = said.replace(name, str(place))
  code, output = launching.call('train', *said.split())
  assert code == 0, output


def test_a_network_is_the_one_that_features_come_from():
  config = _config(method='simclr')
  config.step.ema_decay = 0.9
  made = recipe.build(config)
  state = loop.init(made.method, made.train.batch(0), 0)
  state = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
  chex.assert_trees_all_equal(
    self_supervised.network_params(config, state), state.extra.params['model']
  )


def test_images_without_labels_are_learned_from(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
  np.savez(tmp_path / 'a.npz', image=images)
  config = _config(method='simclr')
  config.data.update(name='npz', dir=str(tmp_path / 'a.npz'))
  report = run.fit(recipe.build(config), config, tmp_path / 'run')
  assert 'test/spread' in report['result']
  config.method = 'supcon'
  with pytest.raises(types.InputError, match='supcon reads labels'):
    recipe.build(config)
