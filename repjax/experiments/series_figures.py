"""Host side: figures of forecasts and of the graph that they come from."""

import dataclasses
import math

import numpy as np

from repjax import plots
from repjax.data.reading import source as sources
from repjax.layers import pyramid_graph


def forecasts(
  rows: sources.Source,
  outputs: dict[str, np.ndarray],
  columns: dict[str, np.ndarray],
  names: tuple[str, ...],
) -> dict[str, plots.Figure]:
  """Forecasts against what came, and errors by the steps ahead.

  Args:
    rows: The windows.
    outputs: Of `predict`, in the order of the windows.
    columns: With 'index', the windows' numbers.
    names: Of the C numbers.
  """
  error = outputs['forecast'] - outputs['target']
  known = bool((outputs['target_observed'] > 0).any())
  shown = np.unique(np.linspace(0, len(error) - 1, 4).astype(int))
  read = rows.read(columns['index'][shown])
  spread = outputs.get('deviation')
  if spread is not None:
    low, high = -1.2816 * spread, 1.2816 * spread
  elif known:  # Of all windows: what a forecast like this one is worth.
    seen = np.where(outputs['target_observed'] > 0, -error, np.nan)
    # Where none was measured, that of those that were filled.
    none = np.isnan(seen).all(0)
    seen[:, none] = -error[:, none]
    low, high = np.nanquantile(seen, (0.1, 0.9), axis=0)[:, None]
    low, high = (np.broadcast_to(x, error.shape) for x in (low, high))
  else:
    low = high = np.zeros_like(error)
  panels = []
  for place, row in enumerate(shown):
    column = place % len(names)
    unit = read['scale'][place, column], read['centre'][place, column]
    one = {
      name: x[row, :, column] * unit[0] + unit[1]
      for name, x in {
        'forecast': outputs['forecast'],
        'low': outputs['forecast'] + low,
        'high': outputs['forecast'] + high,
        'seasonal': outputs['seasonal forecast'],
        'truth': np.where(
          outputs['target_observed'] > 0, outputs['target'], np.nan
        ),
      }.items()
    }
    past = read['series'][place, :, column] * unit[0] + unit[1]
    panels.append((names[column], past, one))
  made = {'forecasts': fans(panels)}
  if known:
    steps = 1 + np.arange(error.shape[1])
    made['error_by_step'] = plots.lines(
      {
        name.removesuffix(' forecast').replace('forecast', 'network'): (
          steps,
          _mean_square(x - outputs['target'], outputs['target_observed']),
        )
        for name, x in outputs.items()
        if name.endswith('forecast')
      },
      xlabel='rows ahead',
      ylabel='mean squared error (scaled)',
    )
  return made


def _mean_square(errors, observed):
  """Over windows and columns, of what was measured, [H]."""
  count = observed.sum((0, 2))
  total = (np.square(errors) * observed).sum((0, 2))
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def fans(
  panels: list[tuple[str, np.ndarray, dict[str, np.ndarray]]],
) -> plots.Figure:
  """Forecasts with a band of 80 % against what came, one panel each.

  Args:
    panels: (title, past [L], name -> [H]: 'forecast', 'low', 'high',
      'seasonal' and 'truth').
  """
  fig = plots.Figure(figsize=(9, 2.1 * len(panels)))
  for axes, (title, past, one) in zip(
    fig.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
  ):
    ahead = len(past) + np.arange(len(one['forecast']))
    axes.plot(np.arange(len(past)), past, color='black', linewidth=0.9)
    axes.plot(ahead, one['truth'], color='black', linewidth=0.9, label='truth')
    axes.plot(ahead, one['forecast'], color='C0', label='forecast')
    axes.fill_between(
      ahead, one['low'], one['high'], color='C0', alpha=0.2, linewidth=0
    )
    axes.plot(
      ahead, one['seasonal'], color='C1', linewidth=0.8, label='last season'
    )
    axes.axvline(len(past) - 0.5, color='gray', linestyle=':')
    axes.set_ylabel(title, fontsize=8)
    axes.tick_params(labelsize=7)
  fig.axes[0].legend(fontsize=7, ncols=3, loc='upper left')
  fig.axes[-1].set_xlabel('row', fontsize=8)
  return fig


def graph(pyramid: pyramid_graph.Pyramid, *, most: int = 64) -> plots.Figure:
  """Nodes and edges of a pyramid; of a long one as it is for `most` steps.

  Or for as many as all of its levels need.
  """
  most = max(most, math.prod(pyramid.children))
  if pyramid.length > most:
    pyramid = dataclasses.replace(pyramid, length=most)
  fig = plots.Figure(figsize=(9, 2.6))
  axes = fig.subplots()
  # A node stands above the middle of what it is the ancestor of.
  places, at = [np.arange(pyramid.length, dtype=float)], []
  for level in range(len(pyramid.children)):
    parents = pyramid.parents(level)
    counts = np.bincount(parents)
    places.append(np.bincount(parents, places[-1]) / counts)
  for level, x in enumerate(places):
    at += [(place, level) for place in x]
  index, valid, _ = pyramid_graph.neighbours(pyramid)
  for i, k in np.argwhere(valid & (index > np.arange(len(index))[:, None])):
    (x, y), (other_x, other_y) = at[i], at[index[i, k]]
    axes.plot([x, other_x], [y, other_y], color='C0', linewidth=0.6, alpha=0.6)
  x, y = zip(*at, strict=True)
  axes.scatter(x, y, s=9, color='black', zorder=3)
  axes.set_yticks(range(len(places)), [f'{len(x)} nodes' for x in places])
  axes.set(xlabel=f'step of {pyramid.length}')
  return fig
