"""Host side: how well discovered slices are those that are there.

Precision at k as in Eyuboglu et al., 'Domino: Discovering Systematic Errors
with Cross-Modal Embeddings', ICLR 2022 (https://arxiv.org/abs/2203.14960): of
the k rows that a discovered slice ranks first, the part that is of the true
one; of several discovered slices the best counts. And what the paper lacks: a
test of whether a slice of a real model has more errors than other rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from repjax import types


def precision_at(
  scores: np.ndarray, truth: np.ndarray, *, k: int = 10
) -> np.ndarray:
  """Precision at k of each discovered slice for each true one, [J, S].

  Of equal scores the earlier row goes first.

  Args:
    scores: Larger is more of the slice, [N, J].
    truth: Whether rows are of the true slices, bool [N, S].
    k: At most N. The paper has 10, the authors' code 25.

  Raises:
    InputError: There are fewer rows than k, or their numbers differ.
  """
  scores, truth = _pair(scores, truth)
  types.check_range(f'[1, {len(scores)}]', k=k)
  first = np.argsort(-scores, axis=0, kind='stable')[:k]  # [k, J]
  return truth[first].mean(0)


def best_precision(
  scores: np.ndarray, truth: np.ndarray, *, k: int = 10
) -> np.ndarray:
  """Precision at k of the best slice for each true one, [S]."""
  return precision_at(scores, truth, k=k).max(0)


def precision_interval(
  scores: np.ndarray,
  truth: np.ndarray,
  *,
  k: int = 10,
  draws: int = 200,
  level: float = 0.95,
  seed: int = 0,
) -> np.ndarray:
  """Bootstrap interval of `best_precision` over rows, [2, S].

  Args:
    scores: [N, J].
    truth: bool [N, S].
    k: At most N.
    draws: How often N rows are drawn with replacement.
    level: Part of the draws inside.
    seed: Of the draws.
  """
  types.check_range('[2, inf)', draws=draws)
  types.check_range('(0, 1)', level=level)
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(draws):
    rows = rng.integers(len(scores), size=len(scores))
    found.append(best_precision(scores[rows], truth[rows], k=k))
  outside = (1 - level) / 2
  return np.quantile(np.stack(found), [outside, 1 - outside], axis=0)


class Audit(NamedTuple):
  """Errors of a slice beside those of all other rows.

  Attributes:
    num_rows: Rows of the slice.
    error_rate: Part of these that is wrong; NaN if there are none.
    elsewhere: Part of the others that is wrong; NaN if there are none.
    p_value: Of as many errors in the slice if it were like the rest (Fisher's
      exact test, one side), times the number of slices; at most 1.
  """

  num_rows: int
  error_rate: float
  elsewhere: float
  p_value: float


def audit(psi: np.ndarray, wrong: np.ndarray) -> list[Audit]:
  """Tests whether slices really have more errors, on rows that are new.

  Where psi was made with labels and predictions a slice has errors by
  construction: give that of embeddings alone.

  Args:
    psi: Probabilities of slices, [N, J]. A slice has as many rows as its
      probabilities sum to, those with the largest.
    wrong: Whether rows are misread, bool [N].

  Raises:
    InputError: Their numbers differ, or psi is none of probabilities.
  """
  psi, wrong = _pair(psi, np.asarray(wrong)[:, None])
  if not ((psi >= 0) & (psi <= 1)).all():
    raise types.InputError(
      f'psi is of probabilities, in [0, 1]; got {psi.min()} to {psi.max()}: '
      'take those of `domino.scores`, not `log_odds`.'
    )
  found = []
  for share in psi.T:
    count = round(float(share.sum(dtype=np.float64)))
    inside = np.zeros(len(wrong), bool)
    inside[np.argsort(-share, kind='stable')[:count]] = True
    bad = wrong[:, 0]
    table = [
      [(bad & inside).sum(), (~bad & inside).sum()],
      [(bad & ~inside).sum(), (~bad & ~inside).sum()],
    ]
    p_value = scipy.stats.fisher_exact(table, 'greater').pvalue
    found.append(
      Audit(
        count,
        float(bad[inside].mean()) if count else float('nan'),
        float(bad[~inside].mean()) if count < len(bad) else float('nan'),
        min(1.0, float(p_value) * psi.shape[1]),
      )
    )
  return found


def worse(
  wrong: np.ndarray, slices: np.ndarray, *, level: float = 0.05
) -> np.ndarray:
  """Whether a model is worse on true slices than elsewhere, bool [S].

  A trained model is no test of discovery where it does not fail.

  Args:
    wrong: Whether rows are misread, bool [N].
    slices: bool [N, S].
    level: Of Fisher's exact test, for each slice.
  """
  slices, wrong = _pair(slices, np.asarray(wrong)[:, None])
  audits: Sequence[Audit] = [
    audit(each[:, None].astype(float), wrong[:, 0])[0] for each in slices.T
  ]
  return np.array([x.p_value < level for x in audits])


def _pair(scores, truth):
  scores, truth = np.asarray(scores), np.asarray(truth)
  if scores.ndim != 2 or truth.ndim != 2 or len(scores) != len(truth):
    raise types.InputError(
      'scores [N, J] and truth [N, S] are of the same rows; got '
      f'{scores.shape} and {truth.shape}.'
    )
  if scores.dtype.kind != 'f':  # Unsigned numbers have no opposite.
    scores = scores.astype(np.float64)
  bad = np.flatnonzero(np.isnan(scores).any(1))
  if bad.size:
    raise types.InputError(
      f'scores of row {bad[0]} are NaN ({bad.size} rows): they rank nothing.'
    )
  return scores, truth
