"""Precision at k, and whether a slice has more errors than the rest."""

import numpy as np
import pytest
import scipy.stats

from repjax import types
from repjax.analysis import slice_scores


def test_precision_is_that_of_the_first_rows():
  rng = np.random.default_rng(0)
  scores, truth = rng.normal(size=(50, 3)), rng.random((50, 2)) < 0.4
  found = slice_scores.precision_at(scores, truth, k=7)
  for j in range(3):
    best = sorted(range(50), key=lambda i, j=j: -scores[i, j])[:7]
    for s in range(2):
      assert found[j, s] == pytest.approx(sum(truth[i, s] for i in best) / 7)
  np.testing.assert_array_equal(
    slice_scores.best_precision(scores, truth, k=7), found.max(0)
  )


def test_of_ties_the_earlier_row_goes_first():
  truth = np.arange(20)[:, None] < 5
  assert slice_scores.precision_at(np.ones((20, 1)), truth, k=5) == 1
  assert slice_scores.precision_at(np.ones((20, 1)), truth[::-1], k=5) == 0


def test_an_interval_holds_the_estimate_and_shrinks_where_all_is_sure():
  rng = np.random.default_rng(1)
  truth = np.arange(200)[:, None] < 60
  sure = truth + 0.1 * rng.normal(size=(200, 1))
  np.testing.assert_array_equal(
    slice_scores.precision_interval(sure, truth), [[1.0], [1.0]]
  )
  vague = truth + 1.0 * rng.normal(size=(200, 1))
  low, high = slice_scores.precision_interval(vague, truth)
  assert low <= slice_scores.best_precision(vague, truth) <= high
  assert high - low > 0.05


def test_an_audit_is_fishers():
  rng = np.random.default_rng(0)
  wrong = rng.random(300) < 0.1
  psi = np.zeros((300, 2))
  psi[:40, 0] = 0.95  # Sums to 38.
  wrong[:38] = rng.random(38) < 0.5
  first, empty = slice_scores.audit(psi, wrong)
  assert first.num_rows == 38
  inside = np.arange(300) < 38
  assert first.error_rate == pytest.approx(wrong[inside].mean())
  assert first.elsewhere == pytest.approx(wrong[~inside].mean())
  table = [
    [(wrong & inside).sum(), (~wrong & inside).sum()],
    [(wrong & ~inside).sum(), (~wrong & ~inside).sum()],
  ]
  p_value = scipy.stats.fisher_exact(table, 'greater').pvalue
  assert first.p_value == pytest.approx(2 * p_value)
  assert empty.num_rows == 0
  assert empty.p_value == 1
  assert np.isnan(empty.error_rate)


@pytest.mark.parametrize('dtype', [np.uint8, bool, int])
def test_assignments_are_scores(dtype):
  wrong = np.array([True, True, False, False, False])
  psi = wrong[:, None].astype(dtype)
  (found,) = slice_scores.audit(psi, wrong)
  assert (found.num_rows, found.error_rate, found.elsewhere) == (2, 1, 0)
  np.testing.assert_array_equal(
    slice_scores.precision_at(psi, wrong[:, None], k=2), [[1]]
  )


def test_without_a_slice_there_is_mostly_none():
  rng = np.random.default_rng(0)
  alarms = [
    min(
      x.p_value
      for x in slice_scores.audit(
        rng.dirichlet(np.ones(5), 200), rng.random(200) < 0.2
      )
    )
    < 0.05
    for _ in range(200)
  ]
  assert np.mean(alarms) <= 0.08


def test_a_model_that_fails_nowhere_is_told():
  slices = np.arange(400)[:, None] < [100, 40]
  wrong = np.arange(400) % 10 == 0
  assert not slice_scores.worse(wrong, slices).any()
  wrong[:30] = True
  assert slice_scores.worse(wrong, slices).all()


def test_what_does_not_fit_is_said():
  truth = np.ones((9, 1), bool)
  with pytest.raises(types.InputError, match=r'k must be in \[1, 9\]'):
    slice_scores.precision_at(np.ones((9, 2)), truth)
  with pytest.raises(types.InputError, match='of the same rows'):
    slice_scores.precision_at(np.ones((8, 2)), truth)
  with pytest.raises(types.InputError, match='of the same rows'):
    slice_scores.precision_at(np.ones(9), truth)
  with pytest.raises(types.InputError, match='level must be in'):
    slice_scores.precision_interval(np.ones((9, 2)), truth, k=2, level=1.0)
  with pytest.raises(types.InputError, match='row 0 are NaN'):
    slice_scores.precision_at(np.full((9, 2), np.nan), truth, k=2)
  for odds in (-1.0, 3.0):
    with pytest.raises(types.InputError, match='not `log_odds`'):
      slice_scores.audit(np.full((9, 2), odds), truth[:, 0])


def test_an_interval_is_of_the_quantiles_of_its_draws():
  rng = np.random.default_rng(3)
  scores, truth = rng.normal(size=(100, 2)), rng.random((100, 1)) < 0.4
  rng = np.random.default_rng(5)
  found = []
  for _ in range(200):
    rows = rng.integers(100, size=100)
    found.append(slice_scores.best_precision(scores[rows], truth[rows], k=20))
  np.testing.assert_allclose(
    slice_scores.precision_interval(scores, truth, k=20, level=0.8, seed=5),
    np.quantile(found, [0.1, 0.9], axis=0),
  )


def test_many_rows_of_half_precision_are_counted():
  psi = np.full((140_000, 1), 0.5, np.float16)
  (found,) = slice_scores.audit(psi, np.arange(140_000) % 7 == 0)
  assert found.num_rows == 70_000
