"""STARTUP's domains: rows that never meet, teachers that do not fit."""

import functools

import jax
import numpy as np
from PIL import Image
import pytest

from configs import startup
from configs.parts import startup_students as parts
from configs.parts import teachers
from configs.parts import two_domains
from configs.studies import startup as study
from repjax import files
from repjax import types
from repjax.methods import startup as method


def _config(**data):
  config = startup.get_config('smoke')
  config.data.update(data)
  return config


def _variables(config, network):
  image = two_domains.columns(config, 'target')['image'][:1]
  init = jax.jit(functools.partial(network.init, train=False))
  return init({'params': jax.random.key(0)}, image)


def _images(config, split):
  return {x.tobytes() for x in two_domains.columns(config, split)['image']}


def test_held_out_rows_are_held_out():
  config = _config()
  for kept, held_out, num_rows in (
    ('base', 'val', config.data.base_rows),
    ('unlabelled', 'held_out', 1442),
  ):
    first, second = _images(config, kept), _images(config, held_out)
    assert not first & second
    assert len(first) + len(second) == num_rows


@pytest.mark.parametrize('base', ['glyphs', 'digits'])
def test_base_classes_are_numbered_anew_and_drawn_by_the_seed(base):
  config = _config(base=base, base_split='train', num_base=4)
  rows = two_domains.load(config, 'base')
  assert rows.num_classes == 4
  assert set(rows.column('label')) == set(range(4))
  config.seed = 1
  other = two_domains.load(config, 'base')
  images = [
    x.columns()['image'][x.column('label') == 0].mean(0) for x in (rows, other)
  ]
  assert abs(images[0] - images[1]).max() > 20


def test_noise_of_the_target_is_the_same_whenever_it_is_read():
  config = _config()
  first, again = (two_domains.columns(config, 'target') for _ in range(2))
  np.testing.assert_array_equal(first['image'], again['image'])
  clean = two_domains.columns(_config(corruption=''), 'target')
  np.testing.assert_array_equal(first['label'], clean['label'])
  assert abs(first['image'] - clean['image']).mean() > 0.1


def test_what_the_teacher_says_is_read_once():
  config = _config()
  config.eval_batch_size = 7  # The last batch holds padding.
  rows = two_domains.load(config, 'unlabelled').select(np.arange(10))
  network = two_domains.network(config)
  variables = _variables(config, network)
  asked = []

  def teach():
    asked.append(1)
    return variables

  labelled = teachers.labelled(config, teach, rows)
  assert not asked  # Nothing is trained before a row is read.
  said = labelled.read([9, 0])[method.TAUGHT]
  labelled.read([1])
  assert len(asked) == 1
  scaled = two_domains.recipe(config, rows).evaluate
  pixels = scaled.apply(rows.read([9, 0]), np.empty((2, 0)))['image']
  apply = jax.jit(functools.partial(network.apply, train=False))
  logits = np.asarray(apply(variables, pixels))
  expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(said, expected, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused(monkeypatch):
  config = _config()
  config.teacher = 'runs/teacher'
  head = {'kernel': np.zeros((8, 7)), 'bias': np.zeros(7)}
  monkeypatch.setattr(
    teachers.start, 'from_run', lambda *_, **__: {'params': {'head': head}}
  )
  with pytest.raises(types.InputError, match='num_base=5'):
    startup.build(config)
  head.update(kernel=np.zeros((8, 5)), bias=np.zeros(5))
  with pytest.raises(types.InputError, match='missing'):
    startup.build(config)


def test_a_teacher_without_its_statistics_is_refused(monkeypatch):
  config = _config()
  config.teacher = 'runs/teacher'
  found = dict(_variables(config, two_domains.network(config)))
  monkeypatch.setattr(teachers.start, 'from_run', lambda *_, **__: found)
  startup.build(config)  # As it should be, and what else a run may keep.
  found['more'] = {}
  startup.build(config)
  mean = found['batch_stats']['norm_0']['mean']
  found['batch_stats']['norm_0'] = {'mean': mean[:1]}
  with pytest.raises(
    types.InputError, match=r'batch_stats do not fit.*norm_0/v'
  ):
    startup.build(config)
  del found['batch_stats']
  with pytest.raises(types.InputError, match='batch_stats do not fit'):
    startup.build(config)


@pytest.mark.parametrize(
  ('data', 'match'),
  [
    (dict(unlabelled_split='train[:0]'), 'train'),
    (dict(base='digits', base_split='train', num_base=11), '10 classes'),
    (dict(num_base=1), 'num_base'),
    (dict(base_rows=0), 'base_rows'),
    (dict(held_out=1.0), 'held_out'),
    (dict(corruption='rain'), 'rain'),
  ],
)
def test_domains_without_rows_are_refused(data, match):
  with pytest.raises(types.InputError, match=match):
    startup.build(_config(**data))


def test_no_teacher_is_refused():
  config = _config()
  config.teaching.steps = 0
  with pytest.raises(types.InputError, match='steps=0 trains none'):
    startup.build(config)
  config.stage = 'pupil'
  with pytest.raises(types.InputError, match='stage'):
    startup.build(config)


@pytest.fixture
def settings_of_teacher(monkeypatch):
  """What teachers are made with besides their network and optimizer."""
  seen, make = {}, teachers.supervised.make
  monkeypatch.setattr(
    teachers.supervised,
    'make',
    lambda *args, **own: seen.update(own) or make(*args, **own),
  )
  return seen


def test_a_teachers_run_has_the_settings_of_its_steps(settings_of_teacher):
  config = _config()
  config.stage = 'teacher'
  config.step.update(microbatches=2, compute_dtype='bfloat16', ema_decay=0.9)
  startup.build(config)
  assert settings_of_teacher == dict(config.step)


def test_claims_of_few_classes_ask_how_good_their_teacher_is(monkeypatch):
  def students(settings, names, seeds):
    number = settings[0].data.num_base
    names = ('transfer', study.STATISTICS, *names)
    found = {(x, y): np.zeros(len(seeds)) for x in names for y in parts.SHOTS}
    known = np.full(len(seeds), number / 100)
    return np.zeros(len(seeds)), known, found, {}

  monkeypatch.setattr(study, '_students', students)
  config = study.get_config('smoke')
  found = study.run(config, seeds=(0, 1)).scalars
  assert found['few_accuracy'].tolist() == [config.study.few / 100] * 2
  for name in ('few_classes', 'few_classes_tell_less'):
    assert 'few_accuracy' in study.CLAIMS[name]['needs']


@pytest.mark.slow
def test_the_chosen_rates_are_in_the_report():
  config = study.get_config('smoke')
  found = study.run(config, seeds=(0, 1)).scalars
  rates = {k: x for k, x in found.items() if k.endswith(': rate')}
  assert len(rates) == len(parts.TERMS) + len(study._FEW)
  assert all(set(x) <= set(config.rates) for x in rates.values())


def test_a_teacher_that_is_trained_there_has_the_settings_of_its_steps(
  settings_of_teacher,
):
  config = _config()
  config.step.microbatches = 2
  teachers.taught(config)()
  assert settings_of_teacher == dict(config.step)


def test_base_images_of_many_sizes_are_brought_to_one(tmp_path):
  for i in range(40):
    file = tmp_path / 'ab'[i % 2] / f'{i}.png'
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((8 + i % 3, 9), i, np.uint8)).save(file)
  config = _config(
    base='folder', base_split='train', num_base=2, dir=str(tmp_path)
  )
  assert two_domains.columns(config, 'base')['image'].shape[1:] == (8, 8, 1)


def test_labels_are_compared_with_the_statistics_of_the_target(monkeypatch):
  def students(settings, names, seeds):
    level = {study.STATISTICS: 0.3, 'without self-supervision': 0.5}
    names = ('transfer', study.STATISTICS, *names)
    found = {
      (x, y): np.full(len(seeds), level.get(x, 0.0))
      for x in names
      for y in parts.SHOTS
    }
    return np.zeros(len(seeds)), np.ones(len(seeds)), found, {}

  monkeypatch.setattr(study, '_students', students)
  found = study.run(study.get_config('smoke'), seeds=(0, 1)).scalars
  np.testing.assert_allclose(found['labels_over_statistics'], 0.2)


@pytest.mark.parametrize(
  ('field', 'value'), [('seed', 1), ('data.base', 'digits')]
)
def test_a_teacher_of_as_many_other_classes_is_refused(
  tmp_path, monkeypatch, field, value
):
  config = _config()
  found = dict(_variables(config, two_domains.network(config)))
  monkeypatch.setattr(teachers.start, 'from_run', lambda *_, **__: found)
  config.teacher = str(tmp_path)
  said = config.copy_and_resolve_references()
  files.write_json(tmp_path / 'config.json', {'config': said.to_dict()})
  startup.build(config)
  said.update_from_flattened_dict({field: value})
  files.write_json(tmp_path / 'config.json', {'config': said.to_dict()})
  with pytest.raises(types.InputError, match=f'config.{field}'):
    startup.build(config)
