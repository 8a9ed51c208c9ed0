"""Associations against loops over positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import association

prior_association = jax.jit(association.prior_association)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def test_prior_rows_are_rescaled_gaussians():
  sigma = np.random.default_rng(0).uniform(0.3, 2.0, (2, 3, 7))
  prior = np.asarray(prior_association(sigma.astype(np.float32)))
  expected = np.zeros((2, 3, 7, 7))
  for b, h, i, j in np.ndindex(expected.shape):
    width = sigma[b, h, i]
    density = np.exp(-((i - j) ** 2) / (2 * width**2))
    expected[b, h, i, j] = density / (np.sqrt(2 * np.pi) * width)
  expected /= expected.sum(-1, keepdims=True)
  np.testing.assert_allclose(prior, expected, atol=1e-6)
  np.testing.assert_allclose(prior.sum(-1), 1.0, rtol=1e-6)


def test_a_width_towards_zero_is_the_identity_with_finite_gradients():
  # The narrowest that the published scaling allows, and narrower.
  for width in (2.2e-5, 1e-12):
    sigma = np.full((1, 1, 5), width, np.float32)
    prior = np.asarray(prior_association(sigma))
    np.testing.assert_array_equal(prior[0, 0], np.eye(5))
  series = np.full((1, 1, 5, 5), 0.2, np.float32)
  slope = jax.jit(
    jax.grad(
      lambda raw: association.discrepancy(
        association.prior_association(association.widths(raw)), series
      ).sum()
    )
  )(jnp.array([[[-20.0, -3.0, 0.0, 3.0, 20.0]]]))
  assert np.isfinite(slope).all()


def test_published_widths_lie_between_their_bounds():
  raw = jnp.array([-1e3, -1.0, 0.0, 0.1, 1e3])
  found = np.asarray(jax.jit(association.widths)(raw))
  steep = np.clip(5 * np.asarray(raw, np.float64), -500, 500)
  exponent = 1 / (1 + np.exp(-steep)) + 1e-5
  np.testing.assert_allclose(found, 3.0**exponent - 1, rtol=2e-5)
  assert found.min() == pytest.approx(1.0986e-5, rel=1e-3)
  assert found.max() == pytest.approx(2.000033, rel=1e-6)
  wide = association.widths(raw, association.Scaling(1.0, 101.0, 0.0))
  assert 99 < wide.max() <= 100.001


def test_the_discrepancy_is_both_divergences():
  rng = np.random.default_rng(1)
  prior, series = (softmax(3 * rng.normal(size=(2, 3, 4, 4))) for _ in range(2))
  expected = np.zeros((2, 4))
  for b, h, i, j in np.ndindex(prior.shape):
    p, s = prior[b, h, i, j], series[b, h, i, j]
    expected[b, i] += p * (np.log(p + 1e-4) - np.log(s + 1e-4)) / 3
    expected[b, i] += s * (np.log(s + 1e-4) - np.log(p + 1e-4)) / 3
  discrepancy = jax.jit(association.discrepancy)
  found = discrepancy(prior, series)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  same = discrepancy(prior, prior)
  np.testing.assert_array_equal(same, 0.0)


def test_only_the_series_association_mixes_values():
  rng = np.random.default_rng(2)
  tokens = rng.normal(size=(2, 6, 8)).astype(np.float32)
  layer = association.AnomalyAttention(2)
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (layer.init, layer.apply)
  )
  variables = init(jax.random.key(0), tokens)
  output, found = apply(variables, tokens)
  params = jax.tree.map(np.asarray, variables['params'])

  def project(name):
    return (
      np.einsum('bld,dhe->blhe', tokens, params[name]['kernel'])
      + params[name]['bias']
    )

  query, key, value = (project(name) for name in ('query', 'key', 'value'))
  scores = np.einsum('blhe,bshe->bhls', query, key) / np.sqrt(4)
  series = softmax(scores)
  np.testing.assert_allclose(found.series, series, atol=1e-6)
  raw = tokens @ params['sigma']['kernel'] + params['sigma']['bias']
  sigma = 3 ** (1 / (1 + np.exp(-5 * raw)) + 1e-5) - 1
  np.testing.assert_allclose(found.sigma, sigma.swapaxes(1, 2), rtol=1e-4)
  mixed = np.einsum('bhls,bshe->blhe', series, value)
  expected = (
    np.einsum('blhe,hed->bld', mixed, params['out']['kernel'])
    + params['out']['bias']
  )
  np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize('num_heads', [3, 0, -2])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads):
  with pytest.raises(types.InputError, match='multiple of num_heads'):
    association.AnomalyAttention(num_heads).init(
      jax.random.key(0), jnp.zeros((1, 4, 8)), train=False
    )


def test_associations_are_those_before_dropout():
  tokens = np.random.default_rng(1).normal(size=(2, 6, 8)).astype(np.float32)
  layer = association.AnomalyAttention(2, dropout_rate=0.5)
  init, evaluate = (
    jax.jit(functools.partial(f, train=False))
    for f in (layer.init, layer.apply)
  )
  variables = init(jax.random.key(0), tokens)
  _, still = evaluate(variables, tokens)
  rngs = {'dropout': jax.random.key(2)}
  _, found = jax.jit(functools.partial(layer.apply, train=True))(
    variables, tokens, rngs=rngs
  )
  np.testing.assert_allclose(found.series, still.series, atol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('width', [2.0, 2**-14])
def test_priors_of_half_precision_know_all_places(dtype, width):
  found = prior_association(np.full(300, width, dtype))
  expected = prior_association(np.full(300, width, np.float32))
  np.testing.assert_allclose(found, expected, atol=1e-6)
