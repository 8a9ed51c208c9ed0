"""Spectral norms against singular values of NumPy."""

import functools

import jax
import numpy as np
import pytest

from repjax import types
from repjax.layers import equalised
from repjax.layers import spectral_norm

DIM, WIDTH = 12, 7
X = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)


def layer(kind='improved'):
  return spectral_norm.SpectralDense(WIDTH, kind=kind)


@functools.cache
def fresh(kind='improved'):
  init = jax.jit(functools.partial(layer(kind).init, train=False))
  return init(jax.random.key(0), X)


def effective(variables, kind='improved', *, train=False):
  """The kernel that is applied, found by what it does to unit vectors."""
  params = {**variables['params'], 'bias': np.zeros(WIDTH)}
  made, _ = jax.jit(
    functools.partial(layer(kind).apply, train=train, mutable='spectral')
  )({**variables, 'params': params}, np.eye(DIM, dtype=np.float32))
  return np.asarray(made)


def norm(matrix):
  return np.linalg.svd(np.asarray(matrix), compute_uv=False)[0]


def moved(variables, kernel):
  params = {**variables['params'], 'kernel': kernel.astype(np.float32)}
  return {**variables, 'params': params}


def steps(variables, count, kind='improved'):
  step = jax.jit(
    lambda v: layer(kind).apply(v, X, train=True, mutable='spectral')[1]
  )
  for _ in range(count):
    variables = {**variables, **step(variables)}
  return variables


@pytest.mark.parametrize('shape', [(12, 7), (7, 12), (5, 5), (9, 1)])
def test_the_first_singular_vector_is_found(shape):
  kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  _, values, right = np.linalg.svd(kernel)
  found = np.asarray(jax.jit(spectral_norm.right_vector)(kernel))
  np.testing.assert_allclose(abs(found @ right[0]), 1, atol=1e-4)
  np.testing.assert_allclose(
    jax.jit(spectral_norm.norm)(kernel), values[0], rtol=1e-5
  )


@pytest.mark.parametrize('kind', ['improved', 'none'])
def test_it_begins_as_a_dense_layer(kind):
  kernel = np.asarray(fresh(kind)['params']['kernel']) / np.sqrt(DIM)
  apply = jax.jit(functools.partial(layer(kind).apply, train=False))
  made = apply(fresh(kind), X)
  np.testing.assert_allclose(made, X @ kernel, atol=1e-5)


@pytest.mark.parametrize(
  'made', [spectral_norm.SpectralDense(4), equalised.EqualisedDense(4)]
)
def test_integers_are_numbers(made):
  x = np.arange(24, dtype=np.uint8).reshape(2, 12)
  train = (
    {} if isinstance(made, equalised.EqualisedDense) else dict(train=False)
  )
  found, variables = made.init_with_output(jax.random.key(0), x, **train)
  expected = made.apply(variables, x.astype(np.float32), **train)
  assert np.abs(found).max() > 1
  np.testing.assert_array_equal(found, expected)


def test_after_twenty_passes_the_norm_is_that_of_the_beginning():
  # The specification's check: W becomes 3 W + noise.
  old = np.asarray(fresh()['params']['kernel'])
  noise = np.random.default_rng(2).normal(size=old.shape)
  changed = moved(fresh(), 3 * old + noise)
  before = norm(old / np.sqrt(DIM))
  ratio = norm(effective(steps(changed, 20))) / before
  assert abs(ratio - 1) < 0.02
  # The plain one has norm 1, and without one it is what it is.
  plain = norm(
    effective(steps(moved(fresh('plain'), 3 * old), 20, 'plain'), 'plain')
  )
  np.testing.assert_allclose(plain, 1, atol=0.02)
  free = norm(effective(moved(fresh('none'), 3 * old), 'none'))
  np.testing.assert_allclose(free, 3 * before, rtol=1e-5)


def test_the_published_iteration_never_converges():
  old = np.asarray(fresh('published')['params']['kernel'])
  start = fresh('published')
  after = steps(start, 20, 'published')
  np.testing.assert_array_equal(
    after['spectral']['vector'], start['spectral']['vector']
  )
  ratio = norm(effective(after, 'published')) / norm(old / np.sqrt(DIM))
  assert ratio > 1.02


def test_only_training_passes_move_the_estimate():
  changed = moved(fresh(), np.random.default_rng(3).normal(size=(DIM, WIDTH)))
  (_, still), (_, after) = (
    jax.jit(functools.partial(layer().apply, train=train, mutable='spectral'))(
      changed, X
    )
    for train in (False, True)
  )
  vectors = [
    np.asarray(x['spectral']['vector']) for x in (changed, still, after)
  ]
  np.testing.assert_array_equal(vectors[0], vectors[1])
  assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
  # What is stored is a unit vector; the norm at the beginning stays.
  np.testing.assert_allclose(np.linalg.norm(vectors[2]), 1, rtol=1e-5)
  np.testing.assert_array_equal(
    after['spectral']['initial'], changed['spectral']['initial']
  )


def test_the_gradient_goes_through_the_norm():
  # d/dt of W -> (1 + t) W leaves the effective kernel as it is.
  variables = steps(fresh(), 20)

  def output(t):
    changed = moved(variables, variables['params']['kernel'] * (1 + t))
    return layer().apply(changed, X, train=False).sum()

  np.testing.assert_allclose(jax.jit(jax.grad(output))(0.0), 0, atol=1e-4)


def test_bad_settings_are_refused():
  with pytest.raises(types.InputError, match='kind must be one of'):
    layer('spectral').init(jax.random.key(0), X, train=False)
