"""Host side: measures of alarms and of anomaly scores along a series.

The field's usual one, F1 after point adjustment, gives a segment in full to
whoever hits one of its points, and so a high mark to random scores where
segments are long (Kim et al., 'Towards a Rigorous Evaluation of Time-Series
Anomaly Detection', AAAI 2022, https://arxiv.org/abs/2109.05257). So `measure`
gives them all.
"""

from typing import Any

import numpy as np

from repjax import types

# The K of `point_adjusted` at which PA%K is printed, in per cent.
PA_K = 20


def segments(labels: Any, series: Any = None) -> np.ndarray:
  """Runs of anomalous points, [S, 2]: the first one, and the one after the end.

  >>> segments([0, 1, 1, 0, 1]).tolist()
  [[1, 3], [4, 5]]

  Args:
    labels: Not 0 where anomalous, [T].
    series: Which series a point is of, [T]; a run ends with its series. One
      series if None.
  """
  labels = np.asarray(labels) != 0
  run = np.where(labels, 1, 0)
  if series is not None:
    _, number = np.unique(np.asarray(series), return_inverse=True)
    run = run * (1 + number)
  edges = np.flatnonzero(np.diff(run, prepend=0, append=0))
  # Where two runs of neighbouring series touch, one edge begins and ends.
  starts = edges[edges < len(run)]
  starts = starts[run[starts] > 0]
  ends = edges[edges > 0]
  ends = ends[run[ends - 1] > 0]
  return np.stack([starts, ends], 1)


def point_adjusted(
  alarms: Any, labels: Any, *, series: Any = None, k: float = 0.0
) -> np.ndarray:
  """Alarms, with those segments filled that were hit often enough.

  Args:
    alarms: bool [T].
    labels: Not 0 where anomalous, [T].
    series: Which series a point is of, [T], or None; runs end with theirs.
    k: A segment is filled if MORE than k % of its points are hit (Kim et al.):
      0 is point adjustment (Xu et al., 'Unsupervised Anomaly Detection via
      Variational Auto-Encoder', WWW 2018, https://arxiv.org/abs/1802.03903),
      100 changes nothing.

  Raises:
    InputError: If k is no percentage, or lengths differ.
  """
  types.check_range('[0, 100]', k=k)
  _check_lengths(alarms=alarms, labels=labels)
  adjusted = np.array(alarms, bool)
  for start, stop in segments(labels, series):
    if adjusted[start:stop].sum() * 100 > k * (stop - start):
      adjusted[start:stop] = True
  return adjusted


def precision_recall_f1(alarms: Any, labels: Any) -> tuple[float, float, float]:
  """Precision, recall and their harmonic mean, point by point; 0 / 0 is 0.

  Args:
    alarms: bool [T].
    labels: Not 0 where anomalous, [T].
  """
  alarms, labels = np.asarray(alarms, bool), np.asarray(labels) != 0
  hits = float((alarms & labels).sum())
  precision = hits / max(alarms.sum(), 1)
  recall = hits / max(labels.sum(), 1)
  return precision, recall, _f1(hits, alarms.sum(), labels.sum())


def event_f1(alarms: Any, labels: Any, *, series: Any = None) -> float:
  """F1 of events, whatever their lengths (Hundman et al., KDD 2018, sec. 4.3).

  A segment that some alarm hits is found; a run of alarms that hits none is a
  false one. https://arxiv.org/abs/1802.04431

  Args:
    alarms: bool [T].
    labels: Not 0 where anomalous, [T].
    series: Which series a point is of, [T], or None; runs end with theirs.
  """
  _check_lengths(alarms=alarms, labels=labels)
  alarms, labels = np.asarray(alarms, bool), np.asarray(labels) != 0
  true, raised = segments(labels, series), segments(alarms, series)
  found = sum(alarms[start:stop].any() for start, stop in true)
  false = sum(not labels[start:stop].any() for start, stop in raised)
  return _f1(float(found), found + false, len(true))


def threshold(scores: Any, rate: float) -> float:
  """The score that a share `rate` of known points exceeds, or fewer on ties.

  Args:
    scores: Of training or validation, never of the series that is judged
      (authors of this field often mix it in), [N].
    rate: In (0, 1).

  Raises:
    InputError: If the rate is no such share, or a score is not finite.
  """
  types.check_range('(0, 1)', rate=rate)
  scores = np.asarray(scores, np.float64)
  _check_finite(scores)
  above = int(rate * len(scores) + 1e-9)
  return float(np.partition(scores, -1 - above)[-1 - above])


def measure(
  scores: Any, labels: Any, *, threshold: float, series: Any = None
) -> dict[str, float]:
  """All measures of one detector.

  Args:
    scores: Higher is more anomalous, [T].
    labels: Not 0 where anomalous, [T]; both kinds must occur.
    threshold: A score above it is an alarm; see `threshold`.
    series: Which series a point is of, [T], or None; runs end with theirs.

  Returns:
    'auroc' and 'auprc' of the scores; of the alarms 'precision', 'recall',
    'f1', 'f1_adjusted' (point adjustment), f'f1_pa{PA_K}' (PA%K), 'f1_pa_mean'
    (mean over K = 0, 1, ... 100), 'f1_events', and 'alarms', their share.

  Raises:
    InputError: If lengths differ, a score is not finite, or labels are all
      normal or all anomalous.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels) != 0
  _check_lengths(scores=scores, labels=labels)
  _check_finite(scores)
  if labels.all() or not labels.any():
    kind = 'anomalous' if labels.all() else 'normal'
    raise types.InputError(
      f'All {len(labels)} labels say {kind}: a detector can only be judged on '
      'a series with both.'
    )
  alarms = scores > threshold
  precision, recall, f1 = precision_recall_f1(alarms, labels)
  by_k = [
    precision_recall_f1(
      point_adjusted(alarms, labels, series=series, k=k), labels
    )[2]
    for k in range(101)
  ]
  return {
    'auroc': auroc(scores, labels),
    'auprc': auprc(scores, labels),
    'precision': precision,
    'recall': recall,
    'f1': f1,
    'f1_adjusted': by_k[0],
    f'f1_pa{PA_K}': by_k[PA_K],
    'f1_pa_mean': float(np.mean(by_k)),
    'f1_events': event_f1(alarms, labels, series=series),
    'alarms': float(alarms.mean()),
  }


def over_windows(values: np.ndarray, starts: Any, length: int) -> np.ndarray:
  """Mean over all windows that hold a point of a series.

  Args:
    values: One a position of a window, [N, L].
    starts: Where windows begin, integers [N].
    length: Points of the series, T.

  Returns:
    [T] float64; NaN for points that are in no window.

  Raises:
    InputError: If a window sticks out.
  """
  starts = np.asarray(starts, np.int64)
  width = values.shape[1]
  if starts.size and not 0 <= starts.min() <= starts.max() <= length - width:
    raise types.InputError(
      f'Windows of {width} points at {starts.min()} to {starts.max()} do not '
      f'lie in a series of {length}.'
    )
  places = (starts[:, None] + np.arange(width)).ravel()
  counts = np.bincount(places, minlength=length)
  sums = np.bincount(
    places, weights=np.asarray(values, np.float64).ravel(), minlength=length
  )
  return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def _f1(hits, raised, true):
  return float(2 * hits / max(raised + true, 1))


def _check_lengths(**arrays):
  shapes = {name: np.shape(x) for name, x in arrays.items()}
  if len(set(shapes.values())) > 1 or any(len(x) != 1 for x in shapes.values()):
    said = ' and '.join(f'{name} {shape}' for name, shape in shapes.items())
    raise types.InputError(
      f'There must be one label a point of the series; got {said}.'
    )


def _check_finite(scores):
  bad = np.flatnonzero(~np.isfinite(scores))
  if bad.size:
    raise types.InputError(
      f'{bad.size} of {scores.size} scores are not finite, the first at '
      f'{bad[0]}: look for gaps and infinities in the series.'
    )


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
  """Area under the ROC curve; ties count half.

  Args:
    scores: Higher means more likely positive, [N].
    positive: Whether the row is positive, [N]; both kinds must occur.
  """
  from sklearn import metrics as sklearn_metrics

  return float(sklearn_metrics.roc_auc_score(positive, scores))


def auprc(scores: np.ndarray, positive: np.ndarray) -> float:
  """Area under the precision-recall curve, as average precision.

  Args:
    scores: Higher means more likely positive, [N].
    positive: Whether the row is positive, [N]; there must be one.
  """
  from sklearn import metrics as sklearn_metrics

  return float(sklearn_metrics.average_precision_score(positive, scores))
