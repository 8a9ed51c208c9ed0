"""FLAN's recipe trains on what is not held out, from files and weights, too."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flan as recipe
from configs.parts import instruction_tasks
from configs.studies import flan as study
from repjax import run
from repjax import types


def config(**fields):
  made = recipe.get_config('smoke')
  made.data.update(fields)
  return made


def test_held_out_tasks_are_in_no_batch():
  made = config(held_out='3')
  data = instruction_tasks.read(made)
  held = {x.task for x in data.held_out}
  assert len(held) == 6
  assert not held & set(data.train)
  batches = instruction_tasks.batches(made, data)
  numbers = {data.names.index(x) for x in held}
  for step in range(5):
    assert not numbers & {*batches.batch(step)['task'].tolist()}
  assert {x.task for x in data.known} == set(data.train)


def test_rates_are_capped_and_batches_resume():
  made = config(num_tasks=6)
  made.data.mixing_cap = 7
  data = instruction_tasks.read(made)
  batches = instruction_tasks.batches(made, data)
  np.testing.assert_allclose(batches.rates, 1 / 6)
  first = batches.batch(3)
  again = instruction_tasks.batches(made, data).batch(3)
  np.testing.assert_array_equal(first['source'], again['source'])


def test_arms_have_equally_many_rows():
  small = study.get_config('small')
  small.data.num_rows = 40
  sizes = {
    count: sum(
      len(x)
      for x in instruction_tasks.read(
        study._of_seed(small, 1, 'instruction', count)
      ).train.values()
    )
    for count in (24, 12, 6)
  }
  assert len(set(sizes.values())) == 1


def lines(tmp_path):
  path = tmp_path / 'tasks.jsonl'
  rows = [
    dict(inputs=f'{name} {i}', targets='ab'[i % 2], task=name)
    for name in ('one', 'two', 'three')
    for i in range(30)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_a_file_of_ones_own_trains_without_what_is_held_out(tmp_path):
  made = config(kind='jsonl', file=lines(tmp_path), held_out='two')
  data = instruction_tasks.read(made)
  assert set(data.train) == {'one', 'three'}
  assert [len(x) for x in data.train.values()] == [24, 24]
  assert len(data.known) == 12
  assert {x.task for x in data.held_out} == {'two'}
  assert 'held_out/accuracy' in run.measures(recipe.build(made))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='jsonl'), 'config.data.file'),
    (dict(held_out='9'), "no cluster '9'"),
    (dict(kind='csv'), 'data.kind'),
    (dict(told='song'), 'told'),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  with pytest.raises(types.InputError, match=message):
    recipe.build(config(**fields))


def test_held_out_tasks_of_a_file_must_be_there_and_not_all(tmp_path):
  for held in ('four', 'one,two,three'):
    with pytest.raises(types.InputError, match='some of the tasks'):
      recipe.build(config(kind='jsonl', file=lines(tmp_path), held_out=held))
  made = study.get_config('smoke')
  made.data.kind = 'jsonl'
  with pytest.raises(types.InputError, match='digit_maps'):
    study.run(made)


def test_the_paper_preset_has_its_shapes(tmp_path):
  made = recipe.get_config('paper')
  made.data.update(file=lines(tmp_path), held_out='two', vocab_size=300)
  data = instruction_tasks.read(made)
  model = instruction_tasks.network(made, data)
  method = instruction_tasks.method(made, model, 10)
  rows = made.batch_size
  batch = {
    'source': jax.ShapeDtypeStruct((rows, 1024), jnp.int32),
    'source_mask': jax.ShapeDtypeStruct((rows, 1024), jnp.float32),
    'tokens': jax.ShapeDtypeStruct((rows, 256), jnp.int32),
    'weights': jax.ShapeDtypeStruct((rows, 256), jnp.float32),
    'mask': jax.ShapeDtypeStruct((rows,), jnp.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  after, _ = jax.eval_shape(method.update, state, batch, jax.random.key(1))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert state.params['encoder']['block_0']['mlp']['gate']['kernel'].shape == (
    768,
    2048,
  )
