"""Host side: tables of a benchmark: methods x shifts x seeds.

The raw result of a run is its accuracy by label and value of the nuisance;
means, changes over a baseline and ranks are made of it.
"""

from collections.abc import Mapping
import csv
import io
import re

from matplotlib import figure as mpl_figure
import numpy as np

from repjax import plots
from repjax.metrics import averages

# Method -> shift -> one accuracy a seed, [S].
Accuracies = Mapping[str, Mapping[str, np.ndarray]]

_CELL = re.compile(r'(?P<split>.*)/(?P<label>\d+)-(?P<value>\d+)/cell_accuracy')


def cell_accuracy(
  logits: np.ndarray,
  label: np.ndarray,
  group: np.ndarray,
  *,
  num_labels: int,
  num_values: int,
) -> np.ndarray:
  """Accuracy by label and value, NaN for a pair without rows.

  Args:
    logits: [..., N, C].
    label: [N].
    group: Value of the nuisance, [N].
    num_labels: C.
    num_values: A.

  Returns:
    [..., C, A].
  """
  logits = np.asarray(logits)
  hits = (logits.argmax(-1) == label) & np.isfinite(logits).all(-1)
  cell = np.asarray(label, np.int64) * num_values + group
  number = np.bincount(cell, minlength=num_labels * num_values)
  member = cell[:, None] == np.arange(num_labels * num_values)  # [N, C * A]
  with np.errstate(invalid='ignore', divide='ignore'):
    table = hits.astype(np.float64) @ member.astype(np.float64) / number
  return table.reshape(*hits.shape[:-1], num_labels, num_values)


def as_numbers(table: np.ndarray) -> dict[str, float]:
  """A table [C, A] as measures of a run: 'label-value/cell_accuracy'."""
  return {
    f'{label}-{value}/cell_accuracy': float(x)
    for (label, value), x in np.ndenumerate(table)
  }


def from_numbers(result: Mapping[str, float | None], split: str) -> np.ndarray:
  """The table [C, A] in the results of a run; NaN where there is none."""
  found = {}
  for name, x in result.items():
    match = _CELL.fullmatch(name)
    if match and match['split'] == split:
      cell = int(match['label']), int(match['value'])
      found[cell] = np.nan if x is None else x
  shape = [1 + max((cell[i] for cell in found), default=-1) for i in (0, 1)]
  table = np.full(shape, np.nan)
  for cell, x in found.items():
    table[cell] = x
  return table


def changes(
  accuracy: Accuracies, baseline: str
) -> dict[str, dict[str, np.ndarray]]:
  """Accuracy of each other method minus the baseline's, seed by seed."""
  return {
    method: {
      shift: np.asarray(values) - np.asarray(accuracy[baseline][shift])
      for shift, values in by_shift.items()
    }
    for method, by_shift in accuracy.items()
    if method != baseline
  }


def ranks(accuracy: Accuracies) -> np.ndarray:
  """Ranks of methods on each shift and seed, 1 is best, [methods, K, S].

  Methods that are equally good share the mean of their places.
  """
  from scipy import stats  # Slow to import.

  values = _table(accuracy)
  return stats.rankdata(-values, axis=0)


def wins(accuracy: Accuracies) -> np.ndarray:
  """On which part of the shifts each method is the best, [methods, S].

  Where several are equally good, each wins its part.
  """
  values = _table(accuracy)
  best = values == values.max(0, keepdims=True)
  return (best / best.sum(0, keepdims=True)).mean(1)


def _table(accuracy):
  """[methods, K, S]."""
  return np.stack(
    [np.stack(list(by_shift.values())) for by_shift in accuracy.values()]
  )


def regret(accuracy: Accuracies) -> np.ndarray:
  """What the best method for all shifts loses to the best for each, [S].

  Of a seed, by methods that are the best on average over the other seeds: among
  many that are equally good, the best of the same rows is above by luck. NaN of
  one seed.
  """
  table = _table(accuracy)
  num_shifts, num_seeds = table.shape[1:]
  lost = np.full(num_seeds, np.nan)
  for seed in range(num_seeds) if num_seeds > 1 else ():
    known = np.delete(table, seed, 2).mean(2)
    each = table[known.argmax(0), np.arange(num_shifts), seed]
    lost[seed] = (each - table[known.mean(1).argmax(), :, seed]).mean()
  return lost


def table_of_cells(
  tables: Mapping[tuple[str, str, int], np.ndarray],
) -> str:
  """The raw table as CSV, a line for each label and value of each run.

  Args:
    tables: (method, shift, seed) -> accuracy [C, A].
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['method', 'shift', 'seed', 'label', 'value', 'accuracy'])
  for (method, shift, seed), table in tables.items():
    for (label, value), x in np.ndenumerate(table):
      writer.writerow([method, shift, seed, label, value, f'{x:.6g}'])
  return text.getvalue()


def rank_table(accuracy: Accuracies) -> str:
  """Mean accuracy and, in brackets, mean rank, as a table in Markdown."""
  shifts = list(next(iter(accuracy.values())))
  mean_ranks = ranks(accuracy).mean(-1)  # [methods, K]
  lines = [['method', *shifts, 'mean rank'], ['---'] * (len(shifts) + 2)]
  names = list(accuracy)
  for row in np.argsort(mean_ranks.mean(1), kind='stable'):
    by_shift = accuracy[names[row]]
    lines.append(
      [
        names[row],
        *(
          f'{np.mean(by_shift[shift]):.3f} ({mean_ranks[row, column]:.1f})'
          for column, shift in enumerate(shifts)
        ),
        f'{mean_ranks[row].mean():.2f}',
      ]
    )
  return ''.join(f'| {" | ".join(x)} |\n' for x in lines)


def change_figure(accuracy: Accuracies, baseline: str) -> plots.Figure:
  """Changes over a baseline with their 95 % intervals over seeds."""
  by_method = changes(accuracy, baseline)
  shifts = list(next(iter(by_method.values())))
  columns = min(len(shifts), 4)
  rows = -(-len(shifts) // columns)
  figure = mpl_figure.Figure(
    figsize=(2.0 * columns + 1.6, rows * (0.24 * len(by_method) + 0.8) + 0.3)
  )
  places = np.arange(len(by_method))[::-1]
  grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
  for axes in grid.ravel()[len(shifts) :]:
    axes.axis('off')
  for axes, shift in zip(grid.ravel(), shifts, strict=False):
    found = [averages.interval(x[shift].tolist()) for x in by_method.values()]
    means = np.array([mean for mean, _ in found])
    halves = np.nan_to_num([half for _, half in found])
    axes.axvline(0, color='gray', linewidth=0.8)
    axes.errorbar(
      means, places, xerr=halves, fmt='o', markersize=4, capsize=2, linewidth=1
    )
    base = np.mean(accuracy[baseline][shift])
    axes.set_title(f'{shift}\n{baseline} {base:.3f}', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
  for axes in grid[:, 0]:
    axes.set_yticks(places, list(by_method), fontsize=8)
  figure.supxlabel(f'accuracy minus that of {baseline}', fontsize=9)
  figure.tight_layout()
  return figure


def rank_figure(accuracy: Accuracies) -> plots.Figure:
  """Mean ranks over seeds, methods x shifts, the best method first."""
  names = list(accuracy)
  shifts = list(next(iter(accuracy.values())))
  mean_ranks = ranks(accuracy).mean(-1)
  order = np.argsort(mean_ranks.mean(1), kind='stable')
  figure = mpl_figure.Figure(
    figsize=(0.95 * len(shifts) + 2.2, 0.3 * len(names) + 1.5)
  )
  axes = figure.subplots()
  axes.imshow(mean_ranks[order], cmap='viridis_r', aspect='auto')
  axes.set_yticks(range(len(names)), [names[i] for i in order], fontsize=8)
  axes.set_xticks(
    range(len(shifts)), shifts, fontsize=7, rotation=30, ha='right'
  )
  middle = mean_ranks.max() / 2
  for (i, j), value in np.ndenumerate(mean_ranks[order]):
    axes.text(
      j,
      i,
      f'{value:.1f}',
      ha='center',
      va='center',
      fontsize=7,
      color='black' if value < middle else 'white',
    )
  axes.set_title('mean rank over seeds, 1 is best', fontsize=9)
  figure.tight_layout()
  return figure
