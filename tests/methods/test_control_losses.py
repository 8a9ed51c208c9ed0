"""Cloning, inverse dynamics and rotation are the formulas they are named by."""

import functools

import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import behaviour_cloning
from repjax.methods import inverse_dynamics
from repjax.methods import rotation
from repjax.models import agent as agents

_RNG = np.random.default_rng(0)
_BATCH = dict(
  image=_RNG.random((5, 8, 8, 3), np.float32),
  next_image=_RNG.random((5, 8, 8, 3), np.float32),
  action=_RNG.uniform(-1, 1, (5, 2)).astype(np.float32),
  target=_RNG.uniform(-1, 1, (5, 2)).astype(np.float32),
  mask=np.ones(5, np.float32),
)


def _model(**task):
  head = agents.Projection(6)
  return agents.Agent(
    agents.Encoder((4,), (2,)),
    agents.Actor(head, agents.Trunk(4, (5,))),
    task=agents.Task(agents.Projection(6), **task),
  )


def _params(model):
  init = jax.jit(model.init)
  return init(jax.random.key(0), _BATCH['image'], _BATCH['action'])['params']


def test_cloning_is_two_squared_errors():
  model = _model(trunk=agents.Trunk(2, (5,)))
  method = behaviour_cloning.make(
    model,
    optax.sgd(0.0),
    task=inverse_dynamics.make(model),
    task_weight=0.5,
  )
  state = jax.jit(method.init)(jax.random.key(0), _BATCH)
  _, sums = jax.jit(method.update)(state, _BATCH, jax.random.key(1))
  variables = {'params': state.params}
  policy, guess_of = (
    jax.jit(functools.partial(model.apply, method=x))
    for x in ('policy', 'guess')
  )
  mean = policy(variables, _BATCH['image']).mean
  guess = guess_of(variables, _BATCH['image'], _BATCH['next_image'])
  of_policy = ((np.tanh(mean) - _BATCH['target']) ** 2).mean(1)
  of_task = ((np.asarray(guess) - _BATCH['action']) ** 2).mean(1)
  np.testing.assert_allclose(sums['loss'][0], of_policy.sum(), rtol=1e-5)
  np.testing.assert_allclose(sums['task_loss'][0], of_task.sum(), rtol=1e-5)
  outputs = jax.jit(method.predict)(state, _BATCH)
  np.testing.assert_allclose(outputs['error'], of_policy, rtol=1e-4)
  np.testing.assert_allclose(outputs['action'], np.tanh(mean), rtol=1e-5)


def test_cloning_descends_on_the_weighted_sum():
  model = _model(trunk=agents.Trunk(2, (5,)))
  task = inverse_dynamics.make(model)

  def moved(weight):
    method = behaviour_cloning.make(
      model, optax.sgd(0.1), task=task, task_weight=weight
    )
    state = jax.jit(method.init)(jax.random.key(0), _BATCH)
    after, _ = jax.jit(method.update)(state, _BATCH, jax.random.key(1))
    after, state = jax.device_get((after.params, state.params))
    return jax.tree.map(np.subtract, after, state)

  none, half, one = moved(0.0), moved(0.5), moved(1.0)
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(b, (a + c) / 2, atol=1e-5),
    none,
    half,
    one,
  )
  assert not any(np.any(x) for x in jax.tree.leaves(none['task']))
  with pytest.raises(types.InputError, match='task_weight'):
    moved(-1.0)


def test_rotation_is_told_what_was_turned():
  image = _BATCH['image'][:4]
  turned = np.asarray(jax.jit(rotation.rotate)(image, np.arange(4)))
  for k in range(4):
    np.testing.assert_array_equal(turned[k], np.rot90(image[k], k))
  model = _model(trunk=agents.Trunk(4, (5,)), num_inputs=1)
  params, rng = _params(model), jax.random.key(3)
  out = jax.jit(rotation.make(model))(params, {}, _BATCH, rng)
  label = np.asarray(jax.random.randint(rng, (5,), 0, 4))
  turned = np.stack(
    [np.rot90(x, k) for x, k in zip(_BATCH['next_image'], label, strict=True)]
  )
  guess = jax.jit(functools.partial(model.apply, method='guess'))
  logits = np.asarray(guess({'params': params}, turned))
  log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(
    out.loss, -log_probs[np.arange(5), label], rtol=1e-4
  )


def test_the_actors_gradient_stops_at_the_encoder():
  model = _model(trunk=agents.Trunk(2, (5,)))

  def total(params, stop):
    return model.apply(
      {'params': params}, _BATCH['image'], stop=stop, method='policy'
    ).mean.sum()

  params, grad = _params(model), jax.jit(jax.grad(total), static_argnums=1)
  stopped, free = (
    jax.device_get(grad(params, x)['encoder']) for x in (True, False)
  )
  assert not any(np.any(x) for x in jax.tree.leaves(stopped))
  assert all(np.any(x) for x in jax.tree.leaves(free))


def test_a_head_that_is_not_there_is_named():
  model = _model(trunk=agents.Trunk(2, (5,)))
  variables = {'params': _params(model)}
  with pytest.raises(types.InputError, match='no critic'):
    model.apply(variables, _BATCH['image'], _BATCH['action'], method='values')


@pytest.mark.parametrize('unfolded', [False, True])
def test_images_too_small_for_the_convolutions_are_refused(unfolded):
  encoder = agents.Encoder((4, 4), (2, 2), width=3, unfolded=unfolded)
  with pytest.raises(types.InputError, match=r'2 x 2 places .* side 3'):
    encoder.init(jax.random.key(0), np.zeros((1, 6, 6, 3), np.float32))
