"""The task alone moves the encoder; the actor is frozen, and resets restore."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import trees
from repjax import types
from repjax.adapt import pad
from repjax.data.environments import environment
from repjax.data.environments import point_mass
from repjax.methods import inverse_dynamics
from repjax.models import agent as agents

_ENV = point_mass.make(size=8, num_steps=6)
_LOOKS = point_mass.stack_looks(
  {
    'training': point_mass.make_look(),
    'blue': point_mass.make_look(background=(0.1, 0.1, 0.9)),
    'dark': point_mass.make_look(gain=0.4),
  }
)


def _head():
  return agents.Projection(0)


_MODEL = agents.Agent(
  agents.Encoder((4,), (2,), width=6, unfolded=True),
  agents.Actor(_head(), agents.Trunk(4, (5,))),
  task=agents.Task(_head(), agents.Trunk(2, (5,))),
)
_LOSS = inverse_dynamics.make(_MODEL)


def _act(params, observation, rng):
  del rng
  variables = {'params': params}
  return jnp.tanh(
    _MODEL.apply(variables, observation[None], method='policy').mean[0]
  )


@pytest.fixture(scope='module')
def params():
  image, action = np.zeros((1, 8, 8, 3)), np.zeros((1, 2))
  return jax.jit(_MODEL.init)(jax.random.key(0), image, action)['params']


def _deploy(params, adapter=None, **settings):
  adapter = adapter or pad.make(_LOSS, optax.sgd(1.0), copies=1)
  settings = {'rate': 0.1, **settings}
  told = jax.jit(
    lambda params: pad.deploy(
      _ENV, _act, adapter, params, _LOOKS, jax.random.key(1), **settings
    )
  )(params)
  return jax.device_get(told)


def test_one_step_of_descent_is_the_formula(params):
  rng = np.random.default_rng(0)
  seen, then = rng.random((2, 8, 8, 3), np.float32)
  action = np.array([0.3, -0.2], np.float32)
  adapter = pad.make(_LOSS, optax.sgd(1.0), copies=3)
  state = jax.jit(adapter.init)(params, 0.05)
  after, loss = jax.jit(adapter.update)(
    state, pad.Transition(seen, action, then), jax.random.key(0)
  )

  def of_one(chosen):  # Without any of the adapter's parts.
    guess = _MODEL.apply(
      {'params': {**params, **chosen}}, seen[None], then[None], method='guess'
    )
    return jnp.square(guess[0] - action).mean()

  chosen = jax.device_get({name: params[name] for name in ('encoder', 'task')})
  expected, grads = jax.jit(jax.value_and_grad(of_one))(chosen)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  chex.assert_trees_all_close(
    {name: after.params[name] for name in chosen},
    jax.tree.map(lambda x, g: x - 0.05 * np.asarray(g), chosen, grads),
    rtol=1e-4,
    atol=1e-6,
  )


def test_what_adapts_is_the_encoder_and_the_tasks_head(params):
  moved = trees.flatten(_deploy(params).params)
  for path, x in trees.flatten(params).items():
    if path[0] == 'actor':
      np.testing.assert_array_equal(moved[path], np.stack([x] * 3))
    else:
      assert path[0] in ('encoder', 'task')
      assert not np.array_equal(moved[path][1], x), path


def test_a_rate_of_zero_is_no_adaptation(params):
  told = _deploy(params, rate=0.0)
  looks, keys = _LOOKS, jax.random.key(1)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(y, np.stack([x] * 3)),
    params,
    told.params,
  )

  # The episodes of `deploy`, walked by a policy that cannot adapt.
  @jax.jit
  def reset(rng):
    rng_reset, _ = jax.random.split(jax.random.split(rng, 1)[0])
    return jax.vmap(_ENV.reset)(jax.random.split(rng_reset, 3), looks)

  @jax.jit
  def walk(params, states):
    seen = jax.vmap(_ENV.observe)(states)
    actions = jnp.stack([_act(params, x, None) for x in seen])
    return jax.vmap(_ENV.step)(states, actions)

  states = reset(keys)
  for t in range(_ENV.num_steps):
    states, reward = walk(params, states)
    np.testing.assert_allclose(told.reward[0, t], reward, rtol=1e-4, atol=1e-6)
  assert not told.adapting.any()


def test_the_tasks_head_alone_changes_no_action(params):
  adapter = pad.make(
    _LOSS, optax.sgd(1.0), copies=1, adapted=lambda path: path[0] == 'task'
  )
  alone, none = _deploy(params, adapter), _deploy(params, rate=0.0)
  np.testing.assert_allclose(alone.reward, none.reward, rtol=1e-5, atol=1e-7)
  assert abs(alone.loss[0, -1] - none.loss[0, -1]).max() > 1e-4


def test_reset_restores_what_never_keeps(params):
  of_each = _deploy(params, episodes=2, reset='episode')
  kept = _deploy(params, episodes=2, reset='never')
  np.testing.assert_array_equal(of_each.loss[0], kept.loss[0])
  assert not np.allclose(of_each.loss[1], kept.loss[1])
  # The second episode's first loss is that of the agent as it was trained.
  fresh = _deploy(params, episodes=2, rate=0.0)
  np.testing.assert_allclose(of_each.loss[1, 0], fresh.loss[1, 0], rtol=1e-5)
  assert not np.allclose(kept.loss[1, 0], fresh.loss[1, 0], rtol=1e-3)


def test_the_harm_detector_waits_below_its_limit(params):
  none, some = _deploy(params, rate=0.0), _deploy(params)
  waits = _deploy(params, limit=100.0)
  np.testing.assert_array_equal(waits.loss, none.loss)
  assert not waits.adapting.any()
  assert some.adapting.all()
  # The recent loss is the mean of all while there are few, as NumPy says.
  expected = np.cumsum(none.loss[0], 0) / np.arange(1, 7)[:, None]
  np.testing.assert_allclose(none.recent[0, :5], expected[:5], rtol=1e-5)
  # From then on the oldest ones fade.
  last, before = none.recent[0, 5], none.recent[0, 4]
  np.testing.assert_allclose(
    last, before + (none.loss[0, 5] - before) / 5, rtol=1e-5
  )
  limit = pad.training_limit(none.recent, 0.5)
  np.testing.assert_allclose(limit, np.quantile(none.recent, 0.5), rtol=1e-6)


def test_each_agent_has_its_own_rate(params):
  told = _deploy(params, rate=jnp.array([0.0, 0.1, 0.0]))
  moved = np.array([*told.params['encoder']['conv_0']['kernel']])
  still = np.asarray(params['encoder']['conv_0']['kernel'])
  assert [np.array_equal(x, still) for x in moved] == [True, False, True]


def test_shuffled_actions_are_another_agents(params):
  own, shuffled = (
    _deploy(params, rate=0.0, actions=x) for x in ('own', 'shuffled')
  )
  np.testing.assert_array_equal(own.reward, shuffled.reward)
  assert (abs(own.loss - shuffled.loss) > 1e-6).all()


@pytest.mark.parametrize(
  'settings', [dict(reset='daily'), dict(actions='none'), dict(episodes=0)]
)
def test_what_cannot_be_is_refused(params, settings):
  with pytest.raises(types.InputError, match=next(iter(settings))):
    _deploy(params, **settings)
  one = environment.repeat(point_mass.make_look(), 1)
  with pytest.raises(types.InputError, match='two agents'):
    pad.deploy(
      _ENV,
      _act,
      pad.make(_LOSS, optax.sgd(1.0)),
      params,
      one,
      jax.random.key(0),
      rate=0.0,
      actions='shuffled',
    )
  with pytest.raises(types.InputError, match='copies'):
    pad.make(_LOSS, optax.sgd(1.0), copies=0)


def test_moments_wait_with_the_agent(params):
  rng = np.random.default_rng(0)
  seen, then = rng.random((2, 8, 8, 3), np.float32)
  adapter = pad.make(_LOSS, optax.sgd(1.0, momentum=0.9), copies=1)
  met = pad.Transition(seen, np.float32([0.3, -0.2]), then)
  init, update = jax.jit(adapter.init), jax.jit(adapter.update)
  for limit in (100.0, -1.0):
    state = init(params, 0.05, limit)
    after, _ = update(state, met, jax.random.key(0))
    still = jax.tree.map(np.array_equal, after.opt_state, state.opt_state)
    assert all(jax.tree.leaves(still)) == (limit > 0)
