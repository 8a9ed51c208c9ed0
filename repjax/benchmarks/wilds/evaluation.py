"""Host side: the dictionaries of results that WILDS reports, set by set.

Keys and numbers are those of `dataset.eval` of PyPI's `wilds` 2.0.0:
'acc_avg', 'acc_<field>:<value>' and 'count_<field>:<value>' of each group,
'acc_wg' of the worst. Beside them stands how sure each accuracy is.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import metrics
from repjax.metrics import averages


class Evaluation(NamedTuple):
  """What predictions are worth.

  Attributes:
    results: Key -> number, as PyPI's `wilds` names them.
    intervals: Key of an accuracy -> its 95 % interval over rows (Wilson), where
      it has rows; rows count as independent, which those of a slide or a user
      are not quite.
  """

  results: dict[str, float]
  intervals: dict[str, tuple[float, float]]

  def text(self) -> str:
    """A line a number, groups with their counts; empty groups are left out."""
    lines = []
    for key, value in self.results.items():
      name = key.partition('_')[2]
      count = self.results.get(f'count_{name}')
      if key.startswith('count_') or count == 0:
        continue
      line = f'{key} = {value:.3f}'
      if key in self.intervals:
        low, high = self.intervals[key]
        line += f'  [{low:.3f}, {high:.3f}]'
      if count is not None:
        line += f'  n = {count:.0f}'
      lines.append(line)
    return '\n'.join(lines)


# (predictions, truths, metadata [N, F]) -> Evaluation.
Evaluate = Callable[[np.ndarray, np.ndarray, np.ndarray], Evaluation]


def by_groups(
  grouper: groupers.Grouper, *of: metrics.Metric, overall: bool = True
) -> Evaluate:
  """All rows, each group, and the worst one.

  Args:
    grouper: What makes groups of metadata.
    *of: Metrics.
    overall: Whether there is a number of all rows.
  """

  def evaluate(predicted, true, metadata):
    group = grouper(metadata)
    results, intervals = {}, {}
    for metric in of:
      found, counts = metric.of_groups(
        predicted, true, group, grouper.num_groups
      )
      if overall:
        key, number = metric.overall, metric.of_all(predicted, true)
        results[key] = number
        intervals.update(_interval(metric, key, number, len(true)))
      for i, (number, count) in enumerate(zip(found, counts, strict=True)):
        name = grouper.key(i)
        results[f'{metric.name}_{name}'] = float(number)
        results[f'count_{name}'] = float(count)
        intervals.update(
          _interval(metric, f'{metric.name}_{name}', number, count)
        )
      results[f'{metric.name}_wg'] = metric.worst(found[counts > 0])
    return Evaluation(results, intervals)

  return evaluate


def overall(*of: metrics.Metric) -> Evaluate:
  """The numbers of all rows alone."""

  def evaluate(predicted, true, metadata):
    del metadata  # No groups.
    results = {x.overall: x.of_all(predicted, true) for x in of}
    intervals = {}
    for metric in of:
      number = results[metric.overall]
      intervals.update(_interval(metric, metric.overall, number, len(true)))
    return Evaluation(results, intervals)

  return evaluate


def reweighted(
  evaluate: Evaluate, weights: Mapping[str, float], *, key: str, over: str
) -> Evaluate:
  """With an average of group numbers in the place of that over rows.

  Args:
    evaluate: Gives the groups.
    weights: Key of a group's number -> its weight: rows in training.
    key: Of the new average: 'adj_acc_avg'.
    over: Key of the average that is taken out: 'acc_avg'.
  """

  def adjusted(predicted, true, metadata):
    results, intervals = evaluate(predicted, true, metadata)
    results, intervals = dict(results), dict(intervals)
    total = sum(weights.values())
    results[key] = sum(results[k] * w for k, w in weights.items()) / total
    results.pop(over)
    intervals.pop(over, None)
    return Evaluation(results, intervals)

  return adjusted


def identities(metadata: groupers.Metadata, fields: Sequence[str]) -> Evaluate:
  """CivilComments: accuracy where one identity is mentioned, by label.

  For each of the fields the rows that have it, toxic and not; 'acc_wg' is the
  worst of these. A group without rows is no candidate for it (PyPI's `wilds`
  takes it as an accuracy of 0 here, and here alone; the published splits have
  no such group).
  """
  by_field = {x: groupers.Grouper(metadata, (x, 'y')) for x in fields}

  def evaluate(predicted, true, metadata):
    results, intervals = overall(metrics.ACCURACY)(predicted, true, metadata)
    worst = []
    for field, grouper in by_field.items():
      found, counts = metrics.ACCURACY.of_groups(
        predicted, true, grouper(metadata), grouper.num_groups
      )
      for i in range(grouper.num_groups):
        name = grouper.key(i)
        if f'{field}:1' not in name:
          continue
        key = f'acc_{name}'
        results[key] = float(found[i])
        results[f'count_{name}'] = float(counts[i])
        intervals.update(_interval(metrics.ACCURACY, key, found[i], counts[i]))
        if counts[i]:
          worst.append(found[i])
    results['acc_wg'] = metrics.ACCURACY.worst(np.array(worst))
    return Evaluation(results, intervals)

  return evaluate


def years_and_regions(metadata: groupers.Metadata) -> Evaluate:
  """FMoW: by year, and by region; the worst region leaves 'Other' out."""
  year = by_groups(groupers.Grouper(metadata, ('year',)), metrics.ACCURACY)
  grouper = groupers.Grouper(metadata, ('region',))
  region = by_groups(grouper, metrics.ACCURACY, overall=False)
  keys = [grouper.key(i) for i in range(grouper.num_groups)]
  named = [x for x in keys if 'Other' not in x]

  def evaluate(predicted, true, metadata):
    results, intervals = year(predicted, true, metadata)
    results['acc_worst_year'] = results.pop('acc_wg')
    regions, more = region(predicted, true, metadata)
    regions.pop('acc_wg')
    seen = [regions[f'acc_{x}'] for x in named if regions[f'count_{x}']]
    results |= regions
    results['acc_worst_region'] = metrics.ACCURACY.worst(np.array(seen))
    return Evaluation(results, {**intervals, **more})

  return evaluate


def users(metadata: groupers.Metadata, *, percent: float = 10) -> Evaluate:
  """Amazon: accuracy of each user, and a low percentile over users."""
  grouper = groupers.Grouper(metadata, ('user',))
  by_user = by_groups(grouper, metrics.ACCURACY)

  def evaluate(predicted, true, metadata):
    results, intervals = by_user(predicted, true, metadata)
    counts = grouper.counts(metadata)
    if counts.any():
      seen = [results[f'acc_{grouper.key(i)}'] for i in np.flatnonzero(counts)]
      results[f'{percent:g}th_percentile_acc'] = float(
        np.percentile(seen, percent)
      )
    return Evaluation(results, intervals)

  return evaluate


def check(predicted: np.ndarray, true: np.ndarray, *, what: str) -> np.ndarray:
  """Predictions in the shape of the truths.

  Raises:
    InputError: They are not as many as the truths, or no real numbers, or not
      finite.
  """
  predicted = np.atleast_1d(predicted)
  if not np.can_cast(predicted.dtype, np.float64, 'same_kind'):
    raise types.InputError(
      f'Predictions of {what} must be real numbers; got {predicted.dtype}.'
    )
  if len(predicted) != len(true):
    raise types.InputError(
      f'There are {len(predicted)} predictions of the {len(true)} rows of '
      f'{what}: give one for each row, in the order of the split.'
    )
  if predicted.size != true.size:
    raise types.InputError(
      f'Predictions of {what} are labels, {true.shape}; got shape '
      f'{predicted.shape}: one number a label, the argmax of logits, say.'
    )
  if not np.isfinite(predicted).all():
    row = int(np.argwhere(~np.isfinite(predicted))[0][0])
    raise types.InputError(f'Prediction {row} of {what} is not finite.')
  return predicted.reshape(true.shape)


def _interval(metric, key, number, count):
  if metric is not metrics.ACCURACY or not count:
    return {}
  return {key: averages.wilson(number, count)}
