"""BatchNorm against flax's, against brute force, and over devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import parallel
from repjax import types
from repjax.layers import norms

pytestmark = pytest.mark.versions

SHAPE = (8, 3, 2, 5)


def variables(seed=0):
  rng = np.random.default_rng(seed)

  def draw(low, high):
    return jnp.asarray(rng.uniform(low, high, 5).astype(np.float32))

  return {
    'params': {'scale': draw(0.5, 2), 'bias': draw(-1, 1)},
    'batch_stats': {'mean': draw(-1, 1), 'var': draw(0.5, 2)},
  }


def images(seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(2.0, 3.0, SHAPE).astype(np.float32))


@functools.partial(jax.jit, static_argnames=('train', 'momentum', 'epsilon'))
def run(weights, x, mask=None, *, train=True, **settings):
  layer = norms.BatchNorm(**settings)
  return layer.apply(weights, x, train=train, mask=mask, mutable='batch_stats')


def close(actual, expected, tolerance=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    actual,
    expected,
  )


@pytest.mark.parametrize('train', [True, False])
def test_a_full_batch_on_one_device_equals_flax(train):
  theirs = nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5
  )
  expected = jax.jit(functools.partial(theirs.apply, mutable='batch_stats'))(
    variables(), images()
  )
  close(run(variables(), images(), train=train), expected)


def test_evaluation_uses_the_running_statistics_and_keeps_them():
  weights = jax.device_get(variables())
  output, state = run(weights, images(), train=False)
  mean, var = weights['batch_stats']['mean'], weights['batch_stats']['var']
  normal = (np.asarray(images()) - mean) / np.sqrt(var + 1e-5)
  expected = normal * weights['params']['scale'] + weights['params']['bias']
  close(output, expected)
  close(
    state.get('batch_stats', weights['batch_stats']),
    {'mean': mean, 'var': var},
    0.0,
  )


@pytest.mark.parametrize('garbage', [1e4, np.inf, np.nan])
def test_masked_rows_change_nothing(garbage):
  mask = jnp.array([1, 0, 1, 1, 0, 1, 0, 1.0])
  real = np.flatnonzero(mask)
  dirty = jnp.where(mask[:, None, None, None] > 0, images(), garbage)
  output, state = run(variables(), dirty, mask)
  expected, expected_state = run(variables(), images()[real])
  close(output[real], expected)
  close(state, expected_state)


def test_momentum_is_the_weight_of_the_old_value_and_the_variance_is_biased():
  weights = variables()
  _, state = run(weights, images(), momentum=0.75)
  x = np.asarray(images(), np.float64).reshape(-1, 5)
  old = weights['batch_stats']
  close(
    state['batch_stats'],
    {
      'mean': 0.75 * old['mean'] + 0.25 * x.mean(0),
      'var': 0.75 * old['var'] + 0.25 * x.var(0, ddof=0),
    },
  )


# Device 0 has all rows real, device 1 none, the others one of two each.
UNEVEN = jnp.array([1, 1, 0, 0, 1, 0, 0, 1.0])


@pytest.mark.devices(4)
@pytest.mark.parametrize('mask', [jnp.ones(8), UNEVEN], ids=['full', 'uneven'])
def test_four_devices_equal_one_in_outputs_statistics_and_gradients(mask):
  weights, x = variables(), images()
  target = images(7)

  def loss(params, x, mask, target):
    output, state = run({**weights, 'params': params['norm']}, x, mask)
    rows = jnp.square(output - target * params['gain']).sum((1, 2, 3))
    return (rows * mask).sum(), (output, state)

  def step(params, x, mask, target):
    grads, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(
      params, x, mask, target
    )
    return (parallel.psum(grads[0]), grads[1]), aux

  params = {'norm': weights['params'], 'gain': jnp.float32(0.5)}

  def split(a):
    return a.reshape((4, 2, *a.shape[1:]))

  (grads, grads_x), (output, state) = jax.pmap(
    step, axis_name=parallel.AXIS, in_axes=(None, 0, 0, 0)
  )(params, split(x), split(mask), split(target))
  (one, one_x), (one_output, one_state) = jax.jit(step)(params, x, mask, target)

  for replica in range(4):
    close(jax.tree.map(lambda a, r=replica: a[r], state), one_state)
    close(jax.tree.map(lambda a, r=replica: a[r], grads), one, 2e-4)
  real = np.flatnonzero(mask)
  close(output.reshape(SHAPE)[real], one_output[real])
  close(grads_x.reshape(SHAPE), one_x, 2e-4)


def test_a_batch_of_padding_alone_is_finite_and_keeps_the_statistics():
  output, state = run(variables(), jnp.zeros(SHAPE), jnp.zeros(8))
  assert np.isfinite(output).all()
  close(state['batch_stats'], variables()['batch_stats'], 0.0)


def test_a_large_mean_does_not_cost_the_variance_once_it_is_known():
  x = images() + 3000.0
  weights = variables()
  weights['batch_stats']['mean'] = jnp.full(5, 3001.0)
  output, _ = run(weights, x)
  flat = np.asarray(x, np.float64).reshape(-1, 5)
  normal = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  params = jax.device_get(weights['params'])
  expected = normal * params['scale'] + params['bias']
  np.testing.assert_allclose(output.reshape(-1, 5), expected, atol=1e-3)


def test_statistics_stay_float32_when_the_computation_is_bfloat16():
  weights = variables()
  weights['params'] = jax.tree.map(
    lambda a: a.astype(jnp.bfloat16), weights['params']
  )
  output, state = run(weights, images().astype(jnp.bfloat16))
  assert output.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype('float32')}
  expected, _ = run(weights, images())
  close(output.astype(jnp.float32), expected, 0.05)


def test_vmap_over_seeds_equals_one_run_a_seed():
  def stack(*trees):
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)

  both = jax.vmap(run)(
    stack(variables(0), variables(3)), stack(images(1), images(2))
  )
  close(both, stack(run(variables(0), images(1)), run(variables(3), images(2))))


def test_initialisation_leaves_the_running_statistics_at_zero_and_one():
  init = jax.jit(functools.partial(norms.BatchNorm().init, train=True))
  weights = init(jax.random.key(0), images())
  close(weights['batch_stats'], {'mean': jnp.zeros(5), 'var': jnp.ones(5)}, 0.0)


@pytest.mark.parametrize('settings', [{'momentum': 1.1}, {'epsilon': 0.0}])
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(types.InputError, match=next(iter(settings))):
    run(variables(), images(), **settings)


@pytest.mark.parametrize('shape', [(1,), (8, 1), (8, 3, 2)])
def test_a_mask_without_one_value_a_row_is_refused(shape):
  # One value would be a count of 1 beside the sums of all rows.
  with pytest.raises(types.InputError, match=r'one a row, \(8,\); got'):
    run(variables(), images(), jnp.ones(shape))


@pytest.mark.parametrize('prior', [0.0, 3.0, 1e12])
def test_evaluation_with_statistics_of_the_batch(prior):
  weights, x = variables(), images()
  mask = jnp.arange(8) < 5
  layer = norms.BatchNorm()

  @jax.jit
  def evaluate(mask, prior):
    return layer.apply(weights, x, train=False, mask=mask, prior=prior)

  y = evaluate(mask, prior)
  old = jax.tree.map(np.float64, weights['batch_stats'])
  real = np.float64(x[:5]).reshape((-1, 5))
  own = 5 / (5 + prior)
  mean = own * real.mean(0) + (1 - own) * old['mean']
  var = own * real.var(0) + (1 - own) * old['var']
  expected = (np.float64(x) - mean) / np.sqrt(var + 1e-5)
  scale, bias = (np.asarray(weights['params'][k]) for k in ('scale', 'bias'))
  expected = expected * scale + bias
  close(y[:5], expected[:5], 1e-4)
  # Without a real row they are the running ones.
  close(evaluate(jnp.zeros(8), prior), run(weights, x, train=False)[0], 1e-5)


@pytest.mark.parametrize('shape', [(8, 5), (8, 1, 1, 5), (8, 2, 5)])
@pytest.mark.parametrize('prior', [0.0, 3.0])
def test_one_value_is_no_statistics(shape, prior):
  weights = variables()
  draw = jax.jit(lambda key: jax.random.normal(key, shape) * 3 + 1)
  x = np.asarray(draw(jax.random.key(1)))
  apply = jax.jit(
    functools.partial(norms.BatchNorm().apply, weights, train=False),
    static_argnames='prior',
  )

  def evaluate(x, **settings):
    return np.asarray(apply(x, **settings))

  found = evaluate(x, mask=np.arange(8) < 1, prior=prior)[0]
  if prior or shape[1:-1] == (2,):
    expected = evaluate(x[:1], prior=prior)[0]
    assert abs(found - evaluate(x)[0]).max() > 0.1
  else:
    expected = evaluate(x)[0]
  close(found, expected, 1e-5)
  two = evaluate(x, mask=np.arange(8) < 2, prior=0.0)[:2]
  close(two, evaluate(x[:2], prior=0.0), 1e-5)


def test_integers_are_normalised_as_numbers():
  x = np.random.default_rng(0).integers(0, 256, (6, 3), np.uint8)
  norm = norms.BatchNorm()
  variables = jax.jit(functools.partial(norm.init, train=False))(
    jax.random.key(0), x
  )
  apply = jax.jit(
    functools.partial(
      norm.apply, variables, train=True, mutable=['batch_stats']
    )
  )
  found, _ = apply(x)
  expected, _ = apply(x.astype(np.float32))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('garbage', [np.inf, np.nan])
def test_masked_rows_reach_no_gradient(garbage):
  mask = jnp.array([1, 0, 1, 1, 0, 1, 0, 1.0])
  real = mask[:, None, None, None] > 0
  weights = variables()

  def loss(params, x):
    output, _ = run({**weights, 'params': params}, x, mask)
    return jnp.where(real, jnp.square(output) * images(7), 0.0).sum()

  slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
  dirty = slopes(weights['params'], jnp.where(real, images(), garbage))
  clean = slopes(weights['params'], jnp.where(real, images(), 0.0))
  close(dirty, clean)
