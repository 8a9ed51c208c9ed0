"""The recipe of fine-grained shifts: what is trained, on which rows."""

import re

import jax
import numpy as np
import optax
import pytest

from configs import fine_grained_shift as recipe
from configs.parts import shift_methods
from configs.parts import shift_tables
from repjax import loop
from repjax import parallel
from repjax import run
from repjax import types
from repjax.data.reading import source as sources

_PAPER = dict(
  dsprites=dict(label='shape', nuisance='colour', shape=(64, 64, 1), classes=3),
  shapes3d=dict(
    label='shape', nuisance='object_hue', shape=(64, 64, 3), classes=4
  ),
  smallnorb=dict(
    label='category', nuisance='azimuth', shape=(96, 96, 1), classes=5
  ),
)


class _Fake:
  """Rows of a set of TFDS that are made when they are read."""

  def __init__(self, name, shape):
    from repjax.data.sets import attributed

    self.columns = dict(attributed.SETS[name].columns.values())
    self.columns.pop('ink', None)
    self.shape = shape

  def __call__(self, indices):
    rng = np.random.default_rng(7)
    draws = {x: rng.integers(y, size=45_000) for x, y in self.columns.items()}
    return {
      **{x: y[indices] for x, y in draws.items()},
      'image': np.ones((len(indices), *self.shape), np.uint8),
    }


# Each method once, on one of the sets.
@pytest.mark.devices(4)
@pytest.mark.parametrize(
  ('name', 'method'),
  [('dsprites', 'erm'), ('shapes3d', 'sagnet'), ('smallnorb', 'dann')],
)
def test_the_paper_preset_takes_a_step_on_four_devices(
  name, method, monkeypatch
):
  said = _PAPER[name]
  fake = sources.Source(
    name=name,
    version='',
    split='train',
    # 20,000 are held out. Whoever reads a label of dSprites paints its row.
    num_rows=27_000 if name == 'dsprites' else 45_000,
    num_classes=None,
    class_names=None,
    image_shape=said['shape'],
    reader=_Fake(name, said['shape']),
    encoded={},
  )
  monkeypatch.setattr(sources, 'load', lambda *args, **kwargs: fake)
  config = recipe.get_config('paper')
  config.method = method
  config.data.update(name=name, label=said['label'], nuisance=said['nuisance'])
  experiment = recipe.build(config)
  assert experiment.steps == 100_000
  batch = experiment.train.batch(0)
  side, channels = (
    said['shape'][0],
    3 if name == 'dsprites' else said['shape'][2],
  )
  assert batch['image'].shape == (128, side, side, channels)
  state = jax.eval_shape(experiment.method.init, jax.random.key(0), batch)
  step = parallel.train_step(experiment.method.update)
  after, sums = jax.eval_shape(
    step, state, parallel.shard(batch), jax.random.key(1)
  )
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert {'loss', 'accuracy'} <= set(sums)
  found = run.measures(experiment)
  assert 'valid/accuracy' in found
  assert f'test/{said["classes"] - 1}-2/cell_accuracy' in found


@pytest.mark.parametrize(
  'method', [x for x in shift_methods.NAMES if x != 'jtt']
)
def test_every_method_of_the_benchmark_is_built(method):
  config = recipe.get_config('smoke')
  config.method = method
  experiment = recipe.build(config)
  batch = experiment.train.batch(0)
  state = jax.eval_shape(experiment.method.init, jax.random.key(0), batch)
  jax.eval_shape(experiment.method.update, state, batch, jax.random.key(1))


def test_values_without_training_rows_weigh_nothing():
  config = recipe.get_config('smoke')
  config.shift.kind = 'unseen'
  config.method, config.group_dro.step_size = 'group_dro', 0.0
  method = recipe.build(config).method
  batch = recipe.build(config).train.batch(0)
  seen = np.unique(batch['group'])
  assert len(seen) == 2
  state = loop.init(method, batch, 0)
  weights = np.zeros(3)
  weights[seen] = 1 / 2
  found = state.model_state['groups']['weights']
  np.testing.assert_allclose(found, weights, rtol=1e-6)
  logits = jax.jit(method.predict)(state, batch)['logits']
  nll = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(
    logits, batch['label']
  )
  nll = np.asarray(nll)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(0))
  total, number = sums['objective']
  each = [nll[batch['group'] == x].mean() for x in seen]
  np.testing.assert_allclose(total / number, np.mean(each), rtol=1e-4)
  # Nor does the adversary of DANN look for them.
  config.method = 'dann'
  state = loop.init(recipe.build(config).method, batch, 0)
  assert state.params['adversary']['head']['bias'].shape == (2,)


@pytest.mark.parametrize(
  ('network', 'method'),
  [('vit', 'erm'), ('mlp', 'coral'), ('convnet', 'bn_adapt')],
)
def test_networks_train_and_predict(network, method):
  config = recipe.get_config('smoke')
  config.update(network=network, method=method)
  config.convnet.normalize = True
  experiment = recipe.build(config)
  batch = experiment.train.batch(0)
  state = jax.eval_shape(experiment.method.init, jax.random.key(0), batch)
  jax.eval_shape(experiment.method.update, state, batch, jax.random.key(1))
  found = jax.eval_shape(experiment.method.predict, state, batch)
  assert found['logits'].shape == (16, 3)


@pytest.mark.parametrize('fixed', [True, False])
def test_batches_have_the_rows_of_the_shift_and_its_weights(fixed):
  config = recipe.get_config('smoke')
  config.batch_size = 2000
  config.shift.update(label_noise=0.5, fixed_noise=fixed, rare_weight=0.25)
  splits = shift_tables.read(config)
  _, realised = shift_tables.realise(config, splits, seed=config.seed)
  train = splits.train.columns()
  first, second = (recipe.build(config).train.batch(x) for x in (0, 1))
  for batch in (first, second):
    rows = realised.rows[batch['index']]
    np.testing.assert_array_equal(batch['group'], train['group'][rows])
    rare = (batch['index'] >= realised.sizes[0]).mean()
    np.testing.assert_allclose(rare, 0.25, atol=0.04)
  # A row has one label, or one of its own in every step.
  labels = [set() for _ in realised.rows]
  for batch in (first, second):
    for row, label in zip(batch['index'], batch['label'], strict=True):
      labels[row].add(int(label))
  assert (max(map(len, labels)) == 1) == fixed


@pytest.mark.parametrize('ema_decay', [0.0, 0.9])
def test_just_training_twice_weighs_the_errors_of_another_run(
  tmp_path, ema_decay
):
  config = recipe.get_config('smoke')
  config.step.ema_decay = ema_decay
  run.fit(recipe.build(config), config, tmp_path)
  config.method = 'jtt'
  with pytest.raises(types.InputError, match=r'--config\.jtt\.first'):
    recipe.build(config)
  config.jtt.first = str(tmp_path / 'nothing')
  with pytest.raises(types.InputError, match=r'config\.jtt\.first='):
    recipe.build(config)
  config.jtt.first = str(tmp_path)
  batch = recipe.build(config).train.batch(0)
  low, high = batch['weight'].min(), batch['weight'].max()
  np.testing.assert_allclose(high / low, config.jtt.upweight, rtol=1e-5)
  # Errors are those of the first run, in evaluation.
  config.method = 'erm'
  first = recipe.build(config)
  from repjax import start

  state = first.method.init(jax.random.key(0), batch)
  which = 'averaged' if ema_decay else 'trained'
  variables = start.from_run(tmp_path, which=which)
  state = start.with_params(state, variables['params'])
  logits = first.method.predict(state, batch)['logits']
  wrong = np.asarray(logits.argmax(-1) != batch['label'])
  np.testing.assert_array_equal(wrong, batch['weight'] > (low + high) / 2)


@pytest.mark.parametrize(
  ('first', 'second', 'says'),
  [
    ({'convnet.normalize': True}, {}, 'unexpected .*norm_0'),
    ({}, {'convnet.normalize': True}, 'missing .*norm_0'),
    ({'convnet.channels': (8, 32, 64)}, {}, 'other shapes .*conv_0'),
    (
      {
        'data.drawn.num_kinds': 4,
        'data.drawn.num_colours': 4,
        'shift.num_common': 80,
      },
      {},
      'shapes .*head',
    ),
    ({'network': 'mlp'}, {}, 'missing .*conv_0'),
  ],
)
def test_a_first_training_of_another_network_is_refused(
  first, second, says, tmp_path
):
  config = recipe.get_config('smoke')
  config.min_steps = 1
  other = config.copy_and_resolve_references()
  other.update_from_flattened_dict(first)
  run.fit(recipe.build(other), other, tmp_path)
  config.update_from_flattened_dict(second)
  config.method, config.jtt.first = 'jtt', str(tmp_path)
  with pytest.raises(types.InputError, match=r'config\.jtt\.first=') as error:
    recipe.build(config)
  assert re.search(says, str(error.value))
  assert '\n' not in str(error.value)


def test_a_network_without_settings_is_refused():
  config = recipe.get_config('paper')
  config.network = 'convnet'
  with pytest.raises(types.InputError, match='no settings in this preset'):
    shift_methods.network(config, 3)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'method': 'magic'}, r'config\.method'),
    ({'shift.kind': 'odd'}, r'config\.shift\.kind is one of correlated'),
    ({'network': 'swin'}, r'config\.network must be one of ..convnet'),
    ({'shift.num_rare': 10_000}, 'cannot be realised'),
    ({'data.eval_splits': ('train',)}, r'config\.data\.eval_splits'),
    ({'method': 'irm', 'step.microbatches': 2}, 'microbatches must be 1'),
    ({'data.nuisance': 'scale'}, r'config\.data\.nuisance must be one of'),
    ({'data.label': 'colour'}, r'config\.data\.label must be one of'),
    ({'data.train_split': 'train[:10%]'}, r'config\.data\.train_split must be'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(changes, match):
  config = recipe.get_config('smoke')
  config.update_from_flattened_dict(changes)
  with pytest.raises(types.InputError, match=match) as error:
    recipe.build(config)
  assert '\n' not in str(error.value)


def test_errors_are_looked_for_in_images_as_the_first_run_saw_them(
  tmp_path, monkeypatch
):
  config = recipe.get_config('smoke')
  config.update(dict(network='preact_resnet', min_steps=1))
  config.preact_resnet.update(dict(stage_sizes=(1,), width=4))
  config.augment.size = 10  # Shapes have 20 pixels.
  run.fit(recipe.build(config), config, tmp_path)
  seen, evaluate = [], shift_methods.model_inputs.evaluate

  def spy(model, inputs, variables, batch):
    seen.append(batch['image'].shape[1:3])
    return evaluate(model, inputs, variables, batch)

  monkeypatch.setattr(shift_methods.model_inputs, 'evaluate', spy)
  config.method, config.jtt.first = 'jtt', str(tmp_path)
  recipe.build(config)
  assert seen[0] == (10, 10)
