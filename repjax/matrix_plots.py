"""Figures of matrices with their numbers. Host side, as `plots`."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from repjax import plots


def matrices(
  values: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str
) -> plots.Figure:
  """Matrices of numbers in [0, 1], three a line, with their numbers.

  Args:
    values: Name -> [rows, columns].
    xlabel: What columns are.
    ylabel: What rows are.
  """
  columns = min(len(values), 3)
  rows = -(-len(values) // columns)
  fig = plots.Figure(
    figsize=(2.6 * columns + 0.6, 2.9 * rows), layout='constrained'
  )
  places = fig.subplots(rows, columns, squeeze=False).ravel()
  for axes in places[len(values) :]:
    axes.axis('off')
  for axes, (name, matrix) in zip(places, values.items(), strict=False):
    axes.imshow(matrix, cmap='viridis', vmin=0, vmax=1)
    axes.set(title=name, xlabel=xlabel)
    if axes.get_subplotspec().is_first_col():
      axes.set_ylabel(ylabel)
    for ticks, size in zip(
      (axes.set_yticks, axes.set_xticks), matrix.shape, strict=True
    ):
      if size <= 12:  # Whole numbers.
        ticks(range(size))
    if matrix.size <= 100:
      plots.numbers(
        axes,
        matrix,
        _short,
        is_dark=lambda value: value <= 0.6,
        fontsize=9 if matrix.size <= 36 else 6,
      )
  return fig


def _short(value):
  """A number in [0, 1] in few characters; '' of none."""
  text = f'{value:.2f}'
  if np.isnan(value):
    return ''
  return '1' if text == '1.00' else text[1:]


def heatmaps(
  matrices: Mapping[str, np.ndarray], *, names: Sequence[str]
) -> plots.Figure:
  """Square matrices side by side, each with its own colours and its numbers.

  The colours span what lies off the diagonal, where similarities are 1.

  Args:
    matrices: Title -> [T, T].
    names: Of the T rows and columns.
  """
  fig = plots.Figure(figsize=(4.2 * len(matrices), 4))
  places = fig.subplots(1, len(matrices), squeeze=False)[0]
  for axes, (title, matrix) in zip(places, matrices.items(), strict=True):
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    off = off if off.size else matrix
    axes.imshow(matrix, cmap='viridis', vmin=off.min(), vmax=off.max())
    axes.set(title=title)
    for ticks in (axes.set_xticks, axes.set_yticks):
      ticks(np.arange(len(names)), names)
    middle = (off.min() + off.max()) / 2
    plots.numbers(
      axes,
      matrix,
      '{:.2f}'.format,
      is_dark=lambda value, middle=middle: value <= middle,
      fontsize=7,
    )
  return fig
