"""Hessian eigenvalues of functions whose spectrum is known."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.analysis import curvature
from repjax.models import mlp


def form(matrix, params):
  flat = jnp.concatenate([params['a'].ravel(), params['b']])
  return flat @ matrix @ flat / 2


def quadratic(spectrum):
  """A symmetric matrix, parameters for its `form`, its top eigenvector."""
  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.normal(size=(len(spectrum),) * 2))
  matrix = jnp.asarray(basis * np.asarray(spectrum) @ basis.T, jnp.float32)

  params = {'a': jnp.ones((2, 2)), 'b': jnp.full(len(spectrum) - 4, 0.3)}
  return matrix, params, basis[:, np.argmax(spectrum)]


@functools.partial(jax.jit, static_argnames='num_steps')
def top_of_form(matrix, params, **settings):
  loss = functools.partial(form, matrix)
  return curvature.top_eigenvalue(loss, params, **settings)


@pytest.mark.parametrize(
  'spectrum',
  [
    [5.0, 3.0, 1.0, 0.5, 0.1, 0.0, 0.0],
    [5.0, 3.0, 1.0, -2.0, -4.0, 0.0, 0.0],
    [3.0, 1.0, -8.0, -2.0, 0.5, 0.0, 0.0],  # Largest in magnitude: -8.
    [3.0, 1.0, -3.0, -2.0, 0.5, 0.0, 0.0],  # A tie in magnitude.
    [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0],
  ],
)
def test_the_algebraically_largest_eigenvalue_of_a_quadratic_is_found(spectrum):
  matrix, params, vector = quadratic(spectrum)
  pair = top_of_form(matrix, params, rng=jax.random.key(0), num_steps=200)
  np.testing.assert_allclose(pair.value, max(spectrum), rtol=1e-4)
  assert pair.residual < 1e-2
  found, _ = jax.flatten_util.ravel_pytree(pair.vector)
  np.testing.assert_allclose(abs(found @ vector), 1.0, atol=1e-4)


def test_the_residual_says_when_there_were_too_few_steps():
  spectrum = [5.0, 4.9, 1.0, 0.5, 0.1, 0.0, 0.0]
  matrix, params, _ = quadratic(spectrum)
  pair = top_of_form(matrix, params, rng=jax.random.key(2), num_steps=1)
  assert pair.residual > 0.1
  assert np.abs(np.asarray(spectrum) - pair.value).min() <= pair.residual


def small_network():
  """Mean cross-entropy of a 2-layer network on random data."""
  rng = np.random.default_rng(3)
  image = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)
  label = jnp.asarray(rng.integers(0, 3, 20))
  model = mlp.Mlp(3, features=(4,))
  params = model.init(jax.random.key(1), image, train=False)['params']

  def loss(params):
    logits = model.apply({'params': params}, image, train=False)
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probs, label[:, None], 1).mean()

  return loss, params


@pytest.mark.parametrize('sign', [1, -1])
def test_the_eigenvalue_of_a_network_is_that_of_its_explicit_hessian(sign):
  loss, params = small_network()
  flat, unravel = jax.flatten_util.ravel_pytree(params)

  def signed(params):
    return sign * loss(params)

  hessian = jax.jit(jax.hessian(lambda x: signed(unravel(x))))(flat)
  expected = np.linalg.eigvalsh(hessian)
  # The negated loss has its largest magnitude at a negative eigenvalue.
  assert (abs(expected[0]) > abs(expected[-1])) == (sign < 0)
  pair = jax.jit(
    functools.partial(
      curvature.top_eigenvalue, signed, rng=jax.random.key(0), num_steps=400
    )
  )(params)
  np.testing.assert_allclose(pair.value, expected[-1], rtol=1e-3, atol=1e-5)


def test_a_linear_loss_has_eigenvalue_zero():
  pair = curvature.top_eigenvalue(
    lambda params: params['a'].sum(), {'a': jnp.ones(3)}, rng=jax.random.key(0)
  )
  assert pair.value == 0 and pair.residual == 0


def test_filters_of_a_direction_have_the_norms_of_the_parameters():
  rng = np.random.default_rng(0)
  params = {
    'conv': jnp.asarray(rng.normal(size=(3, 3, 2, 5)), jnp.float32),
    'dense': jnp.asarray(rng.normal(size=(4, 6)), jnp.float32).at[:, 2].set(0),
    'bias': jnp.ones(6),
  }
  direction = curvature.random_direction(params, jax.random.key(0))
  for name in ('conv', 'dense'):
    norms = [
      np.linalg.norm(np.asarray(x).reshape(-1, x.shape[-1]), axis=0)
      for x in (direction[name], params[name])
    ]
    np.testing.assert_allclose(*norms, rtol=1e-5)
  assert not direction['bias'].any()
  other = curvature.random_direction(params, jax.random.key(1))
  assert np.abs(direction['conv'] - other['conv']).max() > 0.1
  plain = curvature.random_direction(params, jax.random.key(0), norm='none')
  assert plain['bias'].any() and plain['dense'][:, 2].any()


def test_the_loss_along_a_direction_is_the_loss_at_each_point():
  matrix, params, _ = quadratic([4.0, 3.0, 2.0, 1.0, -1.0])
  loss = functools.partial(form, matrix)
  direction = curvature.random_direction(params, jax.random.key(0), norm='none')
  alphas = jnp.linspace(-1, 1, 5)
  losses = curvature.loss_along(loss, params, direction, alphas)
  for alpha, value in zip(alphas, losses, strict=True):
    moved = jax.tree.map(lambda p, d, a=alpha: p + a * d, params, direction)
    np.testing.assert_allclose(value, loss(moved), rtol=1e-5)


def test_arguments_out_of_range_are_refused():
  matrix, params, _ = quadratic([1.0] * 5)
  with pytest.raises(types.InputError, match='num_steps=0'):
    top_of_form(matrix, params, rng=jax.random.key(0), num_steps=0)
  with pytest.raises(types.InputError, match='norm='):
    curvature.random_direction(params, jax.random.key(0), norm='layer')


@pytest.mark.parametrize('num_steps', [1, 50, 51])
def test_a_hessian_that_is_minus_a_multiple_of_one_is_found(num_steps):
  pair = curvature.top_eigenvalue(
    lambda p: -jnp.sum(p**2),
    jnp.ones(1),
    rng=jax.random.key(0),
    num_steps=num_steps,
  )
  np.testing.assert_allclose(pair.value, -2.0, rtol=1e-6)
  np.testing.assert_allclose(pair.residual, 0.0, atol=1e-6)
