"""Host side: the metrics of WILDS, over all rows and by groups.

As PyPI's `wilds` 2.0.0 computes them (`common/metrics`): a group without rows
reports 0 and is no candidate for the worst one; a worst group is the smallest
value of a score and the largest of a loss, values that are NaN left out. Here
in float64, there in float32.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Pairs = Callable[[np.ndarray, np.ndarray], np.ndarray | float]


class Metric(NamedTuple):
  """A number of predictions and truths.

  Attributes:
    name: As keys of results begin.
    overall: Key of the number of all rows.
    values: (predictions, truths) [N, ...] -> one value a row [N], whose mean is
      the number; or None.
    total: (predictions, truths) -> the number, where it is no mean of rows.
    lower_is_better: Whether it is a loss.
  """

  name: str
  overall: str
  values: Pairs | None = None
  total: Pairs | None = None
  lower_is_better: bool = False

  def of_all(self, predicted: np.ndarray, true: np.ndarray) -> float:
    """The number of all rows; 0 of none."""
    if not len(true):
      return 0.0
    if self.values is not None:
      return float(np.mean(self.values(predicted, true), dtype=np.float64))
    assert self.total is not None  # A metric has one of the two.
    return float(self.total(predicted, true))

  def of_groups(
    self,
    predicted: np.ndarray,
    true: np.ndarray,
    group: np.ndarray,
    num_groups: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The number of each group's rows and their counts, [G] each."""
    counts = np.bincount(group, minlength=num_groups)
    if self.values is not None:
      values = self.values(predicted, true)
      sums = np.bincount(group, weights=values, minlength=num_groups)
      return sums / np.maximum(counts, 1), counts
    found = np.zeros(num_groups)
    for i in np.flatnonzero(counts):
      found[i] = self.of_all(predicted[group == i], true[group == i])
    return found, counts

  def worst(self, numbers: np.ndarray) -> float:
    """The worst of some groups' numbers; 0 of none."""
    numbers = np.asarray(numbers, np.float64)
    if not numbers.size or np.isnan(numbers).all():
      return float('nan') if numbers.size else 0.0
    return float((np.nanmax if self.lower_is_better else np.nanmin)(numbers))


def _same(predicted, true):
  return (predicted == true).astype(np.float64)


def _squared(predicted, true):
  error = np.square(predicted.astype(np.float64) - true)
  return error.reshape(len(error), -1).mean(1)


def _pearson(predicted, true):
  """Correlation; NaN where one of both does not vary."""
  x = np.asarray(predicted, np.float64).ravel()
  y = np.asarray(true, np.float64).ravel()
  x, y = x - x.mean(), y - y.mean()
  scale = np.linalg.norm(x) * np.linalg.norm(y)
  return float(x @ y / scale) if scale else float('nan')


def _per_class(predicted, true):
  """(rows that are right, are, are said to be) of each class that there is."""
  classes = np.unique(true)
  hits = np.array([((predicted == c) & (true == c)).sum() for c in classes])
  real = np.array([(true == c).sum() for c in classes])
  said = np.array([(predicted == c).sum() for c in classes])
  return hits, real, said


def _recall(predicted, true):
  hits, real, _ = _per_class(predicted, true)
  return (hits / real).mean()


def _f1(predicted, true):
  """Macro F1 over the classes of the truth, not those that are only said."""
  hits, real, said = _per_class(predicted, true)
  return (2 * hits / (real + said)).mean()


ACCURACY = Metric('acc', 'acc_avg', values=_same)
SQUARED_ERROR = Metric('mse', 'mse_avg', values=_squared, lower_is_better=True)
PEARSON = Metric('r', 'r_all', total=_pearson)
RECALL = Metric('recall-macro', 'recall-macro_all', total=_recall)
F1 = Metric('F1-macro', 'F1-macro_all', total=_f1)


def of_clusters(
  outputs: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What clusters say of labels that they have never seen.

  Args:
    outputs: 'scores' [N, K].
    columns: 'label' [N].

  Returns:
    'accuracy' of guessing the most frequent label of a row's cluster, of the
    same rows, and 'clusters', how many have rows.
  """
  cluster, label = outputs['scores'].argmax(-1), columns['label']
  table = np.zeros((outputs['scores'].shape[1], label.max() + 1), int)
  np.add.at(table, (cluster, label), 1)
  return {
    'accuracy': float(table.max(1).sum() / len(label)),
    'clusters': float((table.sum(1) > 0).sum()),
  }
