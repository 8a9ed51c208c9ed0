"""The optimum is scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn import linear_model

from repjax.methods import logistic_regression


def _data(num_classes, per_class, width=16, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(num_classes), per_class)
  means = rng.normal(size=(num_classes, width))
  features = np.maximum(
    means[labels] + rng.normal(size=(len(labels), width)), 0
  )
  return features.astype(np.float32), labels


def _sklearn(features, labels, strength, weights=None):
  model = linear_model.LogisticRegression(C=strength, tol=1e-12, max_iter=10**5)
  model.fit(features.astype(np.float64), labels, sample_weight=weights)
  scores = model.decision_function(features)
  return np.stack([-scores / 2, scores / 2], 1) if scores.ndim == 1 else scores


def _centred(scores):
  scores = np.asarray(scores)
  return scores - scores.mean(1, keepdims=True)


@pytest.mark.parametrize('num_classes', [2, 5])
@pytest.mark.parametrize('per_class', [1, 20])
@pytest.mark.parametrize('strength', [0.1, 1.0, 10.0])
def test_decision_values_are_those_of_scikit_learn(
  num_classes, per_class, strength
):
  features, labels = _data(num_classes, per_class)

  @jax.jit
  def fitted(features):
    found = logistic_regression.fit(
      features, labels, num_classes=num_classes, strength=strength
    )
    return found, found.logits(features)

  found, logits = fitted(features)
  np.testing.assert_allclose(
    _centred(logits),
    _centred(_sklearn(features, labels, strength)),
    atol=1e-4,
  )
  assert found.steps < 15


def test_rows_count_by_their_weights_and_padding_not_at_all():
  features, labels = _data(3, 10)
  weights = np.random.default_rng(1).uniform(0.2, 2, len(labels))
  padded = np.concatenate([features, np.full((4, 16), 1e3, np.float32)])

  @jax.jit
  def fitted(padded):
    found = logistic_regression.fit(
      padded,
      np.concatenate([labels, [0, 1, 2, 0]]),
      num_classes=3,
      weights=np.concatenate([weights, np.zeros(4)]).astype(np.float32),
    )
    return found.logits(features)

  np.testing.assert_allclose(
    _centred(fitted(padded)),
    _centred(_sklearn(features, labels, 1.0, weights)),
    atol=1e-4,
  )


def test_many_at_once_are_as_one_by_one():
  problems = [_data(3, 4, seed=seed) for seed in range(5)]
  labels = problems[0][1]
  fit = lambda x: logistic_regression.fit(x, labels, num_classes=3)  # noqa: E731
  together = jax.jit(jax.vmap(fit))(np.stack([x for x, _ in problems]))
  alone = jax.jit(fit)
  for place, (features, _) in enumerate(problems):
    np.testing.assert_allclose(
      together.kernel[place], alone(features).kernel, atol=1e-5
    )


def test_rows_that_are_nearly_one_have_an_optimum_too():
  # What rounding leaves of the common bias' gradient is all there is, near the
  # optimum of such rows: 1 % of these problems once ended in 0 / 0.
  rng = np.random.default_rng(0)
  rows = 0.3 * rng.random(64) + 0.05 * rng.normal(size=(500, 5, 64))
  rows = rows.astype(np.float32)
  fit = jax.vmap(
    lambda x: logistic_regression.fit(x, np.arange(5), num_classes=5)
  )
  found = jax.jit(fit)(rows)
  assert np.isfinite(found.kernel).all()
  assert np.max(found.steps) <= 6
  expected = _sklearn(rows[7], np.arange(5), 1.0)
  ours = rows[7] @ found.kernel[7] + found.bias[7][None]
  np.testing.assert_allclose(_centred(ours), _centred(expected), atol=1e-4)


def test_from_the_optimum_no_step_is_taken():
  features, labels = _data(3, 10)
  fit = jax.jit(
    lambda x, **start: logistic_regression.fit(
      x, labels, num_classes=3, tol=1e-4, **start
    )
  )
  first = fit(features)
  again = fit(features, start=first)
  assert again.steps == 0
  np.testing.assert_array_equal(again.kernel, first.kernel)


def test_without_an_intercept_there_is_none():
  features, labels = _data(3, 10)

  @jax.jit
  def fitted(features):
    found = logistic_regression.fit(
      features, labels, num_classes=3, intercept=False
    )
    return found, found.logits(features)

  found, logits = fitted(features)
  assert not np.asarray(found.bias).any()
  model = linear_model.LogisticRegression(fit_intercept=False, tol=1e-10)
  model.fit(features.astype(np.float64), labels)
  np.testing.assert_allclose(
    _centred(logits),
    _centred(model.decision_function(features)),
    atol=1e-3,
  )
