"""Methods for two groups: what each of them does besides its loss."""

import jax
import numpy as np
import optax
import pytest

from configs import group_invariance as recipe
from repjax import trees
from repjax import types

DIVIDED = ('irm', 'vrex', 'cirm', 'cvrex')
OTHERS = ('erm', 'balanced', 'pgi', 'group_dro', 'cdro', 'cmmd')


@pytest.mark.parametrize('name', [*DIVIDED, *OTHERS])
def test_weight_decay_is_divided_with_the_sum_that_it_is_a_part_of(name):
  config = recipe.get_config('smoke')
  config.method = name
  config.groups.update(after=1.0, ramp=2.0, weight=10.0, other_weight=10.0)
  config.tx.update(learning_rate=0.1, momentum=0.0, weight_decay=0.5)
  config.tx.drop_at = ()
  # An epoch is one update. Rows of padding have no gradient but the decay.
  method = recipe.method(config, config.batch_size, 10, optax.sgd)
  batch = {
    'image': np.zeros((4, 8, 8, 3), np.float32),
    'label': np.arange(4) % 2,
    'group': np.arange(4) // 2,
    'mask': np.zeros(4, np.float32),
  }
  state = method.init(jax.random.key(0), batch)
  update = jax.jit(method.update)
  found = []
  for step in range(6):
    after, _ = update(state, batch, jax.random.key(step))
    before, now = (
      trees.flatten(x.params)['head', 'kernel'] for x in (state, after)
    )
    found.append(np.median((before - now) / before) / (0.1 * 0.5))
    state = after
  # The weight is 0, 0, 5, 10, 10, ...
  expected = [1, 1, 1 / 5, 1 / 10, 1 / 10, 1 / 10]
  if name not in DIVIDED:
    expected = np.ones(6)
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_each_method_goes_on_from_the_state_of_any_other():
  batch = {
    'image': np.zeros((4, 8, 8, 3), np.float32),
    'label': np.zeros(4, int),
    'group': np.zeros(4, int),
    'mask': np.ones(4, np.float32),
  }
  config = recipe.get_config('smoke')
  structures = set()
  for name in (*DIVIDED, *OTHERS):
    config.method = name
    method = recipe.method(config, 640, 10)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    structures.add(jax.tree.structure(state.opt_state))
  assert len(structures) == 1


@pytest.mark.parametrize('name', ['pgi', 'balanced', 'irm', 'group_dro'])
def test_a_group_without_training_rows_is_refused(name):
  config = recipe.get_config('smoke')
  config.method, config.colours.bias_rate = name, 1.0
  with pytest.raises(types.InputError, match='Group 1 of 2 has no training'):
    recipe.build(config)
