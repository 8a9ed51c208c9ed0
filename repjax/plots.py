"""Figures of runs and predictions. Host side, matplotlib without pyplot.

Figures are made as objects, so nothing depends on a backend or a display.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from repjax.metrics import classification

Figure = mpl_figure.Figure


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
  """Loss, accuracy, ... against the step, one figure a quantity.

  Args:
    history: Rows of metrics.jsonl. 'loss' and 'test/loss' share a figure.

  Returns:
    Quantity -> figure.
  """
  series: dict[str, dict[str, list[tuple[float, float]]]] = {}
  for row in history:
    for name, value in row.items():
      if value is None or name in ('step', 'examples_per_second'):
        continue  # None was not finite.
      split, _, quantity = name.rpartition('/')
      lines = series.setdefault(quantity, {})
      lines.setdefault(split or 'train', []).append((row['step'], value))
  figures = {}
  for quantity, lines in series.items():
    fig, axes = _drawn(5, 3.2)
    for split, points in sorted(lines.items()):
      steps, values = zip(*points, strict=True)
      axes.plot(
        steps, values, marker='.' if len(steps) < 40 else '', label=split
      )
    texts = dict(xlabel='step', ylabel=quantity, title=quantity)
    _finish(axes, fontsize=10, **texts)
    figures[quantity] = fig
  return figures


def telling(
  logits: np.ndarray, labels: np.ndarray, *, count: int = 32
) -> np.ndarray:
  """Rows worth looking at, [count]: the surest mistakes, then the least sure.

  Args:
    logits: [N, num_classes].
    labels: [N].
    count: How many; fewer where there are not as many rows.
  """
  log_probs = classification.log_softmax(logits)
  sure = log_probs.max(-1)  # NaN, which is wrong, wherever a logit is.
  wrong = (log_probs.argmax(-1) != labels) | np.isnan(sure)
  return np.lexsort((np.where(wrong, -sure, sure), ~wrong))[:count]


def predictions(
  images: np.ndarray,
  logits: np.ndarray,
  labels: np.ndarray,
  *,
  wrong_rate: float,
  columns: int = 8,
) -> Figure:
  """Images with their predictions; mistakes in red with their label.

  Args:
    images: [N, H, W, C] uint8, or floating point of any range.
    logits: [N, num_classes].
    labels: [N].
    wrong_rate: Share of mistakes in the whole set, for the title.
    columns: Images in a row.
  """
  probabilities = np.exp(classification.log_softmax(logits))
  guess, sure = probabilities.argmax(-1), probabilities.max(-1)
  # One picture of all, since axes of their own are slow to draw.
  height, width, channels = images.shape[1:]
  tile = (round(height * 1.4), round(width * 1.15))  # With room for a title.
  rows = -(-len(images) // columns)
  page = np.ones((rows * tile[0], columns * tile[1], channels))
  fig, axes = _drawn(columns * 1.1, rows * 1.35)
  axes.axis('off')
  for i, image in enumerate(images):
    if image.dtype == np.uint8:
      image = image / 255
    else:
      low, high = image.min(), image.max()
      image = (image - low) / max(high - low, 1e-9)
    row, column = divmod(i, columns)
    top, left = row * tile[0] + tile[0] - height, column * tile[1]
    page[top : top + height, left : left + width] = image
    wrong = guess[i] != labels[i] or np.isnan(sure[i])
    axes.text(
      left + width / 2,
      top - 0.6,
      f'{guess[i]} ({sure[i]:.0%})' + (f'\nis {labels[i]}' if wrong else ''),
      color='crimson' if wrong else 'black',
      fontsize=7,
      ha='center',
      va='bottom',
    )
  page = page[..., 0] if channels == 1 else page
  axes.imshow(page, cmap='gray', vmin=0, vmax=1)  # Which colours do without.
  axes.set_title(f'{wrong_rate:.2%} of the set are wrong', fontsize=9, pad=14)
  return fig


def confusion(
  logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None
) -> Figure:
  """Counts of (label, prediction) pairs."""
  num_classes = logits.shape[-1]
  counts = np.zeros((num_classes, num_classes), int)
  np.add.at(counts, (labels, logits.argmax(-1)), 1)
  fig, axes = _drawn(4.5, 4)
  axes.imshow(np.log1p(counts), cmap='Blues')
  if num_classes <= 20:
    ticks = names or [str(i) for i in range(num_classes)]
    axes.set_xticks(range(num_classes), ticks, rotation=90, fontsize=7)
    axes.set_yticks(range(num_classes), ticks, fontsize=7)
    numbers(
      axes,
      counts,
      lambda count: str(count) if count else '',
      is_dark=lambda count: count > counts.max() / 8,
    )
  axes.set(xlabel='predicted', ylabel='label', title='Confusion')
  return fig


def reliability(logits: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
  """Accuracy against confidence, one line a model, with its ECE.

  Args:
    logits: Name of a model -> [N, num_classes].
    labels: [N].
  """
  fig, axes = _drawn(4.2, 3.8)
  axes.plot([0, 1], [0, 1], color='gray', linestyle=':')
  for name, values in logits.items():
    probs = np.exp(classification.log_softmax(values))
    confidence, accuracy, counts = classification.reliability(probs, labels)
    filled = counts > 0
    ece = classification.calibration_error(probs, labels)
    axes.plot(
      confidence[filled],
      accuracy[filled],
      marker='o',
      label=f'{name} (ECE {ece:.3f})',
    )
  texts = dict(xlabel='confidence', ylabel='accuracy', title='Reliability')
  _finish(axes, fontsize=10, **texts)
  return fig


def of_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, Figure]:
  """`confusion` and `reliability` of one classifier's rows with numbers."""
  known = ~np.isnan(classification.log_softmax(logits)).any(-1)
  logits, labels = logits[known], labels[known]
  return {
    'confusion': confusion(logits, labels),
    'reliability': reliability({'model': logits}, labels),
  }


def numbers(axes, matrix, text, *, is_dark, fontsize=6):
  """Writes the numbers of a matrix into its picture.

  Args:
    axes: Of matplotlib.
    matrix: [rows, columns].
    text: Value -> what is written.
    is_dark: Value -> whether its place is dark, where letters are white.
    fontsize: Of the letters.
  """
  for (i, j), value in np.ndenumerate(matrix):
    axes.text(
      j,
      i,
      text(value),
      ha='center',
      va='center',
      fontsize=fontsize,
      color='white' if is_dark(value) else 'black',
    )


def lines(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  xlabel: str,
  ylabel: str,
  log: bool | Literal['x', 'y'] = False,
  joined: bool = True,
) -> Figure:
  """One line a name, or one cloud of points.

  Args:
    curves: Name -> (x [T], y [T]).
    xlabel: What x is.
    ylabel: What y is.
    log: Which axes are logarithmic; True for both.
    joined: Whether points are joined by lines.
  """
  fig, axes = _drawn()
  for name, (x, y) in curves.items():
    if joined:
      axes.plot(x, y, label=name)
    else:
      axes.scatter(x, y, s=14, alpha=0.7, label=name)
  _finish(axes, log=log, xlabel=xlabel, ylabel=ylabel)
  return fig


def seed_curves(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  ylabel: str,
  xlabel: str = 'step',
  log: bool | Literal['x', 'y'] = False,
) -> Figure:
  """Mean over seeds against the step, with a band from lowest to highest.

  Args:
    curves: Name -> (steps [T], values [T, S]).
    ylabel: What the values are.
    xlabel: What the steps are.
    log: Which axes are logarithmic; True for both.
  """
  fig, axes = _drawn()
  for name, (steps, values) in curves.items():
    (line,) = axes.plot(steps, values.mean(1), label=name)
    axes.fill_between(
      steps,
      values.min(1),
      values.max(1),
      color=line.get_color(),
      alpha=0.2,
      linewidth=0,
    )
  several = max(values.shape[1] for _, values in curves.values()) > 1
  note = 'mean, lowest, highest seed' if several else ''
  _finish(axes, log=log, note=note, xlabel=xlabel, ylabel=ylabel)
  return fig


def bars(
  groups: Mapping[str, Mapping[str, np.ndarray]],
  *,
  ylabel: str,
  log: bool = False,
) -> Figure:
  """One bar a group and kind, of the mean over seeds, and a point a seed.

  Where each has one value alone, there are no points. Bars of many groups lie.

  Args:
    groups: Name below the bars -> kind, a colour -> one value a seed, [S]. All
      groups have the same kinds.
    ylabel: What the values are.
    log: Whether the values are on a logarithmic axis.
  """
  kinds = list(next(iter(groups.values())))
  fig, axes = _drawn(1.1 * len(groups) + 1.5)
  lying = len(groups) > 7  # Pages have room below, not beside.
  if lying:
    fig, axes = _drawn(height=0.15 * len(groups) * (len(kinds) + 1) + 0.8)
    axes.invert_yaxis()
  draw = axes.barh if lying else axes.bar
  width = 0.8 / len(kinds)
  several = any(
    np.size(x) > 1 for group in groups.values() for x in group.values()
  )
  for place, kind in enumerate(kinds):
    at = np.arange(len(groups)) + (place - (len(kinds) - 1) / 2) * width
    values = [np.asarray(group[kind]) for group in groups.values()]
    draw(at, [x.mean() for x in values], width, alpha=0.5, label=kind)
    for x, of_seeds in zip(at, values if several else (), strict=several):
      there = np.full(len(of_seeds), x), of_seeds
      axes.scatter(*there[:: -1 if lying else 1], s=10, color='black')
  names = [x.replace('\n', ' ' if lying else '\n') for x in groups]
  ticks = axes.set_yticks if lying else axes.set_xticks
  ticks(np.arange(len(groups)), names, fontsize=8)
  note = 'mean; points are seeds' if several else ''
  along: Literal['x', 'y'] = 'x' if lying else 'y'
  texts = {f'{along}label': ylabel}
  _finish(axes, axis=along, note=note, log=along if log else False, **texts)
  return fig


def _drawn(width=5.5, height=3.6):
  """(figure, its axes)."""
  fig = Figure(figsize=(width, height))
  return fig, fig.subplots()


def _finish(axes, *, axis='both', fontsize=8, log=False, note='', **labels):
  """Labels, grid, ticks, and a legend that hides nothing."""
  axes.set(**labels)
  axes.grid(alpha=0.3, axis=axis)
  for name, each in (('x', axes.xaxis), ('y', axes.yaxis)):
    if log is True or log == name:
      axes.set(**{f'{name}scale': 'log'})
      low, high = each.get_view_interval()
      # Decades, and where they are few 2 and 5 in between.
      subs = (1, 2, 5) if high < 1e4 * low else (1,)
      each.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
      each.set_major_formatter('{x:g}')
      each.set_minor_formatter(ticker.NullFormatter())
    elif name == 'x' and axis == 'both' and _counts(axes):
      each.set_major_locator(ticker.MaxNLocator(integer=True))
  axes.legend(
    fontsize=fontsize,
    title=note,
    title_fontsize=fontsize,
    alignment='left',
    loc='upper left',
    bbox_to_anchor=(1.01, 1.0),
    borderaxespad=0.0,
    frameon=False,
  )


def _counts(axes) -> bool:
  """Whether lines stand at whole numbers alone."""
  places = [line.get_xdata() for line in axes.lines]
  return bool(places) and all((np.asarray(x) % 1 == 0).all() for x in places)
