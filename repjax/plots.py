"""Figures of runs and predictions. Host side, matplotlib without pyplot.

Figures are made as objects, so nothing depends on a backend or a display.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from matplotlib import figure as mpl_figure
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
  sure, wrong = log_probs.max(-1), log_probs.argmax(-1) != labels
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
    wrong = guess[i] != labels[i]
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
    _numbers(
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
    probabilities = np.exp(classification.log_softmax(values))
    confidence, accuracy, counts = classification.reliability(
      probabilities, labels
    )
    filled = counts > 0
    ece = classification.calibration_error(probabilities, labels)
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
  """`confusion` and `reliability` of one classifier; arguments of either."""
  return {
    'confusion': confusion(logits, labels),
    'reliability': reliability({'model': logits}, labels),
  }


def lines(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  xlabel: str,
  ylabel: str,
  log: bool = False,
) -> Figure:
  """One line a name.

  Args:
    curves: Name -> (x [T], y [T]).
    xlabel: What x is.
    ylabel: What y is.
    log: Whether both axes are logarithmic.
  """
  fig, axes = _drawn()
  if log:
    axes.set(xscale='log', yscale='log')
  for name, (x, y) in curves.items():
    axes.plot(x, y, label=name)
  _finish(axes, xlabel=xlabel, ylabel=ylabel)
  return fig


def seed_curves(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  ylabel: str,
  xlabel: str = 'step',
) -> Figure:
  """Mean over seeds against the step, with a band from lowest to highest.

  Args:
    curves: Name -> (steps [T], values [T, S]).
    ylabel: What the values are.
    xlabel: What the steps are.
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
  _finish(axes, xlabel=xlabel, ylabel=ylabel)
  return fig


def matrices(
  values: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str
) -> Figure:
  """Matrices of numbers in [0, 1] side by side, with their numbers.

  Args:
    values: Name -> [rows, columns].
    xlabel: What columns are.
    ylabel: What rows are.
  """
  fig = Figure(figsize=(2.6 * len(values) + 0.6, 3.0))
  for axes, (name, matrix) in zip(
    fig.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True
  ):
    axes.imshow(matrix, cmap='viridis', vmin=0, vmax=1)
    axes.set(title=name, xlabel=xlabel)
    if axes.get_subplotspec().is_first_col():
      axes.set_ylabel(ylabel)
    if matrix.size <= 100:
      _numbers(
        axes,
        matrix,
        lambda value: f'{value:.2f}'[1:] if value < 1 else '1',
        is_dark=lambda value: value <= 0.6,
      )
  return fig


def points(
  groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  xlabel: str,
  ylabel: str,
) -> Figure:
  """One cloud of points a name.

  Args:
    groups: Name -> (x [N], y [N]).
    xlabel: What x is.
    ylabel: What y is.
  """
  fig, axes = _drawn()
  for name, (x, y) in groups.items():
    axes.scatter(x, y, s=14, alpha=0.7, label=name)
  _finish(axes, xlabel=xlabel, ylabel=ylabel)
  return fig


def bars(
  groups: Mapping[str, Mapping[str, np.ndarray]], *, ylabel: str
) -> Figure:
  """One bar a group and kind, of the mean over seeds, and a point a seed.

  Args:
    groups: Name below the bars -> kind, a colour -> one value a seed, [S]. All
      groups have the same kinds.
    ylabel: What the values are.
  """
  kinds = list(next(iter(groups.values())))
  fig, axes = _drawn(1.1 * len(groups) + 1.5, 3.6)
  width = 0.8 / len(kinds)
  for place, kind in enumerate(kinds):
    at = np.arange(len(groups)) + (place - (len(kinds) - 1) / 2) * width
    values = [np.asarray(group[kind]) for group in groups.values()]
    axes.bar(at, [x.mean() for x in values], width, alpha=0.5, label=kind)
    for x, of_seeds in zip(at, values, strict=True):
      axes.scatter(np.full(len(of_seeds), x), of_seeds, s=10, color='black')
  axes.set_xticks(np.arange(len(groups)), list(groups), fontsize=8)
  _finish(axes, axis='y', ylabel=ylabel)
  return fig


def heatmaps(
  matrices: Mapping[str, np.ndarray], *, names: Sequence[str]
) -> Figure:
  """Square matrices side by side, each with its own colours and its numbers.

  The colours span what lies off the diagonal, where similarities are 1.

  Args:
    matrices: Title -> [T, T].
    names: Of the T rows and columns.
  """
  fig = Figure(figsize=(4.2 * len(matrices), 4))
  places = fig.subplots(1, len(matrices), squeeze=False)[0]
  for axes, (title, matrix) in zip(places, matrices.items(), strict=True):
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    axes.imshow(matrix, cmap='viridis', vmin=off.min(), vmax=off.max())
    axes.set(title=title)
    for ticks in (axes.set_xticks, axes.set_yticks):
      ticks(np.arange(len(names)), names)
    middle = (off.min() + off.max()) / 2
    _numbers(
      axes,
      matrix,
      '{:.2f}'.format,
      is_dark=lambda value, middle=middle: value <= middle,
      fontsize=7,
    )
  return fig


def _drawn(width=5.5, height=3.6):
  """(figure, its axes)."""
  fig = Figure(figsize=(width, height))
  return fig, fig.subplots()


def _finish(axes, *, axis='both', fontsize=8, **labels):
  axes.set(**labels)
  axes.grid(alpha=0.3, axis=axis)
  axes.legend(fontsize=fontsize)


def _numbers(axes, matrix, text, *, is_dark, fontsize=6):
  """Writes the numbers of a matrix into its picture."""
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
