"""Measures against loops over rows."""

import numpy as np
import pytest

from repjax import types
from repjax.metrics import anomaly
from repjax.metrics import averages
from repjax.metrics import classification


def predictions(rows=400, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(rows, classes))
  labels = np.where(
    rng.uniform(size=rows) < 0.6,
    logits.argmax(1),
    rng.integers(0, classes, rows),
  )
  return logits, labels


def softmax(logits):
  weights = np.exp(logits)
  return weights / weights.sum(-1, keepdims=True)


def test_means_divide_sums_by_weights():
  means = averages.means({'a': (6.0, 4.0), 'b': (np.float32(3), np.float32(0))})
  assert means['a'] == 1.5
  assert np.isnan(means['b'])


def test_sums_add_up():
  total = averages.add({'a': (1.0, 2.0)}, {'a': (3.0, 5.0)})
  assert total == {'a': (4.0, 7.0)}
  assert averages.means(total)['a'] == 4 / 7


def test_log_softmax_is_normalised_and_does_not_overflow():
  logits, _ = predictions()
  np.testing.assert_allclose(
    classification.log_softmax(logits), np.log(softmax(logits)), atol=1e-12
  )
  huge = classification.log_softmax(np.float32([[1e4, 0.0], [-1e30, 1e30]]))
  np.testing.assert_allclose(np.exp(huge), [[1, 0], [0, 1]])


def test_classification_is_the_mean_over_rows():
  logits, labels = predictions()
  hits = [float(np.argmax(x) == y) for x, y in zip(logits, labels, strict=True)]
  losses = [-np.log(softmax(x)[y]) for x, y in zip(logits, labels, strict=True)]
  measured = classification.measure(logits, labels)
  np.testing.assert_allclose(measured['accuracy'], np.mean(hits))
  np.testing.assert_allclose(measured['loss'], np.mean(losses))
  assert measured['ece'] == classification.calibration_error(
    softmax(logits), labels
  )


@pytest.mark.parametrize('num_bins', [1, 10, 15])
def test_the_calibration_error_is_that_of_guo_et_al(num_bins):
  logits, labels = predictions()
  probabilities = softmax(logits)
  confidence = probabilities.max(1)
  hits = probabilities.argmax(1) == labels
  expected = 0.0
  for index in range(num_bins):
    low, high = index / num_bins, (index + 1) / num_bins
    inside = (confidence > low) & (confidence <= high)
    if inside.any():
      gap = abs(hits[inside].mean() - confidence[inside].mean())
      expected += inside.mean() * gap
  measured = classification.calibration_error(
    probabilities, labels, num_bins=num_bins
  )
  np.testing.assert_allclose(measured, expected)
  assert expected > 0.01


def test_confident_and_right_is_calibrated_confident_and_wrong_is_not():
  certain = np.eye(3)
  assert classification.calibration_error(certain, [0, 1, 2]) == 0
  assert classification.calibration_error(certain, [1, 2, 0]) == 1


def test_bins_of_reliability_are_closed_above_and_empty_ones_are_zero():
  probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [0, 1.0]])
  confidence, accuracy, counts = classification.reliability(
    probabilities, np.array([0, 1, 1, 1]), num_bins=4
  )
  np.testing.assert_array_equal(counts, [0, 1, 2, 1])
  np.testing.assert_array_equal(confidence, [0, 0.5, 0.75, 1])
  np.testing.assert_array_equal(accuracy, [0, 1, 0.5, 1])


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 6, 60) / 5
  positive = rng.uniform(size=60) < 0.3 + 0.5 * scores
  pairs = [
    float(high > low) + 0.5 * (high == low)
    for high in scores[positive]
    for low in scores[~positive]
  ]
  np.testing.assert_allclose(anomaly.auroc(scores, positive), np.mean(pairs))


def test_the_error_of_a_mean_is_the_standard_error():
  values = [1.0, 2.0, 4.0, 5.0]
  mean, error = averages.mean_and_error(values)
  assert mean == 3
  squares = sum((x - 3) ** 2 for x in values)
  np.testing.assert_allclose(error, (squares / 3 / 4) ** 0.5)
  assert averages.mean_and_error([7.0]) == (7.0, 0.0)


def test_a_summary_is_one_line():
  line = averages.summary({'loss': 0.12345, 'accuracy': 1})
  assert line == 'loss 0.1235  accuracy 1.0000'


def test_nan_predicts_no_class():
  logits = np.array([[np.nan, np.nan], [2.0, 0.0], [np.nan, 0.0]])
  found = classification.measure(logits, np.zeros(3, int))
  np.testing.assert_allclose(found['accuracy'], 1 / 3)
  assert np.isnan(found['loss'])


@pytest.mark.parametrize('shape', [(3, 1), (1,), (1, 3)])
def test_labels_of_another_shape_are_refused(shape):
  labels = np.resize([0, 1, 2], shape)
  for measure in (classification.measure, classification.calibration_error):
    with pytest.raises(types.InputError, match='labels are one a row'):
      measure(np.eye(3), labels)


def test_tokens_count_alike_whatever_row_they_are_of():
  found = averages.of_tokens(
    np.array([1.0, 3.0]), np.array([1, 3]), np.array([1, 0])
  )
  assert found == pytest.approx(dict(loss=1, perplexity=np.e, accuracy=0.25))
