"""SAM on quadratics and networks, over groups and devices, beside optax's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from repjax import gradients
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.layers import norms
from repjax.methods import supervised
from repjax.models import mlp

MATRIX = jnp.diag(jnp.array([1.0, 10.0, 0.5]))
POINT = {'a': jnp.array([3.0]), 'b': jnp.array([-1.0, 2.0])}


def flatten(params):
  return jnp.concatenate([params['a'], params['b']])


def quadratic(params):
  flat = flatten(params)
  return flat @ MATRIX @ flat / 2


class QuadraticGrad:
  """A `types.GradFn` of one device that remembers where it was asked."""

  def __init__(self, loss=quadratic):
    self.loss = loss
    self.points = []

  def __call__(self, params, *, sync=True):
    del sync  # There is one device.
    self.points.append(params)
    return jax.grad(self.loss)(params), None


def climb(params, loss=quadratic, **settings):
  """SAM's gradient and the point that it was taken at."""

  @jax.jit
  def run(params):
    grad_fn = QuadraticGrad(loss)
    link = optim.sam(**settings)
    grads, _ = link.update(
      jax.grad(loss)(params), link.init(params), params, grad_fn=grad_fn
    )
    (point,) = grad_fn.points
    return grads, point

  return run(params)


def assert_equal(actual, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    actual,
    expected,
  )


def largest_gap(first, second):
  gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, second)
  return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize('rho', [0.01, 0.1, 1.0])
def test_the_gradient_is_taken_at_the_worst_point_of_a_quadratic(rho):
  grads, _ = climb(POINT, rho=rho)
  slope = MATRIX @ flatten(POINT)
  expected = MATRIX @ (flatten(POINT) + rho * slope / jnp.linalg.norm(slope))
  np.testing.assert_allclose(flatten(grads), expected, rtol=1e-6)


def test_the_adaptive_worst_point_is_that_of_kwon_et_al():
  _, point = climb(POINT, rho=0.2, adaptive=True, eta=0.1)
  w, slope = flatten(POINT), MATRIX @ flatten(POINT)
  scale = jnp.abs(w) + 0.1
  step = 0.2 * scale**2 * slope / jnp.linalg.norm(scale * slope)
  np.testing.assert_allclose(flatten(point), w + step, rtol=1e-6)
  # Its length is rho in the norm of the neighbourhood.
  np.testing.assert_allclose(jnp.linalg.norm(step / scale), 0.2, rtol=1e-6)


def test_what_the_mask_leaves_out_does_not_move_but_gets_its_gradient():
  grads, point = climb(POINT, rho=0.5, mask=lambda path: path[0] == 'a')
  np.testing.assert_array_equal(point['b'], POINT['b'])
  np.testing.assert_allclose(point['a'], POINT['a'] + 0.5, rtol=1e-6)
  np.testing.assert_allclose(grads['b'], POINT['b'] * jnp.array([10, 0.5]))
  with pytest.raises(ValueError, match='selects no leaf'):
    climb(POINT, rho=0.5, mask=lambda path: path[0] == 'c')


@pytest.mark.parametrize('adaptive', [False, True])
def test_a_zero_gradient_gives_a_zero_gradient(adaptive):
  zero = jax.tree.map(jnp.zeros_like, POINT)
  grads, _ = climb(zero, rho=0.1, adaptive=adaptive, eta=0.0)
  assert_equal(grads, zero, 0.0)


@jax.jit
def relu_loss(params):
  x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  hidden = jnp.maximum(x @ params['w1'] + params['b1'][None], 0)
  return jnp.square(
    hidden @ params['w2'] + params['b2'][None] - x[:, :1]
  ).mean()


def test_rescaling_relu_layers_does_not_change_what_asam_finds():
  rng = np.random.default_rng(1)
  shapes = {'w1': (3, 5), 'b1': (5,), 'w2': (5, 1), 'b2': (1,)}
  params = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  factor = {'w1': 4.0, 'b1': 4.0, 'w2': 0.25, 'b2': 1.0}
  rescaled = {name: factor[name] * x for name, x in params.items()}
  np.testing.assert_allclose(relu_loss(rescaled), relu_loss(params), rtol=1e-5)

  def worst(params, **settings):
    _, point = climb(params, relu_loss, rho=0.3, **settings)
    return float(relu_loss(point))

  asam = dict(adaptive=True, eta=0.0)
  np.testing.assert_allclose(
    worst(rescaled, **asam), worst(params, **asam), rtol=1e-5
  )
  assert abs(worst(rescaled) / worst(params) - 1) > 0.05


def test_ten_steps_with_momentum_equal_the_opaque_mode_of_optax():
  base = functools.partial(optax.sgd, 0.02, momentum=0.9)
  theirs = optax.contrib.sam(
    base(),
    optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
    sync_period=2,
    opaque_mode=True,
  )
  ours = optax.chain(optim.sam(0.1), base())
  plain = jax.grad(quadratic)

  @jax.jit
  def step(params, state):
    updates, state = ours.update(
      plain(params),
      state,
      params,
      grad_fn=lambda p, sync=True: (plain(p), None),
    )
    return optax.apply_updates(params, updates), state

  @jax.jit
  def their_step(params, state):
    updates, state = theirs.update(
      plain(params), state, params, grad_fn=lambda p, _: plain(p)
    )
    return optax.apply_updates(params, updates), state

  params, state = POINT, ours.init(POINT)
  their_params, their_state = POINT, theirs.init(POINT)
  for _ in range(10):
    params, state = step(params, state)
    their_params, their_state = their_step(their_params, their_state)
  assert_equal(params, their_params, 1e-6)
  assert np.abs(flatten(params) - flatten(POINT)).min() > 0.1


# In a whole training step.


class Network(nn.Module):
  """Batch statistics and dropout in one small network."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((image.shape[0], -1))
    x = nn.relu(nn.Dense(8, name='hidden')(x))
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    x = nn.Dropout(0.5, deterministic=not train, name='dropout')(x)
    return nn.Dense(3, name='head')(x)


def batch(rows=16):
  rng = np.random.default_rng(2)
  return {
    'image': jnp.asarray(rng.normal(size=(rows, 2, 2, 1)).astype(np.float32)),
    'label': jnp.asarray(rng.integers(0, 3, rows)),
    'mask': jnp.asarray((np.arange(rows) != 1).astype(np.float32)),
  }


@functools.cache
def one_update(link=None, base=optax.sgd, model=Network):
  tx = base(0.5) if link is None else optax.chain(link, base(0.5))
  method = supervised.make(model(), tx)
  state = jax.jit(method.init)(jax.random.key(0), batch())
  return state, *jax.jit(method.update)(state, batch(), jax.random.key(1))


def test_rho_zero_is_the_base_optimizer_bit_for_bit():
  # With dropout: both passes drop the same units.
  _, plain, plain_sums = one_update()
  _, zero, zero_sums = one_update(optim.sam(0.0))
  assert_equal(zero.params, plain.params, 0.0)
  assert_equal(zero_sums, plain_sums, 0.0)


def test_batch_statistics_and_metrics_are_those_of_the_first_pass():
  start, plain, plain_sums = one_update()
  _, moved, moved_sums = one_update(optim.sam(2.0))
  assert_equal(moved.model_state, plain.model_state, 1e-7)
  assert_equal(moved_sums, plain_sums, 1e-6)
  assert largest_gap(start.model_state, moved.model_state) > 1e-3
  assert largest_gap(plain.params, moved.params) > 1e-3


def test_sam_before_adam_trains():
  start, new, _ = one_update(optim.sam(0.05), base=optax.adam)
  # The first step of Adam moves every parameter by the learning rate.
  moved = np.abs(new.params['head']['kernel'] - start.params['head']['kernel'])
  np.testing.assert_allclose(moved, 0.5, rtol=1e-3)


def plain_model():
  return mlp.Mlp(3, features=(8,))


@functools.cache
def update_of(link):
  method = supervised.make(plain_model(), optax.chain(link, optax.sgd(0.5)))
  state, _, _ = one_update(model=plain_model)
  return method.update, state.replace(
    opt_state=jax.jit(method.init)(jax.random.key(0), batch()).opt_state
  )


def split(tree):
  return jax.tree.map(lambda x: x.reshape((4, -1, *x.shape[1:])), tree)


def on_four_devices(link):
  update, state = update_of(link)
  new, sums = jax.pmap(
    update, axis_name=parallel.AXIS, in_axes=(None, 0, None)
  )(state, split(batch()), jax.random.key(1))
  first = jax.tree.map(lambda x: x[0], new.params)
  for replica in range(1, 4):
    assert_equal(
      jax.tree.map(lambda x, r=replica: x[r], new.params), first, 0.0
    )
  return first, sums


@pytest.mark.devices(4)
def test_synchronised_devices_climb_as_one_does():
  update, state = update_of(optim.sam(0.5))
  one, _ = jax.jit(update)(state, batch(), jax.random.key(1))
  many, _ = on_four_devices(optim.sam(0.5))
  assert_equal(many, one.params, 2e-6)


@pytest.mark.devices(4)
def test_groups_on_one_device_equal_unsynchronised_devices():
  # The mask makes their numbers of real rows differ.
  update, state = update_of(optim.sam(0.5, groups=4))
  one, _ = jax.jit(update)(state, batch(), jax.random.key(1))
  many, _ = on_four_devices(optim.sam(0.5, sync=False))
  assert_equal(many, one.params, 2e-6)
  together, _ = on_four_devices(optim.sam(0.5))
  assert largest_gap(many, together) > 1e-4


def test_groups_climb_on_their_own_and_their_gradients_are_averaged():
  # Rows pull one weight to either side: alone, each group climbs its own way.
  rows = {
    'x': jnp.array([1.0, 3.0, -2.0, -1.0]),
    'mask': jnp.array([1, 1, 1, 0.0]),
  }

  def loss_fn(params, model_state, batch, rng):
    del rng
    loss = jnp.square(params['w'] - batch['x']) / 2
    return types.Losses(loss, model_state, {})

  params = {'w': jnp.array(0.5)}
  link = optim.sam(0.1, groups=2)

  def update(params):
    fresh = gradients.GradFn(loss_fn, rows, jax.random.key(0), {})
    plain, _ = fresh(params)
    return link.update(plain, link.init(params), params, grad_fn=fresh)[0]

  grads = jax.jit(update)(params)
  # Group means are 2 and -2: worst points 0.4 and 0.6, gradients -1.6 and 2.6.
  np.testing.assert_allclose(grads['w'], (2 * -1.6 + 2.6) / 3, rtol=1e-6)

  found = jax.eval_shape(update, {'w': params['w'].astype('bfloat16')})
  assert found['w'].dtype == jnp.bfloat16


def flops(link):
  method = supervised.make(
    mlp.Mlp(10, features=(128, 128)), optax.chain(link, optax.sgd(0.1))
  )
  rows = {
    'image': jnp.zeros((64, 128)),
    'label': jnp.zeros(64, int),
    'mask': jnp.ones(64),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), rows)
  compiled = jax.jit(method.update).lower(state, rows, jax.random.key(0))
  return compiled.compile().cost_analysis()['flops']


def test_a_step_costs_two_gradients():
  plain = flops(optax.identity())
  np.testing.assert_allclose(flops(optim.sam(0.1)) / plain, 2.0, atol=0.05)
  # The metrics may take a forward pass more, but not a third gradient.
  assert flops(optim.sam(0.1, sync=False)) / plain < 2.5


def test_a_missing_grad_fn_is_named():
  link = optim.sam(0.1)
  with pytest.raises(ValueError, match='grad_fn'):
    link.update(POINT, link.init(POINT), POINT)
  with pytest.raises(ValueError, match='params'):
    link.update(POINT, link.init(POINT), grad_fn=QuadraticGrad())


@pytest.mark.parametrize(
  'bad',
  [
    *({name: x} for name in ('rho', 'eta') for x in (-1, np.nan, np.inf)),
    {'rho': jnp.array(np.nan)},
    {'groups': 0},
    {'groups': 2.5},
    {'groups': np.nan},
  ],
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    optim.sam(**{'rho': 0.1, **bad})
