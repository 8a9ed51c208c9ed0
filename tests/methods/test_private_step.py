"""The training step with DP-SGD: what it costs and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import gradients
from repjax import optim
from repjax import types
from repjax.methods import afn
from repjax.methods import dann
from repjax.methods import step as steps
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import resnet

RNG = jax.random.key(0)
ROWS = 64


def link():
  return optim.dp_sgd(0.5, 1.0, expected_batch_size=ROWS, key=RNG)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': jnp.asarray(rng.normal(size=(ROWS, 6, 6, 1)), jnp.float32),
    'label': jnp.asarray(rng.integers(0, 3, ROWS)),
    'mask': jnp.ones(ROWS).at[5:9].set(0),
  }


def flops(fn, *args):
  found = fn.lower(*args).compile().cost_analysis()
  found = found[0] if isinstance(found, list) else found
  return found['flops']


def test_a_private_step_has_one_forward_pass(batch):
  model = mlp.Mlp(3, features=(48,))
  tx = optax.chain(link(), optax.sgd(0.1))
  method = supervised.make(model, tx)
  state = method.init(RNG, batch)

  def loss_fn(params, model_state, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['image'], train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    hits = (logits.argmax(-1) == batch['label']).astype(jnp.float32)
    return types.Losses(loss, model_state, {'accuracy': hits})

  @jax.jit
  def clipped_alone(state, batch, rng):
    grad_fn = gradients.GradFn(loss_fn, batch, rng, {})
    updates, opt_state = tx.update(
      state.params, state.opt_state, state.params, grad_fn=grad_fn
    )
    params = optax.apply_updates(state.params, updates)
    return params, opt_state, grad_fn.clipped_aux.sums

  step = jax.jit(method.update)
  forward = flops(jax.jit(method.predict), state, batch)
  alone = flops(clipped_alone, state, batch, RNG)
  whole = flops(step, state, batch, RNG)
  assert forward > 0.05 * alone  # One more pass would be seen.
  assert abs(whole - alone) < 0.1 * forward
  # The metrics are those of the plain gradient's pass.
  plain = supervised.make(model, optax.sgd(0.1))
  _, expected = jax.jit(plain.update)(plain.init(RNG, batch), batch, RNG)
  _, sums = step(state, batch, RNG)
  for name, (total, weight) in expected.items():
    np.testing.assert_allclose(sums[name][0], total, rtol=1e-5)
    assert sums[name][1] == weight == ROWS - 4
  assert sums['gradient_norm'][0] > 0


def test_batch_normalisation_is_refused(batch):
  method = supervised.make(
    resnet.WideResNet(3, depth=10, widen=1),
    optax.chain(link(), optax.sgd(0.1)),
  )
  state = jax.eval_shape(method.init, RNG, batch)
  with pytest.raises(types.InputError, match='group or layer normalisation'):
    jax.eval_shape(method.update, state, batch, RNG)


def test_a_loss_that_is_no_loss_a_row_is_refused(batch):
  def loss_fn(params, model_state, batch, rng):
    del rng
    loss = jnp.square(batch['image'] * params['w']).mean()
    return types.Losses(loss, model_state, {})

  step = steps.make(loss_fn, optax.chain(link(), optax.sgd(0.1)))
  state = step.init({'params': {'w': jnp.ones(())}})
  with pytest.raises(ValueError, match='one loss a row'):
    step.update(state, batch, RNG)


def adversarial(tx):
  return dann.make(mlp.Mlp(3, features=(48,)), tx, num_groups=2, weight=1.0)


def large_norms(tx):
  return afn.make(mlp.Mlp(3, features=(48,)), tx, weight=0.1)


@pytest.mark.parametrize('make', [adversarial, large_norms])
def test_a_loss_that_looks_at_its_head_is_clipped_by_any_method(make, batch):
  batch = {**batch, 'group': jnp.arange(ROWS) % 2}

  def params(method):
    noise_free = optim.dp_sgd(
      0.5, 0.0, expected_batch_size=ROWS, key=RNG, method=method
    )
    made = make(optax.chain(noise_free, optax.sgd(0.1)))
    state = made.init(RNG, batch)
    return jax.jit(made.update)(state, batch, RNG)[0].params

  expected = params('vmap')
  for method in ('auto', 'ghost'):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      params(method),
      expected,
    )
