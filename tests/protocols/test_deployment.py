"""Rates are chosen on looks of other kinds; by hand is as in one scan."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.adapt import pad
from repjax.data.environments import environment
from repjax.data.environments import point_mass
from repjax.methods import inverse_dynamics
from repjax.methods import squashed_policy
from repjax.models import agent as agents
from repjax.protocols import deployment


def test_a_looks_own_kind_counts_for_nothing():
  kinds = ['training', 'light', 'light', 'stripes']
  fails = np.array([[False, True, True, True]])
  # Light likes the first rate, stripes the second.
  tried = np.array([[[9.0, 5.0, 5.0, 1.0]], [[0.0, 1.0, 1.0, 3.0]]])
  chosen = deployment.choose_rates(tried, fails, kinds)
  np.testing.assert_array_equal(chosen, [0, 1, 1, 0])
  # A look that does not fail has no say.
  fails = np.array([[False, False, False, True]])
  chosen = deployment.choose_rates(tried, fails, kinds)
  np.testing.assert_array_equal(chosen, [1, 1, 1, 0])


def test_a_rate_that_spoils_an_agent_is_not_chosen():
  tried = np.array([[[9.0, 5.0, 5.0]], [[9.0, 6.0, 6.0]], [[9.0, np.nan, 4.0]]])
  fails = np.array([[False, True, True]])
  kinds = ['training', 'light', 'stripes']
  # Of its own kind nothing is seen, and of stripes 4 is the least.
  chosen = deployment.choose_rates(tried, fails, kinds)
  np.testing.assert_array_equal(chosen, [1, 1, 1])


def test_all_agents_have_the_rate_that_is_best_for_them_together():
  tried = np.array([[[0.0, 5.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 4.0]]])
  fails = np.array([[False, True]] * 2)
  chosen = deployment.choose_rates(tried, fails, ['training', 'light'])
  assert chosen[0] == 1


def test_all_that_begin_in_a_look_have_its_rate(monkeypatch):
  monkeypatch.setattr(
    deployment,
    '_program',
    lambda *args: (
      lambda params, looks, key, rates, limits: ((looks, rates, limits))
    ),
  )
  looks, rates, limits = deployment.everywhere(
    *(None, None, None, {'kernel': np.zeros((3, 1))}, np.array([7, 8])),
    rate=np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
    limit=np.array([1.0, 2.0, 3.0]),
    times=2,
  )
  np.testing.assert_array_equal(looks, [7, 7, 8, 8])
  np.testing.assert_allclose(
    rates, [[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]]
  )
  np.testing.assert_array_equal(limits, [1, 2, 3])


class _ByHand:
  """The point mass, a step at a time."""

  def __init__(self, env, states):
    self.num_steps, self._states = env.num_steps, states
    self._observe, self._step = jax.jit(env.observe), jax.jit(env.step)

  def first(self, seed, episode):
    self._state = self._states[episode]
    return np.asarray(self._observe(self._state))

  def next(self, action, time, seen):
    del time, seen  # The state knows.
    self._state, reward = self._step(self._state, action)
    return np.asarray(self._observe(self._state)), float(reward)


@pytest.mark.parametrize('rate', [0.0, 0.1])
def test_by_hand_is_what_one_scan_does(rate):
  env = point_mass.make(size=8, num_steps=5)
  none = agents.Projection(0)
  model = agents.Agent(
    agents.Encoder((4,), (2,), width=6, unfolded=True),
    agents.Actor(none, agents.Trunk(4, (5,))),
    task=agents.Task(none, agents.Trunk(2, (5,))),
  )
  params = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 2))
  )['params']
  # Nothing is drawn: one transition, no crops.
  adapter = pad.make(inverse_dynamics.make(model), optax.sgd(1.0), copies=1)
  looks = environment.repeat(point_mass.make_look(gain=0.5), 1)
  told = deployment.everywhere(
    env,
    model,
    adapter,
    jax.tree.map(lambda x: x[None], jax.device_get(params)),
    looks,
    rate=rate,
    episodes=2,
  )
  states, reset = [], jax.jit(env.reset)
  for key in jax.random.split(jax.random.key(0), 2):
    rng = jax.random.split(jax.random.split(key)[0], 1)[0]
    states.append(reset(rng, point_mass.make_look(gain=0.5)))
  by_hand = deployment.in_simulator(
    _ByHand(env, states),
    squashed_policy.exploiting(model),
    adapter,
    params,
    rate=rate,
    episodes=2,
    seed=0,
  )
  np.testing.assert_allclose(
    by_hand.reward, told.reward[0, :, :, 0], rtol=1e-3, atol=1e-6
  )
  np.testing.assert_allclose(by_hand.loss, told.loss[0, :, :, 0], rtol=1e-3)
  with pytest.raises(types.InputError, match='episodes'):
    deployment.in_simulator(
      _ByHand(env, states), None, adapter, params, rate=0.0, episodes=0, seed=0
    )


def test_each_step_of_each_episode_draws_by_a_key_of_its_own(monkeypatch):
  keys = []

  def update(state, transition, rng):
    keys.append(tuple(jax.random.key_data(rng).tolist()))
    return state, 0.0

  monkeypatch.setattr(
    deployment,
    '_compiled',
    lambda policy, adapter: (lambda params, seen: jnp.zeros(1), update),
  )

  class World:
    num_steps = 3

    def first(self, seed, episode):
      return np.zeros(1)

    def next(self, action, time, seen):
      return seen, 0.0

  state = types.TrainState(0, {}, {}, (), ())
  adapter = pad.Adapter(*[lambda *args: state] * len(pad.Adapter._fields))
  deployment.in_simulator(
    World(), None, adapter, {}, rate=0.1, episodes=2, seed=0
  )
  assert len(keys) == len(set(keys)) == 6
