"""Host side: experiments that score the points of series for anomalies."""

from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source
from repjax.data.series import series as seriess
from repjax.experiments import anomaly_data
from repjax.experiments import anomaly_figures
from repjax.experiments import kept_series
from repjax.experiments import wiring
from repjax.metrics import anomaly

# What everybody else is compared with, and the measures that are printed of it.
BASELINES = ('error', 'input_norm', 'random')
_OF_BASELINES = ('auroc', 'f1', 'f1_adjusted')


class Points(NamedTuple):
  """Points of series one behind the other, those that windows have covered.

  Attributes:
    scores: Name of a detector -> [T].
    entity: Which series, [T].
    position: Its row, [T].
    labels: [T], or None.
    measured: Whether any number was, bool [T]: in a gap the error is 0 and says
      nothing.
  """

  scores: dict[str, np.ndarray]
  entity: np.ndarray
  position: np.ndarray
  labels: np.ndarray | None
  measured: np.ndarray

  def judged(self) -> 'Points':
    """Those where a number was measured, unless that is nowhere."""
    kept = self.measured
    if kept.all() or not kept.any():
      return self
    return Points(
      {name: x[kept] for name, x in self.scores.items()},
      self.entity[kept],
      self.position[kept],
      None if self.labels is None else self.labels[kept],
      kept[kept],
    )


def points(
  data: anomaly_data.Data,
  outputs: Mapping[str, np.ndarray],
  columns: Mapping[str, np.ndarray],
  part: str,
  *,
  seed: int = 0,
) -> Points:
  """Scores of points: means over windows, and two that need no network.

  Args:
    data: From `anomaly_data.read`.
    outputs: Name -> [N, L], of windows of `anomaly_data.eval_windows`.
    columns: Their 'entity' and 'position', [N].
    part: 'train', 'validation', 'test' or 'new'.
    seed: Of the random scores.

  Returns:
    Those of the outputs, 'input_norm' and 'random'.
  """
  found: dict[str, list] = {}
  where: list[tuple[np.ndarray, np.ndarray]] = []
  labels, measured = [], []
  for entity, (name, one) in enumerate(data.everything()):
    rows = columns['entity'] == entity
    if name != part or not rows.any():
      continue
    scores = {
      detector: anomaly.over_windows(
        values[rows], columns['position'][rows], len(one)
      )
      for detector, values in outputs.items()
    }
    covered = np.flatnonzero(~np.isnan(next(iter(scores.values()))))
    scores['input_norm'] = np.linalg.norm(one.filled(), axis=1)
    rng = np.random.default_rng([seed, entity])
    scores['random'] = rng.random(len(one))
    for detector, values in scores.items():
      found.setdefault(detector, []).append(values[covered])
    where.append((np.full(len(covered), entity), covered))
    measured.append(one.observed[covered].any(1))
    if one.labels is not None:
      labels.append(one.labels[covered])
  entities, positions = (
    np.concatenate([x[i] for x in where]) if where else np.empty(0, np.int64)
    for i in range(2)
  )
  return Points(
    {name: np.concatenate(x) for name, x in found.items()},
    entities,
    positions,
    np.concatenate(labels) if labels and len(labels) == len(where) else None,
    np.concatenate(measured) if measured else np.empty(0, bool),
  )


def table(
  known: Points, test: Points, *, rate: float
) -> dict[str, dict[str, float]]:
  """Measures of every detector, whose thresholds are those of known points.

  Args:
    known: Points of training or validation.
    test: Points that are judged, with labels.
    rate: Share of the known points that is above a threshold.

  Returns:
    Detector -> `anomaly.measure`.
  """
  known, test = known.judged(), test.judged()
  return {
    name: anomaly.measure(
      scores,
      test.labels,
      threshold=anomaly.threshold(known.scores[name], rate),
      series=test.entity,
    )
    for name, scores in test.scores.items()
  }


def detector(
  config: Any,
  data: anomaly_data.Data,
  train: source.Source,
  method: types.Method,
) -> types.Experiment:
  """An experiment that scores points.

  Measures of a labelled test split are those of 'score', and some of the
  baselines: the error alone, the norm of the scaled inputs, and random numbers.

  Args:
    config: With `window` (arguments of `anomaly_data.eval_windows`), `alarms`
      (rate) and what `wiring` reads.
    data: `anomaly_data.read(config)`.
    train: `anomaly_data.training_windows`.
    method: What is trained; `predict` gives 'score' and 'error' [B, L].
  """
  rate = config.alarms.rate
  types.check_range('(0, 1)', **{'config.alarms.rate': rate})
  seriess.check_names(
    data.everything()[0][1].columns,
    [*_PLACE, 'label', *_SHOWN, *(f'{x}_alarm' for x in _ALARMED)],
  )

  def seen(outputs, columns):
    """(known points, judged points) of what an evaluation saw."""
    names = [name for name, _ in data.everything()]
    parts = {names[i] for i in np.unique(columns['entity'])}
    judged = next(
      x for x in (kept_series.NEW, 'test', 'train', 'validation') if x in parts
    )
    known = 'validation' if 'validation' in parts else judged
    return (
      points(data, outputs, columns, x, seed=config.seed)
      for x in (known, judged)
    )

  def measure(outputs, columns):
    known, judged = (x.judged() for x in seen(outputs, columns))
    threshold = anomaly.threshold(known.scores['score'], rate)
    made = {
      'error': float(judged.scores['error'].mean()),
      'alarms': float((judged.scores['score'] > threshold).mean()),
    }
    if any(x.labels is None for x in data.parts['test']):
      return made
    if judged.labels is None or not 0 < judged.labels.mean() < 1:
      return made | dict.fromkeys(_names(), float('nan'))
    measured = table(known, judged, rate=rate)
    made |= measured['score']
    for name in BASELINES:
      made |= {f'{name}_{x}': measured[name][x] for x in _OF_BASELINES}
    return made

  def figures(rows, outputs, columns):
    del rows  # Series are longer than windows.
    known, judged = seen(outputs, columns)
    entity = judged.entity[0]
    first = judged.entity == entity
    return {
      'scores': anomaly_figures.scores_under_series(
        data.everything()[entity][1],
        {
          name: x[first]
          for name, x in judged.scores.items()
          if name != 'random'
        },
        thresholds={
          name: anomaly.threshold(x, rate)
          for name, x in known.judged().scores.items()
        },
      )
    }

  def tables(split, outputs, columns):
    del split  # It is told by the columns.
    known, judged = seen(outputs, columns)
    known = known.judged()
    thresholds = {
      name: anomaly.threshold(known.scores[name], rate) for name in _ALARMED
    }
    return {'scores': _table(data, judged, thresholds)}

  made = wiring.of_sources(
    config,
    method,
    batches=wiring.shuffled(config, train),
    sources=functools.partial(anomaly_data.eval_windows, data, **config.window),
    steps=wiring.steps_of(config, len(train)),
    measure=measure,
    figures=figures,
  )
  return made._replace(
    companion=kept_series.companion(data.fitted)
    if data.fitted
    else types.Companion(),
    tables=tables,
  )


# Of a table: columns before those of the series, and detectors behind them.
_PLACE = ('series', 'row', 'time')
_ALARMED = ('score', 'error')
_SHOWN = (*_ALARMED, 'input_norm')


def _table(data, points, thresholds):
  """(header, one line a point), values in the units of the source."""
  everything = data.everything()
  shown = [x for x in points.scores if x != 'random']
  names = everything[0][1].columns

  def lines():
    for i, (entity, row) in enumerate(
      zip(points.entity, points.position, strict=True)
    ):
      _, series = everything[entity]
      measured = series.in_units(series.values[row])
      yield [
        series.name,
        data.begin[entity] + row,
        '' if series.times is None else series.times[row],
        *('' if np.isnan(x) else x for x in measured),
        '' if points.labels is None else points.labels[i],
        *(points.scores[name][i] for name in shown),
        *(int(points.scores[k][i] > x) for k, x in thresholds.items()),
      ]

  alarms = [f'{name}_alarm' for name in thresholds]
  return [*_PLACE, *names, 'label', *shown, *alarms], lines()


def _names():
  """Measures that need both normal and anomalous points."""
  own = anomaly.measure([0.0, 1.0], [0, 1], threshold=0.5)
  others = [f'{name}_{x}' for name in BASELINES for x in _OF_BASELINES]
  return [*(x for x in own if x != 'alarms'), *others]
