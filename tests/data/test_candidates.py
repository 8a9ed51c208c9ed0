"""Candidate sets hold what their rates say, and their label."""

import numpy as np
import pytest

from repjax import types
from repjax.data import candidates
from repjax.data.reading import source as sources

ROWS = 20_000


def _labels(num_classes, rows=ROWS):
  return np.random.default_rng(0).integers(0, num_classes, rows)


def _shares(label, found):
  """How often class j is a candidate of label i, [C, C]."""
  return np.stack([found[label == c].mean(0) for c in range(found.shape[1])])


@pytest.mark.parametrize(
  'table',
  [
    candidates.uniform(5, 0.3),
    candidates.by_distance(5, (0.5, 0.2)),
    candidates.within((0, 0, 1, 1, 1), 0.4),
  ],
)
def test_classes_are_drawn_at_their_rates(table):
  label = _labels(5)
  found = candidates.draw(label, table[label], seed=1)
  # Five standard errors of 4,000 rows a class.
  np.testing.assert_allclose(_shares(label, found), table, atol=0.04)
  assert found[np.arange(ROWS), label].all()
  np.testing.assert_array_equal(
    found, candidates.draw(label, table[label], seed=1)
  )
  assert (found != candidates.draw(label, table[label], seed=2)).any()


def test_tables_are_what_their_names_say():
  np.testing.assert_array_equal(
    candidates.by_distance(3, (0.5,)),
    [[1, 0.5, 0], [0, 1, 0.5], [0.5, 0, 1]],
  )
  np.testing.assert_array_equal(
    candidates.within((7, 2, 7), 0.25), [[1, 0, 0.25], [0, 1, 0], [0.25, 0, 1]]
  )
  np.testing.assert_array_equal(
    candidates.uniform(2, 0.1), [[1, 0.1], [0.1, 1]]
  )


def test_rates_of_instances_are_those_of_the_likeliest_wrong_class():
  label = np.array([0, 2, 1])
  probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5], [0.0, 1.0, 0.0]])
  np.testing.assert_allclose(
    candidates.of_instances(label, probabilities),
    [[1, 1, 0.5], [0.25, 1, 1], [0, 1, 0]],
  )
  # 1 and 1/2 with mean 1/2 over three classes, scaled to a mean of 0.4.
  np.testing.assert_allclose(
    candidates.of_instances(label, probabilities, rate=0.4)[0], [1, 0.8, 0.4]
  )
  assert candidates.of_instances(label, probabilities, rate=1.0).max() == 1


def test_noise_leaves_labels_out_and_no_set_empty():
  label = _labels(10)
  table = candidates.uniform(10, 0.3)
  found = candidates.draw(label, table[label], seed=0, noise=0.2)
  assert found.any(1).all()
  missing = 1 - found[np.arange(ROWS), label].mean()
  # Empty ones are drawn again: 0.2 (1 - e) / (1 - 0.2 e), e = 0.7 ** 9.
  empty = 0.7**9
  np.testing.assert_allclose(
    missing, 0.2 * (1 - empty) / (1 - 0.2 * empty), atol=0.015
  )


def test_a_source_has_its_sets():
  label = _labels(3, 50)
  source = sources.from_arrays('rows', {'label': label}, num_classes=3)
  found = candidates.draw(label, candidates.uniform(3, 0.5)[label], seed=0)
  made = candidates.attached(source, found)
  np.testing.assert_array_equal(made.column('candidates'), found)
  with pytest.raises(types.InputError, match='3 classes'):
    candidates.attached(source, np.ones((50, 4)))


def test_bad_sets_are_refused_with_their_row():
  label = np.array([0, 1, 1])
  good = np.array([[1, 0], [1, 1], [0, 1]])
  candidates.check(good, label)
  with pytest.raises(types.InputError, match='Row 1 has no candidate'):
    candidates.check(good * [[1], [0], [1]])
  wrong = np.array([[1, 0], [1, 0], [0, 1]])
  with pytest.raises(types.InputError, match='row 1 do not have its label 1'):
    candidates.check(wrong, label)
  with pytest.raises(types.InputError, match=r'one a set, \[3\]; got \(1,\)'):
    candidates.check(wrong, label[:1])
  candidates.check(wrong)  # Noisy sets may.
  with pytest.raises(types.InputError, match='0 or 1'):
    candidates.check(good / 2)
  with pytest.raises(types.InputError, match='0 or 1'):
    candidates.check(label)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: candidates.uniform(3, 1.0), 'rate'),
    (lambda: candidates.uniform(1, 0.1), 'num_classes'),
    (lambda: candidates.by_distance(2, (0.1, 0.1)), '1 others'),
    (
      lambda: candidates.draw(np.array([3]), np.ones((1, 3)), seed=0),
      r'\[0, 3\)',
    ),
    (lambda: candidates.draw(np.array([0]), np.ones(3), seed=0), 'Rates'),
    (
      lambda: candidates.draw(np.array([0]), np.full((1, 3), 30.0), seed=0),
      r'in \[0, 1\]',
    ),
    (
      lambda: candidates.draw(np.array([0]), np.full((1, 3), np.nan), seed=0),
      r'in \[0, 1\]',
    ),
    (
      lambda: candidates.draw(np.array([0]), np.ones((1, 3)), seed=0, noise=1),
      'noise',
    ),
    (
      lambda: candidates.of_instances(np.array([0]), np.ones((2, 3))),
      'Probabilities',
    ),
    (
      lambda: candidates.of_instances(np.array([0]), np.full((1, 3), np.nan)),
      'finite',
    ),
  ],
)
def test_bad_input_is_refused(call, words):
  with pytest.raises(types.InputError, match=words):
    call()
