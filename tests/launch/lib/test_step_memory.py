"""What a step needs is XLA's count; what is advised would fit."""

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import pytest

from configs import beit
from configs import presets
from launch.lib import building
from launch.lib import recipes
from launch.lib import step_memory
from repjax import types


def config(**fields):
  return config_dict.ConfigDict(
    dict(batch_size=64, step=dict(microbatches=1), **fields)
  )


def always(name, value):
  """Whatever is set helps."""
  del name, value
  return True


def memory(given, temporary):
  return step_memory.StepMemory(given, 0, temporary)


def test_what_is_donated_counts_once():
  def step(state, rows):
    return state + rows.sum()

  state, rows = jnp.ones(1000), jnp.ones(500)
  for donated, results in (((), 4000), ((0,), 0)):
    made = jax.jit(step, donate_argnums=donated).lower(state, rows).compile()
    found = step_memory.of(made)
    assert (found.given, found.results) == (6000, results)
    assert found.total == 6000 + results + found.temporary


def test_nothing_is_advised_where_a_step_fits():
  assert step_memory.advice(memory(50, 50), config(), always, limit=100) == ''
  assert step_memory.advice(None, config(), always, limit=1) == ''
  # It is not known what the device has.
  assert step_memory.advice(memory(50, 50), config(), always, limit=0) == ''


def test_the_parts_that_are_advised_would_fit(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  found = step_memory.advice(memory(40, 150), config(), always, limit=100)
  # 150 / 4 + 40 is less than 100; 3 parts are no divisor of 64 rows.
  assert 'config.step.microbatches=4' in found
  assert 'config.batch_size=21' in found
  assert 'remat' not in found
  found = step_memory.advice(
    memory(40, 150), config(model=dict(remat=False)), always, limit=100
  )
  assert found.index('config.model.remat=true') < found.index('microbatches')
  found = step_memory.advice(
    memory(40, 150), config(model=dict(remat=True)), always, limit=100
  )
  assert 'remat' not in found


@pytest.mark.parametrize('paper', ['esvit', 'flan', 'diffstride', 'tent'])
def test_the_field_that_computes_again_is_named_in_whatever_group(paper):
  preset = recipes.load_study(paper).get_config('gpu')
  (name,) = [x for x in presets.fields(preset) if x.endswith('.remat')]
  found = step_memory.advice(memory(40, 150), preset, always, limit=100)
  assert f'try --config.{name}=true' in found


def test_a_state_that_is_too_large_is_not_the_batch_s_fault():
  found = step_memory.advice(memory(200, 10), config(), always, limit=100)
  assert 'smaller model' in found and 'batch_size' not in found


def test_both_lines_are_logged(monkeypatch):
  said = []
  for kind in ('info', 'warning'):
    monkeypatch.setattr(logging, kind, lambda form, *x: said.append(form % x))
  monkeypatch.setattr(step_memory, 'room', lambda: 2**30)
  made = jax.jit(lambda x: x + 1).lower(jnp.ones(1000)).compile()
  step_memory.say(config(), always, made)
  assert len(said) == 1
  assert said[0].startswith('a step needs 0.0 MiB of 1.0 GiB a device: ')
  monkeypatch.setattr(step_memory, 'room', lambda: 100)
  step_memory.say(config(), always, made)
  assert 'smaller model' in said[2]


def test_the_machine_s_memory_is_shared_by_its_cpu_devices():
  assert 2**28 < step_memory.room() < 2**50


def test_a_full_device_is_one_line_that_names_fields():
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')
  with (
    pytest.raises(types.InputError, match=r'config\.step\.microbatches=2'),
    step_memory.explained(config(), always),
  ):
    raise error
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'),
    step_memory.explained(config(), always),
  ):
    raise jax.errors.JaxRuntimeError('INTERNAL: a fault')


def test_advice_is_of_the_fields_that_a_stage_has(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  made = beit.get_config('small')
  made.stage = 'finetune'  # Of 50 rows; others of 64.
  found = step_memory.advice(memory(40, 150), made, always, limit=100)
  assert '--config.stages.finetune.batch_size=16' in found
  assert '--config.step.microbatches=5' in found


def helps(paper, preset='smoke'):
  """Of a recipe's own config, and that config."""
  module = recipes.load_config_module(str(recipes.path_of(paper)))
  made = module.get_config(preset)
  return building.helps(module, made, preset), made


@pytest.mark.parametrize(
  'paper, rows',
  # The queue of PiCO holds no batches of 5 rows.
  [
    ('contrastive_poisoning', 10),
    ('domino', 10),
    ('pico', 4),
    ('group_invariance', None),
    ('sac', None),
  ],
)
def test_parts_are_not_advised_where_they_are_refused(paper, rows, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  known, made = helps(paper)
  found = step_memory.advice(memory(40, 150), made, known, limit=100)
  assert 'microbatches' not in found
  assert rows is None or f'--config.batch_size={rows},' in found
  with (
    pytest.raises(types.InputError) as raised,
    step_memory.explained(made, known),
  ):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')
  assert 'microbatches' not in str(raised.value)


def test_parts_are_advised_where_a_step_has_them(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  known, made = helps('sam')
  found = step_memory.advice(memory(40, 150), made, known, limit=100)
  assert '--config.step.microbatches=3 (the same step in parts)' in found
  # One is no divisor of the rows, the other says nothing of a step.
  assert not known('step.microbatches', made.batch_size - 1)
  assert not known('run.keep', made.run.keep + 1)


def test_only_the_network_that_is_trained_is_computed_again():
  module = recipes.load_config_module(str(recipes.path_of('imprint')))
  made = module.get_config('smoke')
  made.preact_resnet.remat = False
  for network, expected in (('mlp', False), ('preact_resnet', True)):
    made.network = network
    known = building.helps(module, made, 'smoke')
    assert known('preact_resnet.remat', True) == expected


def test_rows_that_are_advised_divide_over_devices_and_parts(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 4)
  made = config()
  made.step.microbatches = 2
  found = step_memory.advice(memory(40, 150), made, always, limit=100)
  assert '--config.batch_size=16,' in found  # 64 / 3 is 21.


def test_where_no_field_helps_the_model_is_too_large():
  found = step_memory.advice(
    memory(40, 150), config(), lambda *_: False, limit=100
  )
  assert found.endswith(': use a smaller model')


def test_what_cannot_be_tried_on_a_full_device_is_advised(monkeypatch):
  def full(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')

  known, made = helps('sam')
  monkeypatch.setattr(building, 'build', full)
  with (
    pytest.raises(types.InputError, match=r'config\.batch_size='),
    step_memory.explained(made, known),
  ):
    full()
