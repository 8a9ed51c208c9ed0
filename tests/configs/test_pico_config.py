"""PiCO's recipe and study build; checkpoints are chosen without labels."""

import jax
import numpy as np
import PIL.Image
import pytest

from configs import pico as recipe
from configs.parts import candidate_sets
from configs.studies import pico as study
from launch.lib import restored
from repjax import run
from repjax import types
from repjax.data.own import kept_classes
from repjax.methods import partial_labels

_KINDS = ('uniform', 'next', 'instances')


def _config(**changes):
  config = recipe.get_config('smoke')
  config.update(changes)
  return config


@pytest.mark.parametrize('kind', _KINDS)
def test_sets_hold_the_label_and_about_as_many_others_as_said(kind):
  config = _config(data=dict(candidates=kind, rate=0.3))
  train = candidate_sets.read(config).train
  found, label = (train.column(x) for x in ('candidates', 'label'))
  assert found[np.arange(len(found)), label].all()
  others = {'uniform': 2.7, 'next': 0.3, 'instances': 3.0}[kind]
  # Those of instances are cut at 1.
  least = 0.5 if kind == 'instances' else 0.93
  assert least * others < found.sum(1).mean() - 1 < 1.07 * others


def test_sets_that_are_given_are_checked():
  config = _config(data=dict(candidates='given'))
  with pytest.raises(types.InputError, match='candidates'):
    candidate_sets.read(config)
  with pytest.raises(types.InputError, match='coarse_label'):
    candidate_sets.read(_config(data=dict(candidates='hierarchical')))
  with pytest.raises(types.InputError, match='is one of uniform'):
    candidate_sets.read(_config(data=dict(candidates='random')))


def test_rows_as_they_are_predicted_are_images(tmp_path):
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for name in ('ant', 'bee'):
      folder = tmp_path / 'photos' / split / name
      folder.mkdir(parents=True)
      for i in range(8):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f'{i}.png')
  config = recipe.get_config('smoke')
  config.data.update(name='folder', dir=str(tmp_path / 'photos'))
  config.update(dict(batch_size=4, epochs=1.0))
  experiment = recipe.build(config)
  assert experiment.eval_splits[0] == 'targets'
  assert 'image' in restored.batch_of(experiment)
  assert kept_classes.names_of(experiment) == ['ant', 'bee']


def test_a_checkpoint_is_chosen_by_targets_and_never_by_test_rows():
  for preset in ('paper', 'small', 'smoke'):
    assert recipe.get_config(preset).run.best == 'targets/confidence'
  made = recipe.build(_config())
  assert made.eval_splits[0] == 'targets'
  names = run.measures(made)
  assert {'targets/confidence', 'targets/disambiguation'} <= set(names)
  batch = next(iter(made.evals('targets')))
  assert 'image' not in batch


@pytest.mark.parametrize('name', [*partial_labels.KINDS, 'supervised'])
def test_what_it_is_compared_with_trains_on_the_same_rows(name):
  config = _config(algorithm=name)
  made = recipe.build(config)
  assert made.eval_splits == ('test',)
  batch = made.train.batch(0)
  rows = {k: x[:1] for k, x in batch.items()}
  state = jax.eval_shape(made.method.init, jax.random.key(0), rows)
  after, sums = jax.eval_shape(
    made.method.update, state, batch, jax.random.key(1)
  )
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  assert {'loss', 'accuracy'} <= set(sums)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(algorithm='rc'), 'config.algorithm'),
    (dict(pico=dict(queue_size=50)), 'queue_size=50 must hold whole batches'),
    (dict(data=dict(rate=1.5)), 'rate'),
    (dict(data=dict(noise=1.0)), 'noise'),
    (dict(views=dict(noise=-1.0)), 'noise'),
  ],
)
def test_bad_input_is_refused_before_any_compute(changes, words):
  with pytest.raises(types.InputError, match=words) as error:
    recipe.build(_config(**changes))
  assert '\n' not in str(error.value)


@pytest.mark.devices(4)
def test_the_published_recipe_builds_on_four_devices(real_data):
  config = recipe.get_config('paper')
  config.update(data=dict(dir=real_data, train_split='train[:600]'))
  made = recipe.build(config)
  batch = made.train.batch(0)
  assert batch['strong'].shape == batch['image'].shape == (256, 32, 32, 3)
  assert (batch['strong'] != batch['image']).any()
  assert config.batch_size % 4 == 0
  part = {
    k: jax.ShapeDtypeStruct((4, 64, *x.shape[1:]), x.dtype)
    for k, x in (batch.items())
  }
  rows = {k: x[:1] for k, x in batch.items()}
  state = jax.eval_shape(made.method.init, jax.random.key(0), rows)
  after, sums = jax.eval_shape(
    jax.pmap(
      made.method.update,
      axis_name='devices',
      in_axes=(None, 0, None),
      out_axes=None,
    ),
    state,
    part,
    jax.random.key(1),
  )
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  assert {'loss', 'classification', 'contrastive', 'confidence'} <= set(sums)


def test_gpu_compares_with_two_methods_on_cifar10():
  config = study.get_config('gpu')
  assert config.data.name == 'cifar10'
  assert config.data.rate == 0.5
  assert tuple(config.study.others) == ('proden', 'lws')


def test_what_it_is_compared_with_runs_by_one_override(tmp_path):
  config = _config(algorithm='cc')
  found = run.fit(recipe.build(config), config, tmp_path)['result']
  assert 'test/accuracy' in found


def test_the_study_asks_what_no_warm_up_does(monkeypatch):
  asked = []

  def train(config, method, data, rows, test, seeds, arm):
    asked.append((arm, config.targets.warmup))
    score = np.zeros(len(seeds))
    return study._Arm(score, (np.zeros(1), score[None]), score)

  monkeypatch.setattr(study, '_train', train)
  found = study.run(study.get_config('smoke'), seeds=(0, 1)).scalars
  assert (('uniform', 0.7, 'pico', 0.0), 0.0) in asked
  assert 'collapse_at_once' in found


def test_given_sets_have_their_label_unless_they_are_said_to_lack_it(
  monkeypatch,
):
  load = candidate_sets.of_images.load

  def with_sets(config, split):
    rows = load(config, split)
    found = np.eye(10, dtype=bool)[rows.column('label')]
    found[7] = np.roll(found[7], 1)
    return rows.with_columns(candidates=found)

  monkeypatch.setattr(candidate_sets.of_images, 'load', with_sets)
  config = _config(data=dict(candidates='given'))
  with pytest.raises(types.InputError, match='row 7'):
    candidate_sets.read(config)
  config.data.noise = 0.1
  candidate_sets.read(config)
