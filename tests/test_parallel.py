"""What is copied to devices is copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import parallel


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
