"""Agents of a study are those that a run with the same seed trains."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pad
from configs import sac
from configs.parts import deployed
from repjax import checkpoint
from repjax import loop
from repjax import run
from repjax import types
from repjax.protocols import acted


@pytest.fixture
def config():
  config = sac.get_config('smoke')
  config.run.update(log_every=4, eval_every=4, save_every=4)
  return config


def test_a_run_and_a_study_train_the_same_agent(config, tmp_path):
  whole = run.fit(sac.build(config), config, tmp_path)
  experiment = sac.build(config)
  # What it did before is lost.
  for step in range(20, 24):
    experiment.companion.follow(
      step, loop.init(experiment.method, experiment.train.batch(0), 1)
    )
  made = acted.train('agent', experiment, seed=0, every=4)
  store = checkpoint.Checkpoints(str(tmp_path / 'checkpoints'), read_only=True)
  state, _ = store.restore(made.state)
  store.close()
  chex.assert_trees_all_equal(made.state.params, state.params)
  np.testing.assert_array_equal(made.steps, [4, 8, 12])
  assert made.measured['return'][-1] == whole['result']['return']
  assert {'entropy', 'loss', 'temperature'} <= set(made.sums)


def test_an_agent_is_judged_after_its_last_update_too():
  # The method counts its updates, and the sum of each is its number.
  def update(state, batch, rng):
    state = state.replace(step=state.step + 1)
    return state, {'loss': (state.step * jnp.ones(()), jnp.ones(()))}

  log = []
  method = types.Method(
    lambda rng, batch: types.TrainState(jnp.zeros((), int), {}, {}, {}, {}),
    update,
    lambda state, batch: {},
  )
  experiment = mock.Mock(method=method, steps=5)
  experiment.train.expected_rows = 8.0
  experiment.train.iterate = lambda step: iter([{'mask': np.ones(8)}] * 5)
  experiment.companion = types.Companion(
    begin=lambda *args: log.append(args),
    follow=lambda step, state: log.append((step, int(state.step))),
    measures={'return': lambda state: 10.0 * log[-1][1]},
  )
  made = acted.train('agent', experiment, seed=0, every=2)
  assert log == [(None, 0), *((step, step) for step in range(1, 6))]
  np.testing.assert_array_equal(made.steps, [2, 4, 5])
  np.testing.assert_array_equal(made.measured['return'], [20, 40, 50])
  assert made.sums['loss'] == 5


def _tiny():
  config = pad.get_config('sac')
  config.update(
    batch_size=8,
    min_steps=8,
    world=dict(num=2, size=10, num_steps=6),
    agent=dict(channels=(4, 4), strides=(2, 2), width=8, features=(8,)),
    act=dict(first=4, updates=2, capacity=100, episodes=2),
    pad=dict(crop=8),
    run=dict(log_every=4, eval_every=8, save_every=4),
  )
  return config


def test_agents_that_see_learn_beside_the_task():
  params = deployed.trained(_tiny(), (0, 1))
  fresh = pad.build(_tiny())
  start = loop.init(fresh.method, fresh.train.batch(0), 0).params
  for group in ('encoder', 'actor', 'critic', 'task'):
    (kernel, *_) = [
      x for x in map(np.asarray, _leaves(params[group])) if x.ndim > 2
    ]
    (before, *_) = [
      x for x in map(np.asarray, _leaves(start[group])) if x.ndim > 1
    ]
    assert kernel.shape == (2, *before.shape)
    assert not np.array_equal(kernel[0], before), group
    assert not np.array_equal(kernel[0], kernel[1]), group


def test_an_unknown_teacher_is_refused():
  config = _tiny()
  config.trained_by = 'luck'
  with pytest.raises(types.InputError, match=r'config\.trained_by'):
    pad.build(config)
  config.trained_by = 'behaviour_cloning'
  config.data.name = 'walker-walk'
  with pytest.raises(types.InputError, match='has no teacher'):
    pad.build(config)


def _leaves(tree):
  return jax.tree.leaves(tree)
