"""The expansion of the mixup loss against closed forms and brute force."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.analysis import mixup_terms as terms_lib


@pytest.fixture(autouse=True)
def double_precision():
  before = jax.config.jax_enable_x64
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', before)


def data(seed=0, rows=9, dims=4):
  rng = np.random.default_rng(seed)
  return rng.normal(0.3, 1.0, (rows, dims)), rng.integers(0, 2, rows)


def network(x):
  """A smooth score with curvature everywhere."""
  matrix = np.random.default_rng(5).normal(size=(3, x.shape[-1]))
  return jnp.array([1.0, -2.0, 0.5]) @ jnp.tanh(matrix @ x) + 0.2


def linear(x):
  return x @ jnp.array([0.7, -1.1, 0.4, 0.9]) - 0.3


def squared_mixup_by_moments(scores, labels, alpha):
  """E[s^2 / 2 - y s] over pairs and lambda, from moments of Beta."""
  both = alpha / (2 * (2 * alpha + 1))  # E[lambda (1 - lambda)]
  one = 0.5 - both  # E[lambda^2]
  s, r = scores[:, None], scores[None, :]
  y, t = labels[:, None], labels[None, :]
  square = one * (s * s + r * r) + 2 * both * s * r
  product = one * (y * s + t * r) + both * (y * r + t * s)
  return (square / 2 - product).mean()


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_the_expansion_is_exact_for_a_linear_score_and_the_squared_loss(alpha):
  inputs, labels = map(jnp.asarray, data())
  arguments = dict(alpha=alpha, link=terms_lib.squared)
  expected = squared_mixup_by_moments(
    np.asarray(jax.vmap(linear)(inputs)), np.asarray(labels), alpha
  )
  terms, loss = (
    jax.jit(functools.partial(fn, linear, **arguments))(inputs, labels)
    for fn in (terms_lib.mixup_terms, terms_lib.mixup_loss)
  )
  np.testing.assert_allclose(sum(terms), expected, rtol=0, atol=1e-10)
  np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-10)
  assert terms.curvature == 0
  assert abs(terms.first) > 1e-3 and terms.second > 1e-3


def test_the_terms_are_those_of_lemma_3_1_by_explicit_hessians():
  inputs, labels = data()
  alpha = 0.7
  terms = functools.partial(terms_lib.mixup_terms, network, alpha=alpha)
  actual = jax.jit(terms)(inputs, labels)
  value_and_grad = jax.jit(jax.value_and_grad(network))
  hessian_of = jax.jit(jax.hessian(network))
  first = alpha / (2 * alpha + 1)
  second = alpha / (2 * (2 * alpha + 1))
  expected = np.zeros(4)
  for x, label in zip(inputs, labels, strict=True):
    score, gradient = map(np.asarray, value_and_grad(x))
    hessian = np.asarray(hessian_of(x))
    chance = 1 / (1 + np.exp(-score))
    offsets = inputs - x
    spread = offsets.T @ offsets / len(inputs)
    expected += [
      np.log1p(np.exp(score)) - label * score,
      first * (chance - label) * gradient @ offsets.mean(0),
      second / 2 * chance * (1 - chance) * gradient @ spread @ gradient,
      second / 2 * (chance - label) * np.trace(hessian @ spread),
    ]
  np.testing.assert_allclose(actual, expected / len(inputs), rtol=1e-10)


def test_the_mixup_loss_agrees_with_sampling():
  inputs, labels = data()
  loss_fn = functools.partial(terms_lib.mixup_loss, network, alpha=0.4)
  loss = jax.jit(loss_fn)(inputs, labels)
  rng = np.random.default_rng(1)
  draws = 200_000
  weight = rng.beta(0.4, 0.4, draws)
  one, two = rng.integers(0, len(inputs), (2, draws))
  mixed = weight[:, None] * inputs[one] + (1 - weight[:, None]) * inputs[two]
  label = weight * labels[one] + (1 - weight) * labels[two]
  scores = np.asarray(jax.jit(jax.vmap(network))(mixed))
  losses = np.logaddexp(0, scores) - label * scores
  error = 5 * losses.std() / draws**0.5
  np.testing.assert_allclose(loss, losses.mean(), rtol=0, atol=error)


@pytest.mark.parametrize('alpha', [0.05, 1.0])
def test_the_error_of_the_logistic_expansion_is_of_third_order(alpha):
  inputs = data(rows=40)[0]
  direction = np.array([0.7, -1.1, 0.4, 0.9]) / 1.634  # Of length 1.
  labels = inputs @ direction > 0
  errors = []
  for length in (1.0, 0.5, 0.25):

    def score(x, length=length):
      return length * x @ direction

    loss, terms = (
      jax.jit(functools.partial(fn, score, alpha=alpha))(inputs, labels)
      for fn in (terms_lib.mixup_loss, terms_lib.mixup_terms)
    )
    added = loss - terms.standard
    errors.append(abs(sum(terms[1:]) - added))
    assert errors[-1] < 0.25 * abs(added)
  assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8


def test_images_may_have_any_shape():
  inputs, labels = data()

  def folded(x):
    return network(x.reshape(-1))

  def compiled(fn, score):
    return jax.jit(functools.partial(fn, score, alpha=0.5))

  images = inputs.reshape(-1, 2, 2)
  terms, radii = terms_lib.mixup_terms, terms_lib.robust_radii
  np.testing.assert_allclose(
    compiled(terms, folded)(images, labels),
    compiled(terms, network)(inputs, labels),
  )
  np.testing.assert_allclose(
    compiled(radii, folded)(images), compiled(radii, network)(inputs)
  )


def test_the_adversarial_expansion_is_the_worst_case_of_a_linear_score():
  # For a linear f and h = u^2 / 2 the expansion is exact, and the worst point
  # lies along the gradient.
  inputs, labels = map(jnp.asarray, data())
  radii = np.linspace(0.0, 1.0, len(inputs))
  loss_fn = functools.partial(
    terms_lib.adversarial_loss, linear, link=terms_lib.squared
  )
  loss = jax.jit(loss_fn)(inputs, labels, radii=radii)
  norm = np.linalg.norm([0.7, -1.1, 0.4, 0.9])
  scores = np.asarray(jax.jit(jax.vmap(linear))(inputs))
  reach = np.array([-1, 1])[:, None] * np.asarray(radii) * norm + scores
  worst = (reach**2 / 2 - np.asarray(labels) * reach).max(0)
  # Moving f by r |grad f| costs |h' - y| r |grad f| + h'' (r |grad f|)^2 / 2.
  np.testing.assert_allclose(loss, worst.mean(), rtol=1e-10)


@functools.cache
def sides(kind):
  """Both sides of theorem 3.1, compiled once for all examples."""

  def evaluate(inputs, params, alpha):
    def score(x):
      hidden = params['hidden'] @ x
      if kind == 'relu':
        return params['out'] @ jnp.maximum(hidden, 0)
      return params['out'] @ hidden

    labels = (jax.vmap(score)(inputs) > 0).astype(inputs.dtype)
    radii = terms_lib.robust_radii(score, inputs, alpha=alpha)
    adversarial = functools.partial(
      terms_lib.adversarial_loss, score, inputs, labels
    )
    return (
      sum(terms_lib.mixup_terms(score, inputs, labels, alpha=alpha)),
      adversarial(radii=radii),
      adversarial(radii=jnp.full_like(radii, radii.min())),
    )

  return jax.jit(evaluate, static_argnames='alpha')


@pytest.mark.parametrize('kind', ['linear', 'relu'])
@settings(max_examples=60, deadline=None, database=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  alpha=st.sampled_from([0.2, 1.0]),
  scale=st.floats(0.01, 10.0),
)
def test_mixup_bounds_the_adversarial_loss_at_the_radii_of_the_theorem(
  kind, seed, alpha, scale
):
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(10, 4)) * rng.uniform(0.2, 3.0, 4)
  inputs -= inputs.mean(0)
  params = {
    'hidden': rng.normal(size=(3, 4)),
    'out': scale * rng.normal(size=3),
  }
  mixup, adversarial, least = sides(kind)(inputs, params, alpha=alpha)
  assert mixup >= adversarial - 1e-12
  assert adversarial >= least - 1e-12


def test_arguments_out_of_range_are_refused():
  inputs, labels = map(jnp.asarray, data())
  with pytest.raises(types.InputError, match='alpha=0'):
    terms_lib.mixup_terms(network, inputs, labels, alpha=0)
  with pytest.raises(types.InputError, match='one label'):
    terms_lib.mixup_loss(network, inputs, labels[:3], alpha=1.0)
