"""Calibrated means and covariances by brute force, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.methods import distribution_calibration as calibration
from repjax.methods import few_shot

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), [30, 8, 12, 20])
FEATURES = np.maximum(RNG.normal(size=(4, 10))[LABELS] * 2, 0) + RNG.uniform(
  0, 1, (70, 10)
)
ROW = RNG.uniform(0, 1, 10).astype(np.float32)
# The second class has so few rows that no covariances are kept.
KINDS = dict(covariances=LABELS, factors=np.repeat(range(4), [30, 5, 15, 20]))


def _published(labels, row, neighbours, alpha):
  """Equations 1, 2, 5 and 6, with the code's alpha on every entry."""
  means = np.stack([FEATURES[c == labels].mean(0) for c in range(4)])
  covs = np.stack([np.cov(FEATURES[c == labels].T) for c in range(4)])
  near = np.argsort(((means - row) ** 2).sum(1))[:neighbours]
  mean = (means[near].sum(0) + row) / (neighbours + 1)
  return mean, covs[near].mean(0) + alpha


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('neighbours', [1, 2, 3])
def test_mean_and_covariance_are_those_of_the_published_rule(neighbours, kind):
  base = calibration.statistics(FEATURES, KINDS[kind])
  assert (base.covariances is not None) == (kind == 'covariances')
  mean, covariance = calibration.calibrated(
    base, ROW, neighbours=neighbours, alpha=0.21
  )
  wanted = _published(KINDS[kind], ROW, neighbours, 0.21)
  np.testing.assert_allclose(mean, wanted[0], rtol=1e-5)
  np.testing.assert_allclose(covariance, wanted[1], atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('on', ['entries', 'diagonal'])
@pytest.mark.parametrize('shrinkage', [0.0, 0.3])
@pytest.mark.parametrize('num_drawn', [3, 200_000])  # At once.
def test_draws_have_that_mean_and_covariance(num_drawn, on, shrinkage, kind):
  base = calibration.statistics(FEATURES, KINDS[kind], shrinkage=shrinkage)
  settings = dict(neighbours=2, alpha=0.5, on=on)
  mean, covariance = calibration.calibrated(base, ROW, **settings)
  drawn = jax.vmap(
    lambda key: calibration.drawn(
      key, base, ROW, num_drawn=num_drawn, **settings
    )
  )
  keys = jax.random.split(jax.random.key(0), -(-200_000 // num_drawn))
  draws = np.asarray(drawn(keys), np.float64).reshape(-1, 10)
  np.testing.assert_allclose(draws.mean(0), mean, atol=0.02)
  difference = np.linalg.norm(np.cov(draws.T) - covariance)
  assert difference <= 0.02 * np.linalg.norm(covariance)


def test_variances_that_shrinkage_adds_are_averaged():
  base = calibration.Base(
    means=jnp.zeros((2, 3)),
    factors=jnp.zeros((2, 1, 3)),
    covariances=None,
    isotropic=jnp.array([0.0, 2.0]),
    power=1.0,
  )
  draws = calibration.drawn(
    jax.random.key(0), base, jnp.zeros(3), num_drawn=10_000, alpha=0.0
  )
  np.testing.assert_allclose(np.var(draws, 0), 2.0, rtol=0.05)


@pytest.mark.parametrize('num_drawn', [50, 300])
def test_equal_dimensions_and_one_without_spread_are_drawn_as_they_are(
  num_drawn,
):
  # The covariance has rank one, and Cholesky's decomposition nothing to hold.
  common = np.random.default_rng(1).uniform(1, 2, (400, 1))
  features = np.repeat(common, 640, 1) * np.linspace(1, 50, 640)
  features[:, 7] = 3.0
  base = calibration.statistics(features, np.arange(400) % 1)
  assert base.covariances is not None
  draws = np.asarray(
    calibration.drawn(
      jax.random.key(0),
      base,
      base.means[0],
      num_drawn=num_drawn,
      neighbours=1,
      alpha=0.0,
    )
  )
  np.testing.assert_array_equal(draws[:, 7], 3.0)
  others = np.delete((draws - features.mean(0)) / np.linspace(1, 50, 640), 7, 1)
  others /= common.std(ddof=1)
  np.testing.assert_allclose(others - others[:, :1], 0, atol=0.3)
  assert 0.7 < others[:, 0].std() < 1.3


@pytest.mark.parametrize('kind', KINDS)
def test_shrinkage_keeps_the_trace_and_reaches_the_identity(kind):
  plain = calibration.statistics(FEATURES, KINDS[kind])
  full = calibration.statistics(FEATURES, KINDS[kind], shrinkage=1.0)
  half = calibration.statistics(FEATURES, KINDS[kind], shrinkage=0.5)
  traces = [
    np.trace(calibration.calibrated(x, ROW, alpha=0.0)[1])
    for x in (plain, half, full)
  ]
  np.testing.assert_allclose(traces, traces[0], rtol=1e-5)
  covariance = calibration.calibrated(full, ROW, alpha=0.0)[1]
  np.testing.assert_allclose(
    covariance, np.eye(10) * covariance[0, 0], atol=1e-6
  )


def test_transformed_statistics_are_those_of_transformed_features():
  base = calibration.statistics(FEATURES, LABELS, of='transformed', power=0.5)
  wanted = calibration.statistics(FEATURES**0.5, LABELS, power=1.0)
  np.testing.assert_allclose(base.means, wanted.means, rtol=1e-5)
  np.testing.assert_allclose(base.covariances, wanted.covariances, atol=1e-5)


def test_one_power_and_no_draws_far_away_is_logistic_regression():
  # Power 1 is the identity; a base of no spread at the row itself adds copies.
  base = calibration.Base(
    means=jnp.asarray(ROW)[None],
    factors=jnp.zeros((1, 1, 10)),
    covariances=None,
    isotropic=jnp.zeros(1),
    power=1.0,
  )
  draws = calibration.drawn(
    jax.random.key(1), base, ROW, num_drawn=5, neighbours=1, alpha=0.0
  )
  np.testing.assert_allclose(draws, np.tile(ROW, (5, 1)), rtol=1e-6)


def test_rows_and_queries_are_under_the_power():
  base = calibration.statistics(FEATURES, LABELS)
  rng = np.random.default_rng(1)
  support, query = rng.uniform(0, 4, (3, 2, 10)), rng.uniform(0, 4, (7, 10))
  found, expected = (
    jax.jit(calibration.classifier(base, num_drawn=20, power=power))(
      jnp.asarray(x, jnp.float32),
      jnp.asarray(y, jnp.float32),
      jax.random.key(0),
    )
    for x, y, power in ((support, query, 0.5), (support**0.5, query**0.5, 1.0))
  )
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_draws_help_where_base_classes_know_how_rows_differ():
  # All classes vary along one direction, which says nothing about them.
  rng = np.random.default_rng(3)
  means = rng.uniform(3, 5, (40, 8))
  direction = np.full(8, 1.5)
  rows = np.repeat(means, 50, 0)
  rows = rows + rng.normal(size=(2000, 1)) * direction[None]
  labels = np.repeat(np.arange(40), 50)
  rows = np.maximum(rows + 0.3 * rng.normal(size=rows.shape), 0)
  base = calibration.statistics(
    rows[labels < 30], labels[labels < 30], power=1.0
  )
  support = np.stack([rows[labels == c][:1] for c in range(30, 35)])
  query = np.concatenate([rows[labels == c][1:] for c in range(30, 35)])
  truth = np.repeat(np.arange(5), 49)
  classify = calibration.classifier(base, num_drawn=200, power=1.0, alpha=0.0)
  key = jax.random.key(0)
  found, plain = (
    (np.asarray(f(support, query, key)).argmax(1) == truth).mean()
    for f in map(jax.jit, (classify, few_shot.logistic_regression()))
  )
  assert found > plain + 0.1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(features=FEATURES - 5), 'are negative'),
    (dict(labels=np.arange(70)), 'has a single row'),
    (dict(labels=LABELS[:5]), r'features must be \[R, D\]'),
    (dict(features=FEATURES * np.nan), 'not all finite'),
    (dict(shrinkage=1.5), r'shrinkage must be in \[0, 1\]'),
    (dict(of='both'), 'of must be one of'),
    (dict(labels=np.where(LABELS > 0, LABELS, np.nan)), 'must be integers'),
  ],
)
def test_what_is_no_base_is_refused(change, message):
  with pytest.raises(types.InputError, match=message):
    calibration.statistics(**{'features': FEATURES, 'labels': LABELS, **change})


def test_a_base_class_without_any_spread_is_no_obstacle():
  # Covariances of rank 0 and 1: nothing is decomposed or inverted.
  features = np.concatenate([np.full((4, 10), 0.5), np.eye(10)[:2], FEATURES])
  labels = np.concatenate([[4] * 4, [5] * 2, LABELS])
  base = calibration.statistics(features, labels)
  for row in (np.full(10, 0.5), np.eye(10)[0]):
    draws = calibration.drawn(
      jax.random.key(0),
      base,
      jnp.asarray(row, jnp.float32),
      num_drawn=8,
      neighbours=1,
      alpha=0.0,
    )
    assert np.isfinite(np.asarray(draws)).all()
    assert np.linalg.matrix_rank(draws - draws.mean(0)[None], tol=1e-4) <= 1


@pytest.mark.parametrize(
  'setting',
  [
    *(dict(strength=x) for x in (0, -1, np.nan, np.inf)),
    *(dict(num_drawn=x) for x in (7.5, 0, np.nan)),
    dict(neighbours=1.5),
    dict(power=np.nan),
  ],
  ids=str,
)
def test_settings_out_of_range(setting):
  base = calibration.statistics(FEATURES, LABELS)
  with pytest.raises(types.InputError, match=next(iter(setting))):
    calibration.classifier(base, **setting)


def test_a_row_has_the_features_of_the_base():
  base = calibration.statistics(FEATURES[:, :1], LABELS)
  with pytest.raises(types.InputError, match='the 1 features of the base'):
    calibration.calibrated(base, jnp.ones(4))
  support, query = jnp.ones((2, 1, 4)), jnp.ones((2, 4))
  with pytest.raises(types.InputError, match='the 1 features of the base'):
    calibration.classifier(base)(support, query, jax.random.key(0))


def test_more_neighbours_than_base_classes_are_refused():
  base = calibration.statistics(FEATURES, LABELS)
  with pytest.raises(types.InputError, match='neighbours=5 of 4 base classes'):
    calibration.classifier(base, neighbours=5)
  transformed = calibration.statistics(FEATURES, LABELS, of='transformed')
  with pytest.raises(types.InputError, match='under the power 0'):
    calibration.classifier(transformed, power=0.25)


def test_draws_without_spread_are_rows_again():
  rng = np.random.default_rng(2)
  support = jnp.asarray(rng.uniform(0, 4, (3, 1, 10)), jnp.float32)
  query = jnp.asarray(rng.uniform(0, 4, (7, 10)), jnp.float32)
  # Each row's nearest base class is the row itself: five of each in all.
  base = calibration.Base(support[:, 0], jnp.zeros((3, 1, 10)), None, None, 1.0)
  classify = calibration.classifier(
    base, num_drawn=4, power=1.0, neighbours=1, alpha=0.0
  )
  key = jax.random.key(0)
  np.testing.assert_allclose(
    jax.jit(classify)(support, query, key),
    jax.jit(few_shot.logistic_regression(strength=5.0))(support, query, key),
    atol=1e-4,
  )
