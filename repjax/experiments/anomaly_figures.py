"""Host side: figures of anomaly scores, and of what they are made of."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from repjax import plots
from repjax.data.series import series as seriess
from repjax.metrics import anomaly


def scores_under_series(
  series: seriess.Series,
  scores: Mapping[str, np.ndarray],
  *,
  thresholds: Mapping[str, float],
  rows: tuple[int, int] | None = None,
) -> plots.Figure:
  """A series, and below it scores in units of their thresholds.

  Anomalies are shaded.

  Args:
    series: Of which at most four columns are drawn.
    scores: Name of a detector -> [T].
    thresholds: Name -> the score above which a point is an alarm.
    rows: [start, stop) that are shown; all if None.
  """
  start, stop = rows or (0, len(series))
  places = np.arange(start, stop)
  fig = plots.Figure(figsize=(9, 1.6 + 1.1 * len(scores)))
  top, *others = fig.subplots(
    1 + len(scores),
    1,
    sharex=True,
    height_ratios=[1.5, *([1] * len(scores))],
  )
  values = series.values[start:stop]
  for i, name in enumerate(series.columns[:4]):
    top.plot(places, values[:, i], linewidth=0.6, label=name)
  top.set_ylabel('series', fontsize=8)
  for axes, (name, x) in zip(others, scores.items(), strict=True):
    shares = x[start:stop] / max(thresholds[name], 1e-30)
    axes.plot(places, shares, linewidth=0.6, color='black')
    axes.axhline(1, color='tab:red', linewidth=0.6, linestyle=':')
    axes.set_ylim(0, 4)  # Few points are far higher.
    axes.set_ylabel(name.replace('_', ' ').replace(' ', '\n'), fontsize=8)
  others[-1].set_xlabel('row')
  labels = np.zeros(len(series)) if series.labels is None else series.labels
  for axes in (top, *others):
    axes.tick_params(labelsize=7)
    axes.margins(x=0)
    for first, end in anomaly.segments(labels):
      if first < stop and end > start:
        # One row alone would be thinner than a line.
        axes.axvspan(
          max(first, start) - 0.5,
          min(end, stop) - 0.5,
          color='tab:orange',
          alpha=0.35,
          linewidth=0.8,
        )
  fig.align_ylabels()
  return fig


def association_maps(
  prior: np.ndarray, series: np.ndarray, *, marked: Sequence[int] = ()
) -> plots.Figure:
  """Prior and series association of the layers, averaged over heads.

  Args:
    prior: One window's, [N, H, L, L].
    series: [N, H, L, L].
    marked: Anomalous positions of the window.
  """
  num_layers = len(prior)
  fig = plots.Figure(figsize=(2.3 * num_layers + 0.6, 4.8))
  grid = fig.subplots(2, num_layers, squeeze=False, sharex=True, sharey=True)
  for row, name, maps in zip(
    grid, ('prior', 'series'), (prior, series), strict=True
  ):
    for layer, axes in enumerate(row):
      axes.imshow(maps[layer].mean(0), cmap='viridis', vmin=0)
      for place in marked:
        axes.axhline(place, color='tab:orange', linewidth=0.9)
      axes.set_title(f'{name}, layer {layer + 1}', fontsize=8)
      axes.tick_params(labelsize=7)
  for axes in grid[-1]:
    axes.set_xlabel('looked at', fontsize=8)
  for axes in grid[:, 0]:
    axes.set_ylabel('position', fontsize=8)
  return fig
