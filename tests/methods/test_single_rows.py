"""One row less moves a clipped sum by no more than C, or is refused.

Whoever adds a method that takes an optax chain adds it to `small_methods`.
"""

import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_methods

from repjax import methods
from repjax import optim
from repjax import parallel
from repjax.methods import coral
from repjax.types import InputError

ROWS, CLIP = small_methods.ROWS, 0.5
_SAID = (
  'makes a loss of several rows',
  'compares all rows',
  'makes a gradient of its own',
  'Batch normalisation',
)


def _link(**settings):
  return optim.dp_sgd(
    CLIP, 0.0, expected_batch_size=1.0, key=jax.random.key(0), **settings
  )


@functools.cache
def _found(name):
  """Movements by single rows, in C, or what is said against asking."""
  make, batch = small_methods.METHODS[name]
  method = make(optax.chain(_link(method='vmap'), optax.sgd(1.0)))

  @jax.jit
  def init(batch):
    state = method.init(jax.random.key(1), batch)

    # What begins at zero tells nothing.
    def moved(x):
      return x + 0.3 * np.cos(np.arange(x.size)).reshape(x.shape)

    return state.replace(params=jax.tree.map(moved, state.params))

  @jax.jit
  def movements(state, batch):
    def steps(mask):
      rows = {**batch, 'mask': mask}
      new, _ = method.update(state, rows, jax.random.key(2))
      return jax.tree.map(jnp.subtract, state.params, new.params)

    # All rows, and then all but one, by a step that is compiled once.
    masks = jnp.concatenate([jnp.ones((1, ROWS)), 1 - jnp.eye(ROWS)])
    taken = jax.lax.map(steps, masks)
    without = jax.tree.map(lambda x: x[1:] - x[:1], taken)
    return jax.vmap(optax.tree.norm)(without) / CLIP

  state = init(batch)
  try:
    return np.asarray(movements(state, batch))
  except InputError as error:
    return str(error)


@pytest.mark.parametrize('name', small_methods.METHODS)
def test_a_row_moves_the_clipped_sum_by_its_bound_at_the_most(name):
  found = _found(name)
  if isinstance(found, str):
    assert any(said in found for said in _SAID), found
    return
  assert found.max() <= 1 + 1e-4
  assert found.max() > 0.1  # It was asked about something.


@pytest.mark.parametrize(
  'name', ['supervised', 'erm', 'dann', 'multitask rows', 'mixup of nothing']
)
def test_rows_by_themselves_are_not_refused(name):
  assert not isinstance(_found(name), str)


def test_all_methods_that_take_a_chain_are_here():
  takers = set()
  for path in pathlib.Path(methods.__file__).parent.glob('*.py'):
    module = importlib.import_module(f'repjax.methods.{path.stem}')
    for name, function in inspect.getmembers(module, inspect.isfunction):
      own = function.__module__ == module.__name__ and name[0] != '_'
      tx = inspect.signature(function).parameters.get('tx')
      if own and tx and tx.annotation is optax.GradientTransformation:
        takers.add(path.stem)
  # The step itself, which methods are made of.
  assert takers - {'step'} == {x.split()[0] for x in small_methods.METHODS}


def test_users_are_refused_where_groups_meet_over_devices():
  batch = {
    'image': np.random.default_rng(0).normal(size=(ROWS, 2, 2, 1)),
    'label': np.arange(ROWS) % small_methods.CLASSES,
    'group': np.arange(ROWS) % 2,
    'user': np.repeat(np.arange(ROWS // 2), 2),
    'mask': np.ones(ROWS, np.float32),
  }
  tx = optax.chain(_link(rows_per_user=2), optax.sgd(1.0))
  made = coral.make(small_methods.NET, tx, num_groups=2, weight=10.0)
  state = made.init(jax.random.key(0), batch)
  devices = jax.local_devices()[:2]
  step = parallel.train_step(made.update, devices)
  with pytest.raises(InputError, match='compares all rows'):
    step(
      parallel.replicate(state, devices),
      parallel.shard(batch, devices),
      jax.random.key(1),
    )


@pytest.mark.parametrize('name', ['mixup', 'mixup of boxes', 'erm of groups'])
def test_groups_of_rows_that_met_before_the_loss_may_be_looked_at(name):
  make, batch = small_methods.METHODS[name]
  method = make(optax.chain(optim.sam(0.1, groups=2), optax.sgd(1.0)))
  state = method.init(jax.random.key(1), batch)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(2))
  assert np.isfinite(sums['loss'][0])
