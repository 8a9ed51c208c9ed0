"""EM of the error-aware mixture: scikit-learn's, the authors', and its rise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn import metrics
from sklearn import mixture as sk_mixture

from repjax import float64
from repjax import types
from repjax.analysis import error_mixture


def rows(embeddings, labels, probs, mask=None):
  return error_mixture.Rows(
    jnp.asarray(embeddings),
    jnp.asarray(np.eye(probs.shape[1])[labels]),
    jnp.asarray(probs),
    jnp.asarray(np.ones(len(labels)) if mask is None else mask),
  )


# Numbers are its arguments, so that cases share a program.
fitted = jax.jit(
  error_mixture.fit,
  static_argnames=('update', 'min_variance', 'tol', 'max_iter'),
)


@pytest.fixture
def wide():
  with float64.enabled():
    yield


def drawn(num_rows=300, dim=4, seed=0, hard=False):
  """(embeddings of three blobs, labels, probabilities, responsibilities)."""
  rng = np.random.default_rng(seed)
  blob = rng.integers(0, 3, num_rows)
  embeddings = rng.normal(size=(num_rows, dim)) + 2.0 * blob[:, None]
  labels = rng.integers(0, 3, num_rows)
  probs = rng.dirichlet(np.ones(3), num_rows)
  if hard:
    probs = np.eye(3)[probs.argmax(1)]
  begin = rng.dirichlet(np.ones(6), num_rows)
  return embeddings, labels, probs, begin


def test_without_weights_it_is_scikit_learns(wide):
  z, labels, probs, begin = drawn()
  data = rows(z, labels, probs)
  first = jax.device_get(jax.jit(error_mixture.estimate)(data, begin))
  theirs = sk_mixture.GaussianMixture(
    6,
    covariance_type='diag',
    weights_init=first.weights / first.weights.sum(),
    means_init=first.means,
    precisions_init=1 / first.variances,
    tol=1e-3,
  ).fit(z)
  ours = fitted(data, begin, label_weight=0.0, prediction_weight=0.0)
  assert int(ours.steps) == theirs.n_iter_ > 5
  assert float(ours.bound) == pytest.approx(theirs.lower_bound_, abs=1e-6)
  found = ours.mixture
  np.testing.assert_allclose(found.means, theirs.means_, atol=1e-6)
  np.testing.assert_allclose(found.variances, theirs.covariances_, atol=1e-6)
  log_joint = functools.partial(
    error_mixture.log_joint, label_weight=0.0, prediction_weight=0.0
  )
  logs = jax.jit(log_joint)(found, data)
  np.testing.assert_allclose(
    special.softmax(logs, -1), theirs.predict_proba(z), atol=1e-6
  )


# Of `DominoMixture` of the authors' package 0.1.5, from the same start: gamma,
# gammahat, steps, bound, phat of class 1, p of class 1, mu's first number.
_PUBLISHED = [
  (
    (1.0, 1.0, 17, -5.149905145483706),
    (0.519118461396, 0.563558467531, 0.501117681581, 0.440219906833)
    + (0.492671946902,),
    (3.829533902150e-01, 0.0, 2.124082536090e-06, 7.885183530109e-07)
    + (9.999998935654e-01,),
    (-0.27786636351, 1.897153573401, 3.916261322046, 5.936935357823)
    + (3.972909976654,),
  ),
  (
    (10.0, 10.0, 22, -10.798482631858137),
    (0.51849341724, 0.233678066225, 0.749935305254, 0.186302574885)
    + (0.804776680605,),
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (2.968642656008, 1.823309867949, 5.070125137738, 5.94278647601)
    + (1.310847103645,),
  ),
  (
    (10.0, 3.0, 14, -7.027057682660683),
    (0.51849341724, 0.523047999435, 0.393588251791, 0.464280061533)
    + (0.536146841893,),
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (2.968642656008, 0.940678879031, 4.212545438883, 5.806772544524)
    + (3.490505959077,),
  ),
]


@pytest.mark.parametrize(('numbers', 'phat', 'p', 'mu'), _PUBLISHED)
def test_it_is_the_authors(wide, numbers, phat, p, mu):
  gamma, gamma_hat, steps, bound = numbers
  i, d = np.arange(60), np.arange(3)
  z = np.sin(1.3 * i[:, None] * (1 + d) + 0.7 * d)
  z = z + (i % 4)[:, None] * np.array([2.0, -1.0, 0.5])
  one = 0.5 + 0.45 * np.cos(0.37 * i)
  begin = 1 + np.cos(i[:, None] * (0.9 + np.arange(5)))
  data = rows(z, (i % 3 == 0).astype(int), np.stack([1 - one, one], 1))
  fit = fitted(
    data,
    begin / begin.sum(1, keepdims=True),
    label_weight=gamma,
    prediction_weight=gamma_hat,
  )
  assert int(fit.steps) == steps
  assert bool(fit.converged)
  assert float(fit.bound) == pytest.approx(bound, abs=1e-8)
  close = functools.partial(np.testing.assert_allclose, atol=1e-8)
  close(fit.mixture.prediction_probs[:, 1], phat)
  close(fit.mixture.label_probs[:, 1], p)
  close(fit.mixture.means[:, 0], mu)


def rises(hard, update, weights):
  z, labels, probs, begin = drawn(hard=hard, seed=1)
  fit = fitted(
    rows(z, labels, probs),
    begin,
    label_weight=weights[0],
    prediction_weight=weights[1],
    update=update,
    min_variance=0.0,
    tol=0.0,
    max_iter=60,
  )
  return np.diff(np.asarray(fit.bounds)).min()


@pytest.mark.parametrize('weights', [(0.0, 0.0), (1.0, 1.0), (10.0, 3.0)])
def test_the_bound_never_falls(wide, weights):
  assert rises(True, 'published', weights) > -1e-9
  assert rises(True, 'exact', weights) > -1e-9
  assert rises(False, 'exact', weights) > -1e-9


def test_the_published_update_of_soft_predictions_may_lower_it(wide):
  assert rises(False, 'published', (1.0, 10.0)) < -1e-6


def test_updates_are_equal_for_hard_predictions(wide):
  z, labels, probs, begin = drawn(hard=True)
  data = rows(z, labels, probs)
  one, other = (
    fitted(data, begin, label_weight=1.0, prediction_weight=1.0, update=update)
    for update in ('published', 'exact')
  )
  np.testing.assert_allclose(one.bound, other.bound, atol=1e-9)


@pytest.mark.parametrize('start', ['kmeans', 'confusion', 'random'])
def test_padding_counts_for_nothing(wide, start):
  z, labels, probs, _ = drawn(60)
  starting = jax.jit(error_mixture.STARTS[start], static_argnums=1)
  begin = np.asarray(starting(rows(z, labels, probs), 9, jax.random.key(0)))
  assert begin.shape == (60, 9)
  np.testing.assert_allclose(begin.sum(1), 1)
  fit = functools.partial(fitted, label_weight=1.0, prediction_weight=2.0)
  alone = fit(rows(z, labels, probs), begin)
  padded = fit(
    rows(
      np.concatenate([z, np.full((7, 4), 50.0)]),
      np.concatenate([labels, np.zeros(7, int)]),
      np.concatenate([probs, probs[:7]]),
      np.repeat([1.0, 0.0], [60, 7]),
    ),
    np.concatenate([begin, begin[:7]]),
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-9), padded, alone
  )


@pytest.mark.parametrize('start', error_mixture.STARTS)
def test_rows_of_zeros_are_padding(wide, start):
  data = rows(*drawn(60)[:3])
  padded = error_mixture.Rows(
    *(np.pad(x, ((0, 7), (0, 0))[: x.ndim]) for x in data)
  )
  starting = jax.jit(error_mixture.STARTS[start], static_argnums=1)
  begin = starting(padded, 9, jax.random.key(0))
  fit = functools.partial(fitted, label_weight=1.0, prediction_weight=2.0)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-9),
    fit(padded, begin),
    fit(data, begin[:60]),
  )


def test_kmeans_finds_blobs_and_never_a_padded_row():
  rng = np.random.default_rng(0)
  blob = np.arange(100) % 5
  z = 10.0 * np.eye(5)[blob] + 0.1 * rng.normal(size=(100, 5))
  z[90:] = 1e3
  mask = (np.arange(100) < 90).astype(np.float32)
  data = rows(
    z.astype(np.float32), blob, np.eye(5, dtype=np.float32)[blob], mask
  )
  kmeans = jax.jit(error_mixture.kmeans, static_argnums=1)
  found = np.asarray(kmeans(data, 5, jax.random.key(1)))
  assert metrics.adjusted_rand_score(blob[:90], found[:90].argmax(1)) == 1
  same = kmeans(
    data._replace(embeddings=np.ones((100, 5), np.float32)),
    *(5, jax.random.key(0)),
  )
  assert np.isfinite(same).all()


def test_cells_of_the_confusion_matrix_take_turns():
  labels = np.array([0, 0, 1, 1])
  probs = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
  data = rows(np.zeros((4, 2), np.float32), labels, probs)
  begin = error_mixture.confusion(data, 8, jax.random.key(0), noise=1e-3)
  assert (np.sort(begin.argmax(1) % 4) == np.arange(4)).all()
  cell = np.arange(8)[None] % 4 == np.arange(4)[:, None]
  np.testing.assert_allclose(begin, cell / 2, atol=4e-3)
  assert len(np.unique(begin[0])) == 8
  with pytest.raises(types.InputError, match='num_components must be in'):
    error_mixture.confusion(data, 3, jax.random.key(0))
