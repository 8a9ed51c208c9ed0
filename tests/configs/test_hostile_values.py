"""Every recipe, every field, values that nobody means: one line or success."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import types as python_types

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import presets
from configs.parts import instruction_tasks
from launch.lib import building
from launch.lib import recipes
from repjax import types
from repjax.analysis import masked_features
from repjax.data.batches import poisson
from repjax.data.images import block_masks
from repjax.data.reading import source
from repjax.data.sets import coloured_digits
from repjax.data.sets import digit_maps
from repjax.data.sets import glyphs
from repjax.data.sets import planted_units
from repjax.data.sets import scenes
from repjax.data.sets import topic_tasks
from repjax.data.text import instructions
from repjax.data.text import tokens
from repjax.methods import lp_ft
from repjax.privacy import accounting
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

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
  made, module = _recipe(str(file))
  config = made('smoke')
  try:
    _set(config, name, value)
  except TypeError:
    return 'refused by ConfigDict'
  try:
    building.build(module, config, 'smoke')
  except types.InputError as error:
    return str(error)
  return ''


@functools.cache
def _recipe(file):
  """What makes its configs, and the recipe, whose usual ones are made once."""
  module = recipes.load_config_module(file)
  return module.get_config, python_types.SimpleNamespace(
    get_config=functools.cache(module.get_config), build=module.build
  )


def _key(value):
  """Equal for arguments of which a function makes the same.

  Raises:
    TypeError: Nobody can tell.
  """
  if isinstance(value, np.ndarray) and not value.dtype.hasobject:
    digest = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    return np.ndarray, value.dtype, value.shape, digest
  if isinstance(value, jax.Array):
    return jax.Array, _key(np.asarray(value))
  if isinstance(value, dict):
    return dict, *((_key(name), _key(x)) for name, x in value.items())
  if isinstance(value, (list, tuple)):
    return type(value), *map(_key, value)
  if isinstance(value, functools.partial):
    return _key((value.func, value.args, value.keywords))
  if isinstance(value, python_types.FunctionType):
    # Of equal code, which sees equal values.
    cells = [x.cell_contents for x in value.__closure__ or ()]
    rest = value.__defaults__, value.__kwdefaults__, cells
    return value.__code__, id(value.__globals__), _key(rest)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = [x.name for x in dataclasses.fields(value)]
    return type(value), _key([getattr(value, x) for x in names])
  hash(value)
  return type(value), value


def _once(fn):
  """The function; what it makes of equal arguments it makes once."""
  made = {}

  @functools.wraps(fn)
  def call(*args, **kwargs):
    try:
      key = _key((args, kwargs))
    except (TypeError, RecursionError):
      return fn(*args, **kwargs)
    if key not in made:
      found = fn(*args, **kwargs)
      for leaf in jax.tree.leaves(found):
        if isinstance(leaf, np.ndarray):
          leaf.flags.writeable = False  # Others are given it, too.
      made[key] = found
    return made[key]

  return call


def _traced_once(fn, is_changed):
  """`nn.Module.init` or `apply`; traces equal networks once for equal shapes.

  Args:
    fn: The function.
    is_changed: Tells whether anybody changes what layers do, beside the model.
  """
  programs = {}

  @functools.wraps(fn)
  def call(model, *args, **kwargs):
    leaves, treedef = jax.tree.flatten((args, kwargs))
    is_traced = [isinstance(x, jax.core.Tracer) for x in leaves]
    if is_changed() or not any(is_traced):
      return fn(model, *args, **kwargs)
    fixed = [None if y else x for x, y in zip(leaves, is_traced, strict=True)]
    try:
      key = _key(model), treedef, _key(fixed)
    except (TypeError, RecursionError):
      return fn(model, *args, **kwargs)

    def run(*traced):
      given = iter(traced)
      leaves = [
        next(given) if y else x for x, y in zip(fixed, is_traced, strict=True)
      ]
      args, kwargs = jax.tree.unflatten(treedef, leaves)
      return fn(model, *args, **kwargs)

    program = programs.setdefault(key, jax.jit(run))
    return program(*(x for x, y in zip(leaves, is_traced, strict=True) if y))

  return call


def _fitted(fit):
  """`seed_loop.fit` as a list, in which states stay when it goes on."""

  def call(*args, **kwargs):
    return [
      (step, jax.device_get(states), means)
      for step, states, means in fit(*args, **kwargs)
    ]

  return call


_noise = functools.cache(accounting.noise_multiplier_for)


# A field is read by few of all functions: the others make what they have made
# for the field before.
@pytest.fixture(autouse=True)
def make_once(monkeypatch):
  monkeypatch.setattr(accounting, 'noise_multiplier_for', _noise)
  changing, intercept = [], nn.intercept_methods

  @contextlib.contextmanager
  def noted(interceptor):
    changing.append(interceptor)
    try:
      with intercept(interceptor):
        yield
    finally:
      changing.pop()

  monkeypatch.setattr(nn, 'intercept_methods', noted)
  for name in ('init', 'apply'):
    fn = getattr(nn.Module, name)
    monkeypatch.setattr(
      nn.Module, name, _traced_once(fn, lambda: bool(changing))
    )
  for owner, *names in (
    (block_masks, 'fixed'),
    (coloured_digits, 'further_colours'),
    (digit_maps, 'suite'),
    (instruction_tasks, 'digit_words'),
    (glyphs, 'draw'),
    (instructions.Task, 'examples'),
    (lp_ft, 'features'),
    (masked_features, 'of_images'),
    (poisson, 'capacity'),
    (planted_units, 'captions', 'concepts', 'exemplars'),
    (scenes, 'draw'),
    (side_by_side, 'begin'),
    (source, 'load'),
    (tokens.Subwords, 'encode'),
    (topic_tasks, 'read', 'topic_pieces'),
  ):
    for name in names:
      monkeypatch.setattr(owner, name, _once(getattr(owner, name)))
  monkeypatch.setattr(seed_loop, 'fit', _once(_fitted(seed_loop.fit)))
  train = tokens.Subwords.train
  monkeypatch.setattr(tokens.Subwords, 'train', staticmethod(_once(train)))


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
