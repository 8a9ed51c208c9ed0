"""Errors of a first training count more in a second."""

import numpy as np
import pytest

from repjax import types
from repjax.methods import jtt
from repjax.methods import noisy_student


def test_errors_are_the_wrong_rows():
  logits = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
  errors = jtt.error_set(logits, np.array([0, 0, 0]))
  np.testing.assert_array_equal(errors, [False, True, False])


def test_weights_and_copies_are_the_same_risk():
  errors = np.array([False, True, False, True, False])
  values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
  copied = values[jtt.row_indices(errors, 3)].mean()
  weights = jtt.row_weights(errors, 1 + 3)
  np.testing.assert_allclose((weights * values).mean(), copied, rtol=1e-6)
  np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(jtt.row_indices(errors, 0), np.arange(5))
  with pytest.raises(types.InputError, match='up_weight'):
    jtt.row_indices(errors, 2.5)


@pytest.mark.parametrize(
  ('logits', 'label', 'message'),
  [
    (np.eye(2), [0, 1], 'error set is empty.*fewer steps'),
    (np.eye(2), [1, 0], 'All 2 training rows are errors'),
    (np.full((2, 2), np.nan), [0, 1], 'diverged'),
    (np.eye(2), [0], r'logits \[N, C\]'),
  ],
)
def test_no_second_training_without_a_use(logits, label, message):
  with pytest.raises(types.InputError, match=message):
    jtt.error_set(logits, np.array(label))


def test_a_teacher_labels_rows():
  logits = np.array([[1.0, 3.0], [2.0, -1e3]])
  np.testing.assert_array_equal(noisy_student.labels(logits)['pseudo'], [1, 0])
  soft = noisy_student.labels(logits, soft=True)['pseudo_target']
  np.testing.assert_allclose(soft[:, 1], [1 / (1 + np.exp(-2)), 0], rtol=1e-6)
  with pytest.raises(types.InputError, match='diverged'):
    noisy_student.labels(logits * np.inf)
