"""What is copied to devices is copied, and what a step donates is gone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import parallel
from repjax import types


@pytest.mark.devices(4)
@pytest.mark.parametrize('count', [1, 4])
def test_one_array_in_two_places_becomes_two_on_each_device(count):
  # A teacher starts as the student, and a donated state is overwritten.
  shared = jnp.arange(5.0)
  devices = jax.devices()[:count]
  tree = {'student': shared, 'teacher': shared, 'key': jax.random.key(3)}
  copied = parallel.replicate(tree, devices)
  places = [
    x.data.unsafe_buffer_pointer()
    for name in ('student', 'teacher')
    for x in copied[name].addressable_shards
  ]
  places.append(shared.unsafe_buffer_pointer())
  assert len(set(places)) == 2 * count + 1

  def update(state, batch, rng):
    del batch, rng
    return {**state, 'teacher': state['student'] + 1}, {}

  step = jax.pmap(
    update,
    in_axes=(None, 0, None),
    out_axes=None,
    donate_argnums=(0,),
    devices=devices,
  )
  moved, _ = step(copied, np.zeros((count, 1)), 0)
  np.testing.assert_array_equal(moved['teacher'], np.arange(5.0) + 1)
  np.testing.assert_array_equal(shared, np.arange(5.0))
  assert (
    jax.random.key_data(moved['key']) == jax.random.key_data(tree['key'])
  ).all()


def _add(state, batch, rng):
  """Adds the rows to each of many numbers."""
  del rng
  total = parallel.psum(batch['x'].sum())
  params = jax.tree.map(lambda x: x + total, state.params)
  return state.replace(step=state.step + 1, params=params), {
    'rows': (total, total)
  }


def _state(devices):
  params = {'a': jnp.zeros(100_000), 'b': jnp.ones(3)}
  state = types.TrainState(jnp.zeros((), jnp.int32), params, (), {}, ())
  return parallel.replicate(state, devices)


@pytest.mark.devices(4)
@pytest.mark.parametrize('count', [1, 4])
def test_a_step_keeps_one_copy_of_the_state(count):
  devices = jax.local_devices()[:count]
  step, rng = parallel.train_step(_add, devices), jax.random.key(0)
  batch = parallel.shard({'x': np.ones(8, np.float32)}, devices)
  state = _state(devices)
  memory = step.lower(state, batch, rng).compile().memory_analysis()
  assert memory.alias_size_in_bytes >= 4 * 100_003
  new, _ = step(state, batch, rng)
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  np.testing.assert_array_equal(new.params['b'], 9.0)


@pytest.mark.devices(4)
@pytest.mark.parametrize('place', [0, 2])
def test_a_step_of_one_device_stays_there_and_compiles_once(place):
  devices = jax.local_devices()[place : place + 1]
  traces = []

  def update(state, batch, rng):
    traces.append(parallel.axis_name())
    return _add(state, batch, rng)

  step = parallel.train_step(update, devices)
  state = _state(devices)
  for _ in range(3):
    batch = parallel.shard({'x': np.ones(8, np.float32)}, devices)
    state, sums = step(state, batch, jax.random.key(0))
    assert {*state.params['a'].devices(), *sums['rows'][0].devices()} == {
      *devices
    }
  assert traces == [None]  # Nobody to exchange with.
  assert int(state.step) == 3
  predict = parallel.predict_step(
    lambda state, batch: {'x': state.params['b'][0] + batch['x'][:, None]},
    devices,
  )
  # Wherever a state comes from.
  outputs, columns = predict(jax.device_get(state), batch)
  assert outputs['x'].devices() == {*devices}
  assert outputs['x'].shape == (8, 1)
  assert set(columns) == {'x'}
  np.testing.assert_array_equal(outputs['x'], 1 + 24 + 1.0)
