"""A run that acts goes on bit for bit, and acts as often as it should."""

from unittest import mock

import jax
import numpy as np
import pytest

from configs import sac
from repjax import run
from repjax import types
from repjax.data.environments import worlds
from repjax.experiments import acting


@pytest.fixture
def config():
  config = sac.get_config('smoke')
  # Two worlds' six steps by chance, then two steps for four updates.
  config.world.num = 2
  config.act.update(first=6, steps=2, updates=4)
  config.min_steps = 30
  config.run.update(log_every=5, eval_every=10, save_every=5, best='return')
  return config


def _stop(config, workdir):
  """A run that is stopped in the middle."""
  calls = iter(range(30))
  with pytest.raises(types.PreemptedError, match='after step 23'):
    run.fit(
      sac.build(config),
      config,
      workdir,
      asked_to_stop=lambda: next(calls) == 22,
    )


def test_a_stopped_run_goes_on_to_the_same_end(config, tmp_path):
  whole = run.fit(sac.build(config), config, tmp_path / 'whole')
  _stop(config, tmp_path / 'parts')
  parts = run.fit(sac.build(config), config, tmp_path / 'parts')
  assert parts['params_crc32'] == whole['params_crc32']
  assert parts['result'] == whole['result']
  assert parts['best_step'] == whole['best_step']
  lines = [
    (tmp_path / x / 'metrics.jsonl').read_text().count('"return"')
    for x in ('whole', 'parts')
  ]
  assert lines == [3, 3]


def test_without_its_memory_a_run_says_so(config, tmp_path):
  _stop(config, tmp_path)
  for path in (tmp_path / 'memory').glob('rows-*'):
    path.unlink()
  with pytest.raises(types.InputError, match='memory of 0 steps'):
    run.fit(sac.build(config), config, tmp_path)


def test_the_memory_grows_with_the_updates(config):
  experiment = sac.build(config)
  batches, companion = experiment.train, experiment.companion
  state = jax.jit(experiment.method.init)(jax.random.key(0), batches.batch(0))
  grown = []
  for step in range(1, 21):
    before = batches.batch(step)
    companion.follow(step, state)
    grown.append(batches.num_transitions)
    again = batches.batch(step)
    changed = not np.array_equal(before['action'], again['action'])
    assert changed == (step > 12 and step % 4 == 0)
  # By chance 12; two steps of two worlds after each four updates, from the
  # sixteenth on: as many as updates.
  assert grown == [12] * 15 + [16] * 4 + [20]


def test_schedules():
  schedule = acting.Schedule(first=250, steps=1, updates=4)
  assert [schedule.steps_after(x) for x in (0, 999, 1003, 1004, 8000)] == [
    250,
    250,
    250,
    251,
    2000,
  ]


def test_test_episodes_are_the_same_and_no_training_episodes(config):
  experiment = sac.build(config)
  batches = experiment.train
  state = jax.jit(experiment.method.init)(jax.random.key(0), batches.batch(0))
  measured = [experiment.companion.measures['return'](state) for _ in range(2)]
  assert measured[0] == measured[1]
  np.testing.assert_allclose(batches.returns(state).mean(), measured[0])
  config.seed = 1
  assert sac.build(config).train.fingerprint() != batches.fingerprint()


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    (dict(first=5), 'must divide'),
    (dict(updates=0), 'updates'),
    (dict(episodes=0), 'episodes'),
    (dict(capacity=0), 'capacity'),
  ],
)
def test_what_cannot_be_is_refused(config, fields, says):
  config.act.update(fields)
  with pytest.raises(types.InputError, match=says):
    sac.build(config)


class _Noting:
  """Worlds that keep who acted in them, and by which seeds."""

  num, num_steps, action_dim, column, stack = 1, 2, 1, 'features', 1

  def __init__(self):
    self.acted, self.judged, self.seeds = [], [], []

  def begin(self, seed):
    self.seeds.append(seed)
    return ()

  def collect(self, policy, params, state, *, num_steps):
    self.acted.append(policy)
    zeros = np.zeros((num_steps, 1, 1), np.float32)
    return state, worlds.Steps(zeros, zeros, zeros[..., 0], zeros)

  def returns(self, policy, params, *, seed, episodes):
    self.judged.append(policy)
    self.seeds.append(seed)
    return np.zeros(episodes)


def test_who_acts_explores_and_is_judged_elsewhere_by_modes():
  side, explore, exploit = _Noting(), object(), object()
  made = acting.Acting(
    side,
    acting.Policies(explore, exploit),
    acting.Schedule(first=2, steps=2, updates=1),
    **dict(seed=0, batch_size=4, capacity=8, episodes=2),
  )
  made.follow(2, mock.Mock(params={}))
  made.returns(mock.Mock(params={}))
  assert side.acted[1:] == [explore]  # By chance before.
  assert side.judged == [exploit]
  assert len(set(side.seeds)) == 2


class _Earning(_Noting):
  """Whose steps earn 0, 1, 2 ..., some more than that."""

  def __init__(self, more=0.0):
    super().__init__()
    self.more = more

  def collect(self, policy, params, state, *, num_steps):
    state, steps = super().collect(policy, params, state, num_steps=num_steps)
    earned = self.more + np.arange(num_steps, dtype=np.float32)[:, None]
    return state, steps._replace(reward=earned)


def test_a_batch_is_drawn_by_the_seed_and_its_step():
  def made(seed=0, more=0.0):
    return acting.Acting(
      _Earning(more),
      acting.Policies(None, None),
      acting.Schedule(first=40, steps=40, updates=1),
      **dict(seed=seed, batch_size=20, capacity=40, episodes=2),
    )

  first = made()
  rewards = [tuple(first.batch(step)['reward']) for step in range(5)]
  assert len(set(rewards)) == 5
  again = made().iterate(3)
  assert [tuple(next(again)['reward']) for _ in range(2)] == rewards[3:]
  assert tuple(made(seed=1).batch(0)['reward']) != rewards[0]
  # Of all that was done, not of its actions alone.
  assert made().fingerprint() == first.fingerprint()
  assert made(more=1.0).fingerprint() != first.fingerprint()


def test_episodes_of_another_length_are_refused(config, tmp_path):
  _stop(config, tmp_path)
  config.world.num_steps = 7
  with pytest.raises(types.InputError, match='episodes of 10 steps'):
    run.fit(sac.build(config), config, tmp_path, resume_config='new')
