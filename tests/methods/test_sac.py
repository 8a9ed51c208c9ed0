"""Losses of soft actor-critic are those of a few lines of NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import inverse_dynamics
from repjax.methods import sac
from repjax.methods import squashed_policy
from repjax.models import agent as agents


def _head():
  return agents.Projection(0)


_MODEL = agents.Agent(
  agents.Encoder((4,), (2,), width=6, unfolded=True),
  agents.Actor(_head(), agents.Trunk(4, (5,))),
  agents.Critic(_head(), agents.Trunk(1, (5,)), agents.Trunk(1, (5,))),
  agents.Task(_head(), agents.Trunk(2, (5,))),
)


def _method(rate=0.1, **settings):
  tx = sac.Optimizers(*[optax.sgd(rate)] * 4)
  return sac.make(_MODEL, tx, action_dim=2, **settings)


def _batch(num=6):
  rng = np.random.default_rng(0)
  images = rng.random((2, num, 8, 8, 3), np.float32)
  return dict(
    image=images[0],
    next_image=images[1],
    action=rng.uniform(-1, 1, (num, 2)).astype(np.float32),
    reward=rng.random(num, np.float32),
    discount=(rng.random(num) < 0.7).astype(np.float32),
    mask=np.ones(num, np.float32),
  )


@pytest.fixture(scope='module')
def state():
  return jax.jit(_method().init)(jax.random.key(0), _batch())


@functools.cache
def _update():
  return jax.jit(_method().update)


def _applied(method):
  return jax.jit(functools.partial(_MODEL.apply, method=method))


def test_the_density_of_a_squashed_gaussian_is_its_derivative():
  gaussian = agents.Gaussian(jnp.array([[0.3, -0.8]]), jnp.array([[-1.0, 0.2]]))
  noise = np.array([[0.4, -0.5]])
  action, log_prob = squashed_policy.squash(gaussian, jnp.asarray(noise))
  mean, log_std = (np.asarray(x, np.float64) for x in gaussian)
  raw = mean + np.exp(log_std) * noise
  np.testing.assert_allclose(action, np.tanh(raw), rtol=1e-5)
  density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std)
  # Of tanh, by finite differences.
  slope = (np.tanh(raw + 1e-6) - np.tanh(raw - 1e-6)) / 2e-6
  expected = np.log(density / slope).sum(-1)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-4)


def test_far_out_the_correction_is_that_of_the_authors():
  gaussian = agents.Gaussian(jnp.array([[50.0]]), jnp.array([[0.0]]))
  action, log_prob = squashed_policy.squash(gaussian, jnp.zeros((1, 1)))
  assert float(action[0, 0]) == 1.0
  expected = -0.5 * np.log(2 * np.pi) - np.log(1e-6)
  np.testing.assert_allclose(log_prob, [expected], rtol=1e-5)


def test_targets_take_the_smaller_value_and_stop_where_the_world_ends():
  actual = sac.targets(
    jnp.array([1.0, 2.0]),
    jnp.array([0.9, 0.0]),
    jnp.array([[3.0, 4.0], [5.0, 6.0]]),
    jnp.array([-0.5, 7.0]),
    temperature=0.2,
  )
  expected = [1.0 + 0.9 * (3.0 + 0.2 * 0.5), 2.0]
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_temperature_follows_the_entropy(state):
  rate = 0.1
  after, sums = _update()(state, _batch(), jax.random.key(1))
  entropy = float(sums['entropy'][0] / sums['entropy'][1])
  # d/d log a of a (entropy - (-A)); the target entropy is -A = -2.
  expected = np.log(0.1) - rate * 0.1 * (entropy + 2)
  np.testing.assert_allclose(after.extra.log_temperature, expected, rtol=1e-5)


def _still(**moving):
  """A method of which some parts move."""
  rates = {name: optax.sgd(moving.get(name, 0.0)) for name in _PARTS}
  return sac.make(
    _MODEL, sac.Optimizers(**rates), action_dim=2, temperature=1e-4
  )


_PARTS = sac.Optimizers._fields


@pytest.fixture(scope='module')
def moved_actor():
  """(state before, state after, sums) of a step of the actor alone."""
  method = _still(actor=0.5)
  begun = jax.jit(method.init)(jax.random.key(0), _batch())
  return begun, *jax.jit(method.update)(begun, _batch(), jax.random.key(1))


def test_the_actor_climbs_what_the_critic_says(moved_actor):
  (begun, after, _), batch = moved_actor, _batch()
  policy, of_actions = map(_applied, ('policy', 'values'))

  def value(state):
    variables = {'params': state.params}
    gaussian = policy(variables, batch['image'])
    action, _ = squashed_policy.squash(gaussian, jnp.zeros((6, 2)))
    values = of_actions(variables, batch['image'], action)
    return float(values.min(-1).mean())

  chex.assert_trees_all_equal(after.params['critic'], begun.params['critic'])
  assert value(after) > value(begun) + 1e-5


def test_the_entropy_is_that_of_the_actions_that_are_drawn(moved_actor):
  begun, _, sums = moved_actor
  gaussian = _applied('policy')({'params': begun.params}, _batch()['image'])
  rng = jax.random.split(jax.random.key(1), 3)[1]
  _, log_prob = squashed_policy.draw(gaussian, rng)
  np.testing.assert_allclose(sums['entropy'][0], -np.sum(log_prob), rtol=1e-4)


def test_the_critics_loss_and_slow_averages_are_the_formulas(state):
  batch, rng = _batch(), jax.random.key(1)
  after, sums = _update()(state, batch, rng)
  policy, of_actions = map(_applied, ('policy', 'values'))
  variables = {'params': state.params}
  rng_critic = jax.random.split(rng, 3)[0]
  gaussian = policy(variables, batch['next_image'])
  action, log_prob = squashed_policy.draw(gaussian, rng_critic)
  target = {'params': state.extra.target}
  slow = of_actions(target, batch['next_image'], action)
  values = of_actions(variables, batch['image'], batch['action'])
  slow, values, log_prob = map(np.asarray, (slow, values, log_prob))
  target = batch['reward'] + 0.99 * batch['discount'] * (
    slow.min(1) - 0.1 * log_prob
  )
  loss = ((values - target[:, None]) ** 2).sum(1)
  np.testing.assert_allclose(sums['loss'][0], loss.sum(), rtol=1e-4)
  for name, decay in (('encoder', 0.95), ('critic', 0.99)):
    mixed = jax.tree.map(
      lambda old, new, decay=decay: decay * old + (1 - decay) * new,
      state.extra.target[name],
      # The slow average follows before the task moves the encoder.
      after.params[name],
    )
    chex.assert_trees_all_close(
      after.extra.target[name], mixed, rtol=1e-4, atol=1e-6
    )


def test_the_actors_loss_is_what_entropy_costs_minus_the_smaller_value(state):
  batch, rng = _batch(), jax.random.key(1)
  after, sums = _update()(state, batch, rng)
  # Of the critic and the encoder that have moved already.
  variables = {'params': {**after.params, 'actor': state.params['actor']}}
  policy, of_actions = map(_applied, ('policy', 'values'))
  rng_actor = jax.random.split(rng, 3)[1]
  gaussian = policy(variables, batch['image'])
  action, log_prob = squashed_policy.draw(gaussian, rng_actor)
  values = np.asarray(of_actions(variables, batch['image'], action))
  expected = 0.1 * np.asarray(log_prob) - values.min(1)
  np.testing.assert_allclose(sums['actor_loss'][0], expected.sum(), rtol=1e-4)
  assert abs(values[:, 0] - values[:, 1]).min() > 1e-4


def test_the_critics_projection_is_averaged_as_the_encoder_is():
  def head():
    return agents.Projection(6, own=agents.Encoder((3,), (1,)))

  model = agents.Agent(
    agents.Encoder((4,), (2,)),
    agents.Actor(head(), agents.Trunk(4, (5,))),
    agents.Critic(head(), agents.Trunk(1, (5,)), agents.Trunk(1, (5,))),
  )
  tx = sac.Optimizers(*[optax.sgd(0.1)] * 4)
  method = sac.make(model, tx, action_dim=2)
  before = jax.jit(method.init)(jax.random.key(0), _batch())
  after, _ = jax.jit(method.update)(before, _batch(), jax.random.key(1))
  start, end, slow = map(
    trees.flatten, (before.extra.target, after.params, after.extra.target)
  )
  for path, x in slow.items():
    values = path[1] in ('first', 'second')
    decay, other = (0.99, 0.95) if values else (0.95, 0.99)
    mixed = decay * start[path] + (1 - decay) * end[path]
    np.testing.assert_allclose(x, mixed, rtol=1e-6, atol=1e-6)
    wrong = other * start[path] + (1 - other) * end[path]
    assert np.abs(x - wrong).max() > 1e-5, path
  assert ('critic', 'projection', 'own', 'conv_0', 'kernel') in slow
  assert ('critic', 'projection', 'norm', 'scale') in slow


def test_the_actor_moves_no_encoder_and_what_waits_stands_still(state):
  still = state.replace(step=jnp.ones((), jnp.int32))  # Not the actor's turn.
  update = _update()
  waits, sums = update(still, _batch(), jax.random.key(1))
  chex.assert_trees_all_equal(waits.params['actor'], state.params['actor'])
  chex.assert_trees_all_equal(waits.extra, state.extra)
  assert float(sums['actor_loss'][1]) == 0
  acts, sums = update(state, _batch(), jax.random.key(1))
  assert float(sums['actor_loss'][1]) == 6
  # With and without the actor's turn, encoder and critic are the same.
  for name in ('encoder', 'critic'):
    chex.assert_trees_all_close(acts.params[name], waits.params[name])
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(acts.params['actor'], state.params['actor'])


def test_the_task_moves_the_encoder_too(state):
  task = inverse_dynamics.make(_MODEL)
  update = jax.jit(_method(task=task, every=sac.Every(2, 2, 3)).update)
  after, sums = update(state, _batch(), jax.random.key(1))
  alone, _ = _update()(state, _batch(), jax.random.key(1))
  assert float(sums['task_loss'][1]) == 6
  for name, same in (('encoder', False), ('task', False), ('critic', True)):
    moved = [
      np.allclose(x, y, rtol=1e-6, atol=0)
      for x, y in zip(
        jax.tree.leaves(after.params[name]),
        jax.tree.leaves(alone.params[name]),
        strict=True,
      )
    ]
    assert all(moved) == same, name
  # In the second turn of three it waits.
  after, sums = update(after, _batch(), jax.random.key(1))
  assert float(sums['task_loss'][1]) == 0


def test_a_batch_without_rows_moves_nothing(state):
  nobody = {**_batch(), 'mask': np.zeros(6, np.float32)}
  after, _ = _update()(state, nobody, jax.random.key(1))
  chex.assert_trees_all_equal(after.params, state.params)
  chex.assert_trees_all_equal(
    after.extra.log_temperature, state.extra.log_temperature
  )


def test_who_explores_draws_and_who_exploits_takes_the_mode(state):
  image, rng = _batch()['image'], jax.random.key(3)
  mean, log_std = _applied('policy')({'params': state.params}, image)
  noise = squashed_policy.noise(rng, (6, 2))
  for make, raw in (
    (squashed_policy.exploring, mean + np.exp(log_std) * noise),
    (squashed_policy.exploiting, mean),
  ):
    action = jax.jit(make(_MODEL))(state.params, image, rng)
    np.testing.assert_allclose(action, np.tanh(raw), rtol=1e-4, atol=1e-6)


@pytest.mark.devices(4)
def test_what_a_row_draws_is_a_matter_of_its_place_in_the_global_batch():
  rng = jax.random.key(0)
  whole = squashed_policy.noise(rng, (8, 2))
  parts = jax.pmap(
    lambda _: squashed_policy.noise(rng, (2, 2)), axis_name=parallel.AXIS
  )(np.arange(4))
  np.testing.assert_array_equal(parts.reshape(8, 2), whole)
  assert len(np.unique(whole)) == 16


def test_rows_of_padding_count_for_nothing(state):
  clean, dirty = _batch(), _batch()
  mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
  for name, x in dirty.items():
    dirty[name] = np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
  clean['mask'] = dirty['mask'] = mask
  update = _update()
  chex.assert_trees_all_equal(
    update(state, clean, jax.random.key(2)),
    update(state, dirty, jax.random.key(2)),
  )


@pytest.mark.parametrize(
  'settings',
  [
    dict(discount=1.1),
    dict(temperature=0.0),
    dict(critic_decay=-0.1),
    dict(every=sac.Every(0, 2, 2)),
  ],
)
def test_what_is_out_of_range_is_refused(settings):
  with pytest.raises(types.InputError, match=next(iter(settings))):
    _method(**settings)


def test_actions_are_drawn_by_rows_in_whatever_parts_the_loss_is_taken(state):
  # SAM of no radius takes the gradients of groups, and adds them up.
  def with_link(link):
    chain = optax.chain(link, optax.sgd(0.1))
    tx = sac.Optimizers(*[chain] * 2, *[optax.sgd(0.1)] * 2)
    return sac.make(_MODEL, tx, action_dim=2)

  grouped = with_link(optim.sam(0.0, groups=2))
  batch, rng = _batch(), jax.random.key(1)
  begun = jax.jit(grouped.init)(jax.random.key(0), batch)
  found, _ = jax.jit(grouped.update)(begun, batch, rng)
  expected, _ = _update()(state, batch, rng)
  chex.assert_trees_all_close(found.params, expected.params, atol=1e-6)
  private = with_link(
    optim.dp_sgd(1.0, 1.0, expected_batch_size=6.0, key=jax.random.key(0))
  )
  with pytest.raises(types.InputError, match='not private with dp_sgd'):
    jax.eval_shape(private.init, rng, batch)
