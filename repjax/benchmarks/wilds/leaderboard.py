"""Host side: files of predictions for WILDS' leaderboard, and their scores.

The form that `examples/evaluate.py` of p-lambda/wilds reads: a folder with a
text file for each split and replicate, `<set>_split:<split>_<replicate>...csv`,
one prediction a line, in the order of the split. Replicates are seeds, of
PovertyMap folds. A result is the mean over replicates and their standard
deviation with n - 1.
"""

import ast
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from repjax import files
from repjax import types
from repjax.benchmarks.wilds import datasets

# Metrics of the leaderboard; the first is the one that counts.
METRICS = {
  'amazon': ('10th_percentile_acc', 'acc_avg'),
  'camelyon17': ('acc_avg',),
  'civilcomments': ('acc_wg', 'acc_avg'),
  'fmow': ('acc_worst_region', 'acc_avg'),
  'hospitals': ('acc_avg', 'acc_wg'),
  'iwildcam': ('F1-macro_all', 'acc_avg'),
  'poverty': ('r_wg', 'r_all'),
  'shops': ('acc_avg', 'acc_wg'),
  'waterbirds': ('acc_wg', 'adj_acc_avg'),
}
_SEEDS = {'camelyon17': 10, 'civilcomments': 5}


def replicates(name: str) -> tuple[str, ...]:
  """The replicates that a set's result is over: 'seed:0', ..., 'fold:A', ..."""
  if name == 'poverty':
    return tuple(f'fold:{x}' for x in 'ABCDE')
  return tuple(f'seed:{x}' for x in range(_SEEDS.get(name, 3)))


def splits(dataset: datasets.Dataset) -> tuple[str, ...]:
  """The splits whose predictions are handed in: all but training."""
  return tuple(x for x in dataset.split_ids if x != 'train')


def write(
  folder: str | os.PathLike,
  subset: datasets.Subset,
  replicate: str,
  predicted: np.ndarray,
) -> pathlib.Path:
  """Writes the predictions of one split by one replicate.

  Args:
    folder: Of the set; made if it is not there.
    subset: A whole split.
    replicate: One of `replicates`.
    predicted: Classes, or numbers, of all rows in their order.

  Returns:
    The path.

  Raises:
    InputError: Predictions do not fit the split, or are none of its classes; or
      it is a part of one.
  """
  _check_whole(subset)
  data = subset.dataset
  types.check_choice('replicate', replicate, replicates(data.name))
  subset.evaluate(predicted)  # Refuses what does not fit.
  values = np.asarray(predicted).reshape(len(subset), -1)[:, 0]
  if data.num_classes is not None:
    values = _classes(values, subset)
  elif values.dtype == bool:
    values = values.astype(np.int64)
  place = files.path_of(folder)
  place.mkdir(parents=True, exist_ok=True)
  path = place / f'{_prefix(data.name, subset.split, replicate)}_pred.csv'
  with files.replacing(path) as partial:
    partial.write_text(''.join(f'{x!r}\n' for x in values.tolist()), 'utf-8')
  return path


def _classes(predicted, subset):
  """Predicted classes as the integers that they are."""
  values, num_classes = predicted.astype(np.float64), subset.dataset.num_classes
  wrong = (values < 0) | (values >= num_classes) | (values % 1 != 0)
  if wrong.any():
    row = wrong.argmax()
    raise types.InputError(
      f'Prediction {row} of {subset.name} is {predicted[row]}, no class in '
      f'[0, {num_classes}).'
    )
  return values.astype(np.int64)


def read(path: str | os.PathLike) -> np.ndarray:
  """Predictions of a file: one Python literal a line; empty lines are skipped.

  Raises:
    InputError: There is no such file, or a line is no number; names it.
  """
  try:
    lines = pathlib.Path(path).read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise types.InputError(f'{path} cannot be read: {error}.') from error
  found = []
  for number, line in enumerate(lines, 1):
    if not line.rstrip():
      continue
    try:
      found.append(ast.literal_eval(line.rstrip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      raise types.InputError(
        f'Line {number} of {path} is {line[:40]!r}: write one prediction a '
        'line, without a header.'
      ) from None
  try:
    values = np.array(found)
  except ValueError:
    values = np.array(None)
  if not np.issubdtype(values.dtype, np.number):
    raise types.InputError(f'{path} holds predictions that are no numbers.')
  return values


class Score(NamedTuple):
  """What a set's predictions are worth.

  Attributes:
    name: Of the set.
    values: Split -> metric -> one value a replicate.
  """

  name: str
  values: dict[str, dict[str, list[float]]]

  def result(self) -> dict[str, dict[str, float]]:
    """Split -> '<metric>' and '<metric>_std' over replicates, n - 1."""
    return {
      split: {
        key: number
        for metric, values in by_metric.items()
        for key, number in (
          (f'{metric}_std', float(np.std(values, ddof=1))),
          (metric, float(np.mean(values))),
        )
      }
      for split, by_metric in self.values.items()
    }

  def markdown(self) -> str:
    """A table: a row a split, mean (standard deviation)."""
    names = list(next(iter(self.values.values())))
    rows = [['split', *names], ['---'] * (1 + len(names))]
    for split, numbers in self.result().items():
      cells = [f'{numbers[x]:.3f} ({numbers[f"{x}_std"]:.3f})' for x in names]
      rows.append([split, *cells])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def score(
  folder: str | os.PathLike,
  dataset: datasets.Dataset | Callable[[str], datasets.Dataset],
  *,
  only: Sequence[str] | None = None,
) -> Score:
  """Scores a folder of predictions; everything must be there.

  Args:
    folder: Of the set.
    dataset: The labelled set; of PovertyMap fold -> set, since each fold has
      other splits.
    only: Replicates to score; all that the leaderboard asks for if None.

  Raises:
    InputError: A file is missing, there twice, or of the wrong length; names
      it.
  """
  place = files.path_of(folder)
  if not place.is_dir():
    raise types.InputError(f'{place} is no folder of predictions.')
  of = dataset if callable(dataset) else lambda _: dataset
  first = of('A')
  if first.name not in METRICS:
    raise types.InputError(
      f'The leaderboard has no metrics of {first.name!r}; it has those of '
      f'{", ".join(METRICS)}.'
    )
  wanted = tuple(replicates(first.name) if only is None else only)
  if len(wanted) < 2:
    raise types.InputError(
      f'A standard deviation needs two replicates; got {wanted}.'
    )
  by_replicate = {x: of(x.partition(':')[2]) for x in wanted}
  values: dict[str, dict[str, list[float]]] = {}
  for split in splits(first):
    found: dict[str, list[float]] = {x: [] for x in METRICS[first.name]}
    for replicate, data in by_replicate.items():
      path = _find(place, _prefix(data.name, split, replicate))
      subset, predicted = data.subset(split), read(path)
      if len(predicted) != len(subset):
        raise types.InputError(
          f'{path} has {len(predicted)} predictions, but {subset.name} has '
          f'{len(subset)} rows: write one for each, in the order of the split.'
        )
      results = subset.evaluate(predicted).results
      if missing := sorted(set(found) - set(results)):
        raise types.InputError(
          f'{subset.name} gives no {", ".join(missing)}: the leaderboard has '
          'the official split scheme alone.'
        )
      for metric, numbers in found.items():
        numbers.append(results[metric])
    values[split] = found
  return Score(first.name, values)


def write_results(
  path: str | os.PathLike, scores: Mapping[str, Score] | Score
) -> None:
  """Writes results as JSON, as `examples/evaluate.py` does.

  Args:
    path: Of the file: '<set>_results.json', or 'all_results.json'.
    scores: Of one set, or set -> score.
  """
  result = (
    scores.result()
    if isinstance(scores, Score)
    else {name: x.result() for name, x in scores.items()}
  )
  with files.replacing(path) as partial:
    partial.write_text(json.dumps(result, indent=4), 'utf-8')


def _prefix(name, split, replicate):
  return f'{name}_split:{split}_{replicate}'


def _find(folder, prefix):
  # What follows must end the number: 'seed:1' is no 'seed:10'.
  form = re.compile(re.escape(prefix) + r'(?![0-9A-Za-z]).*\.csv')
  found = sorted(x for x in folder.iterdir() if form.fullmatch(x.name))
  if len(found) != 1:
    seen = f'{len(found)} of them' if found else 'none'
    raise types.InputError(
      f'{folder} needs one file whose name begins with {prefix} and ends with '
      f'.csv; there is {seen}: hand in every split by every replicate.'
    )
  return found[0]


def _check_whole(subset):
  whole = subset.dataset.subset(subset.split)
  if len(whole) != len(subset):
    raise types.InputError(
      f'The leaderboard takes whole splits; this is a part of {subset.name}.'
    )
