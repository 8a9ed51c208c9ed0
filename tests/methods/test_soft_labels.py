"""A teacher's labels are its probabilities; what they tell, by hand."""

import numpy as np
import pytest

from repjax import types
from repjax.methods import soft_labels


def test_labels_are_the_teachers_probabilities():
  logits = np.array([[0.0, np.log(3.0)], [50.0, -50.0]])
  expected = np.array([[0.25, 0.75], [1.0, 0.0]]) + 1e-6
  published = soft_labels.of_teacher(logits, num_classes=2, normalized=False)
  np.testing.assert_allclose(published, expected, rtol=1e-6)
  np.testing.assert_allclose(
    soft_labels.of_teacher(logits, num_classes=2),
    expected / (1 + 2e-6),
    rtol=1e-6,
  )


def test_a_report_tells_labels_that_say_something_from_those_that_do_not():
  certain = soft_labels.report(np.eye(4)[[0, 1, 2, 3]])
  assert certain['classes'] == 4
  np.testing.assert_allclose(certain['information'], np.log(4))
  np.testing.assert_allclose(certain['entropy'], 0, atol=1e-9)
  alike = soft_labels.report(np.tile([0.5, 0.25, 0.25, 0.0], (6, 1)))
  np.testing.assert_allclose(alike['information'], 0, atol=1e-12)
  np.testing.assert_allclose(alike['entropy'], 1.5 * np.log(2))
  assert alike['classes'] == 1


def test_labels_that_cannot_teach_are_refused():
  with pytest.raises(types.InputError, match='no unlabelled row'):
    soft_labels.of_teacher(np.zeros((0, 3)), num_classes=3)
  with pytest.raises(
    types.InputError, match='tells 3 classes apart, and the base set has 5'
  ):
    soft_labels.of_teacher(np.zeros((2, 3)), num_classes=5)
  with pytest.raises(types.InputError, match='diverged'):
    soft_labels.of_teacher(np.full((2, 3), np.nan), num_classes=3)
