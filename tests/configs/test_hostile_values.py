"""Every recipe, every field, values that nobody means: one line or success."""

import functools
import math

import pytest

from configs import presets
from launch.lib import building
from launch.lib import recipes
from repjax import types
from repjax.privacy import accounting

_FILES = recipes.config_files()


def _hostile(value):
  """Values of a field's type that are at the ends of what can be written."""
  if isinstance(value, bool):
    return ()
  if isinstance(value, int):
    return (0, -1, 10**20)
  if isinstance(value, float):
    return (-1.0, 2.0, math.nan)
  if isinstance(value, str):
    return ('nope',)
  return ((), ('x',), (-1,), (0.1, 0.2))


def _set(config, name, value):
  *groups, last = name.split('.')
  for group in groups:
    config = config[group]
  config[last] = value


def _tried(file, name, value):
  """'' where it works, the line where it is refused; all else is raised."""
  module = recipes.load_config_module(str(file))
  config = module.get_config('smoke')
  try:
    _set(config, name, value)
  except TypeError:
    return 'refused by ConfigDict'
  try:
    building.build(module, config, 'smoke')
  except types.InputError as error:
    return str(error)
  return ''


# The same few plans all over: each is accounted for once.
_noise = functools.cache(accounting.noise_multiplier_for)


@pytest.fixture(autouse=True)
def account_once(monkeypatch):
  monkeypatch.setattr(accounting, 'noise_multiplier_for', _noise)


@pytest.mark.parametrize('file', _FILES, ids=lambda file: file.stem)
def test_whatever_a_field_is_set_to_gives_one_line_or_works(file):
  usual = recipes.load_config_module(str(file)).get_config('smoke')
  refused = 0
  for name, value in presets.fields(usual).items():
    for hostile in _hostile(value):
      line = _tried(file, name, hostile)
      refused += bool(line)
      assert '\n' not in line
      # The field, or, where a library knows more than it tells, a group.
      assert not line or name.rpartition('.')[2] in line, (name, hostile, line)
  assert refused > 50


@pytest.mark.parametrize(
  ('recipe', 'name', 'value', 'says'),
  [
    ('vit', 'model.dropout_rate', 2.0, 'dropout_rate must be in [0, 1)'),
    ('vit', 'model.dropout_rate', -1.0, 'dropout_rate must be in [0, 1)'),
    ('vit', 'model.drop_path_rate', 1.5, 'drop_path_rate must be in [0, 1)'),
    ('vit', 'model.num_layers', -1, 'num_layers must be in [1, 10000]'),
    ('vit', 'model.hidden_dim', 0, 'config.model.hidden_dim must be in [1,'),
    ('sam', 'data.eval_splits', (), 'config.data.eval_splits names splits'),
    ('lp_ft', 'data.eval_splits', ('x',), "'train', 'val', 'test', 'ood'"),
    ('vit', 'tx.clip', -1.0, 'config.tx.clip must be in [0, inf)'),
    ('sam', 'tx.clip', -1.0, 'config.tx.clip must be in [0, inf)'),
    ('vit', 'augment.area', (0.5,), '--config.augment.area=(0.5,)'),
    ('sam', 'augment.mean', (0.1, 0.2), '--config.augment.mean=(0.1, 0.2)'),
    ('sam', 'run.log_every', 0, 'config.run.log_every must be in [1, inf)'),
    ('sam', 'batch_size', 0, 'config.batch_size must be in [1, inf)'),
    ('sam', 'step.microbatches', 0, 'config.step.microbatches must be in [1,'),
    ('sam', 'epochs', math.nan, 'config.epochs must be in [0, inf)'),
    ('sam', 'epochs', 0.0, 'config.epochs=0.0 of 1442 rows'),
    ('sam', 'seed', 10**20, 'config.seed must be in [0, 4294967295]'),
    ('sam', 'sam.rho', -1.0, '--config.sam.rho=-1.0: '),
    ('sam', 'sam.groups', 7, 'config.batch_size=48'),
    ('sam', 'tx.learning_rate', -1.0, 'config.tx.learning_rate must be in (0,'),
    ('sam', 'step.ema_decay', 2.0, 'config.step.ema_decay must be in [0, 1)'),
    (
      'sam',
      'step.compute_dtype',
      'float3',
      '--config.step.compute_dtype=float3',
    ),
    ('gpm', 'data.num_tasks', 0, 'config.data.num_tasks must be in [1, inf)'),
    ('diffstride', 'drop.at', (0.5,), 'at and factors are one number a drop'),
    ('diffstride', 'drop.at', (0.5, 1.8), 'at must be in [0, 1]; got 1.8'),
    ('wilds', 'data.kind', 'shops', "one of ('published', 'hospitals')"),
    ('wilds_text', 'data.kind', 'hospitals', "one of ('shops', 'published_"),
    ('sample_efficiency', 'network', 'image_conv', 'config.data.kind=channels'),
    ('sample_efficiency', 'data.train_split', 'x', 'config.data.train_split'),
    ('esvit', 'esvit.teacher_temperature', (0.0, 0.1), 'must be in (0, inf)'),
    ('esvit', 'esvit.teacher_temperature', (0.1,), 'has two numbers'),
    ('esvit', 'esvit.chunk', 0, 'chunk must be in [1, inf)'),
    ('esvit', 'crops.local_area', (0.0, 0.5), '--config.crops.local_area='),
    ('esvit', 'crops.brightness', 2.0, 'brightness must be in [0, 1)'),
    ('esvit', 'probe.strengths', (0.0, 1.0), 'strengths must be in (0, inf)'),
    ('intrinsic_dimension', 'data.train_split', 'x', 'config.data.train_split'),
    ('pyraformer', 'model.dropout_rate', 2.0, 'must be in [0, 1)'),
    ('pyraformer', 'tx.drop', -1.0, 'config.tx.drop must be in (0, 1]'),
    ('pyraformer', 'tx.drops', 0, 'config.tx.drops must be in [1, inf)'),
    (
      'pyraformer',
      'data.horizon',
      0,
      'config.data.horizon must be in [1,',
    ),
    ('anomaly_transformer', 'tx.decay', -1.0, 'config.tx.decay must be in (0,'),
  ],
)
def test_nonsense_is_refused(recipe, name, value, says):
  (file,) = [x for x in _FILES if x.stem == recipe]
  assert says in _tried(file, name, value)


def test_no_clipping_is_written_alike_everywhere():
  for file in _FILES:
    fields = presets.fields(
      recipes.load_config_module(str(file)).get_config('smoke')
    )
    if 'tx.clip' in fields:
      assert not _tried(file, 'tx.clip', 0.0), file


def test_a_bug_without_any_override_keeps_its_traceback():
  with pytest.raises(KeyError), building.explained({}):
    raise KeyError('bug')
  with (
    pytest.raises(
      types.InputError, match=r'^--config\.a\.b=1: KeyError: .bug. \(--verb'
    ),
    building.explained({'a.b': 1}),
  ):
    raise KeyError('bug')


def test_the_field_that_a_message_tells_is_named_and_no_other():
  with (
    pytest.raises(types.InputError, match=r'^--config\.model\.width=-1: width'),
    building.explained({'seed': 3, 'model.width': -1, 'model.depth': 2}),
  ):
    raise ValueError('width must be in [1, inf); got -1')
