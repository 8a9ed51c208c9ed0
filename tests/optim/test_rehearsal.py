"""A-GEM and EWC against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import gradients
from repjax import types
from repjax.optim import rehearsal

PARAMS = {'w': np.array([1, -2], np.float32), 'b': np.array(0.5, np.float32)}


def loss_fn(params, model_state, batch, rng):
  del rng
  error = batch['x'] @ params['w'] + params['b'] - batch['y']
  return types.Losses(jnp.square(error) / 2, model_state, {})


def rows(memory, sign=1.0):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, 2)).astype(np.float32)
  sides = np.array([1, 1, 1, sign, sign, sign], np.float32)
  y = x @ PARAMS['w'] + 0.5 + sides
  memory = np.asarray(memory)
  mask = (memory >= 0).astype(np.float32)
  return {'x': x, 'y': y, 'memory': memory, 'mask': mask}


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@jax.jit
def step(batch):
  link = rehearsal.a_gem()
  grad_fn = gradients.GradFn(loss_fn, batch, jax.random.key(0), {})
  return link.update(
    grad_fn(PARAMS)[0], link.init(PARAMS), PARAMS, grad_fn=grad_fn
  )[0]


@jax.jit
def mean_of_rows(batch, places):
  return jax.grad(lambda p: loss_fn(p, {}, batch, None).loss[places].mean())(
    PARAMS
  )


def by_rows(batch, places):
  return flat(mean_of_rows(batch, np.array(places)))


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_a_gem_takes_out_what_opposes_the_memory(sign):
  batch = rows([0, 0, 0, 1, 1, 1], sign)
  now, past = by_rows(batch, [0, 1, 2]), by_rows(batch, [3, 4, 5])
  expected, opposed = now, now @ past < 0
  assert opposed == (sign < 0)
  if opposed:
    expected = now - now @ past / (past @ past) * past
    assert abs(expected @ past) < 1e-5
  np.testing.assert_allclose(flat(step(batch)), expected, rtol=1e-5, atol=1e-6)


def test_a_gem_without_memory_is_the_plain_gradient():
  batch = rows([0, 0, 0, -1, -1, -1])
  expected = by_rows(batch, [0, 1, 2])
  np.testing.assert_allclose(flat(step(batch)), expected, rtol=1e-5)


def test_ewc_adds_the_gradient_of_all_old_penalties():
  rng = np.random.default_rng(1)

  def draw():
    return jax.tree.map(
      lambda x: np.asarray(np.abs(rng.normal(size=x.shape)), np.float32),
      PARAMS,
    )

  link = optax.chain(rehearsal.ewc(3.0), optax.sgd(1.0))
  state, tasks = link.init(PARAMS), [(draw(), draw()) for _ in range(3)]
  for fisher, params in tasks:
    state = rehearsal.consolidate(state, params, fisher)

  def penalty(params):
    return (
      3.0
      / 2
      * sum(
        (f * (w - v) ** 2).sum()
        for fisher, old in tasks
        for f, v, w in zip(
          *map(jax.tree.leaves, (fisher, old, params)), strict=True
        )
      )
    )

  plain = jax.tree.map(np.ones_like, PARAMS)
  updates, _ = jax.jit(link.update)(plain, state, PARAMS)
  slope = jax.device_get(jax.jit(jax.grad(penalty))(PARAMS))
  expected = jax.tree.map(lambda g, p: -g - p, plain, slope)
  np.testing.assert_allclose(flat(updates), flat(expected), rtol=1e-5)


def test_ewc_s_implicit_step_minimises_its_proximal_objective():
  rng = np.random.default_rng(2)
  grads, old = (PARAMS, jax.tree.map(lambda x: 1 - 2 * x, PARAMS))
  fisher = jax.tree.map(
    lambda x: np.asarray(1e4 * rng.random(x.shape), np.float32), PARAMS
  )
  rate, strength = 0.1, 20.0
  link = optax.chain(
    rehearsal.ewc(strength, learning_rate=rate), optax.sgd(rate)
  )
  state = rehearsal.consolidate(link.init(PARAMS), old, fisher)
  updates, _ = jax.jit(link.update)(grads, state, PARAMS)
  new = optax.apply_updates(PARAMS, updates)
  # argmin_n g n + strength / 2 F (n - old)^2 + (n - w)^2 / (2 rate): stable
  # though the explicit step would overshoot by a factor of 20,000.
  w, g, f, v = (flat(x).astype(float) for x in (PARAMS, grads, fisher, old))
  expected = (w - rate * (g - strength * f * v)) / (1 + rate * strength * f)
  np.testing.assert_allclose(flat(new), expected, rtol=1e-4, atol=1e-5)


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match='grad_fn'):
    rehearsal.a_gem().update(PARAMS, (), PARAMS)
  with pytest.raises(ValueError, match='params'):
    link = rehearsal.ewc(1.0)
    link.update(PARAMS, link.init(PARAMS))
  for strength in (-1.0, float('nan')):
    with pytest.raises(ValueError, match='strength'):
      rehearsal.ewc(strength)


def test_a_gem_of_float16_is_that_of_float32():
  batch = rows([0, 0, 0, 1, 1, 1])
  sides = 600 * np.array([1, 1, 1, -1, -1, -1], np.float32)
  batch['y'] = batch['x'] @ PARAMS['w'] + 0.5 + sides

  @jax.jit
  def update(params):
    grad_fn = gradients.GradFn(loss_fn, batch, jax.random.key(0), {})
    link = rehearsal.a_gem()
    return link.update(
      grad_fn(params)[0], link.init(params), params, grad_fn=grad_fn
    )[0]

  found = [
    update(jax.tree.map(lambda x, d=dtype: x.astype(d), PARAMS))
    for dtype in (np.float32, np.float16)
  ]
  assert found[1]['w'].dtype == jnp.float16
  np.testing.assert_allclose(flat(found[1]), flat(found[0]), rtol=0.02, atol=2)


def test_a_masked_penalty_is_consolidated_where_it_is():
  tx = optax.masked(rehearsal.ewc(2.0), {'w': True, 'b': False})
  fisher = jax.tree.map(np.ones_like, PARAMS)
  state = rehearsal.consolidate(tx.init(PARAMS), PARAMS, fisher)
  at = jax.tree.map(lambda x: x + 1, PARAMS)
  zeros = jax.tree.map(np.zeros_like, PARAMS)
  updates, _ = jax.jit(tx.update)(zeros, state, at)
  np.testing.assert_allclose(updates['w'], 2.0)
  assert updates['b'] == 0


def test_a_state_without_a_penalty_has_nothing_to_consolidate():
  with pytest.raises(types.InputError, match='EwcState'):
    rehearsal.consolidate(optax.sgd(0.1).init(PARAMS), PARAMS, PARAMS)
