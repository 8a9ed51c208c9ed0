"""Host side: rows of files, and their split where the files give none."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import math
import pathlib
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from repjax import types
from repjax.data.reading import source

# What folders and files of splits are called.
SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'dev': 'validation',
  'test': 'test',
  'testing': 'test',
}


class Rows(NamedTuple):
  """All rows of some files.

  Attributes:
    source: All of them, without the column 'label'.
    labels: The label of each as it is written, object [n]; None without any.
    splits: The split of each, object [n]; '' where the files give none.
    names: What each is called: a file, or a file and a line.
    order: What decides where no split is given, uint64 [n]; equal for equal
      rows of a table.
  """

  source: source.Source
  labels: np.ndarray | None
  splits: np.ndarray
  names: Sequence[str]
  order: np.ndarray


def digest(*parts: bytes) -> int:
  """A number below 2^64 that depends on some bytes alone."""
  whole = hashlib.blake2b(digest_size=8)
  for part in parts:
    whole.update(len(part).to_bytes(8, 'little') + part)
  return int.from_bytes(whole.digest(), 'little')


def split_files(
  folder: pathlib.Path, suffixes: Sequence[str]
) -> dict[str, pathlib.Path]:
  """Split -> its file in a folder; '' for a file alone.

  Raises:
    InputError: There is no such file, two are of one split, or none is of
      training.
  """
  there = sorted(
    x
    for x in folder.iterdir()
    if x.suffix.lower() in suffixes and not x.name.startswith('.')
  )
  kinds = ' or '.join(suffixes)
  if not there:
    raise types.InputError(f'{folder} holds no file that ends in {kinds}.')
  found: dict[str, pathlib.Path] = {}
  for file in there:
    split = SPLITS.get(file.stem.lower(), '')
    if split and split in found:
      raise types.InputError(
        f'{folder} has two files of the split {split}, {found[split].name} and '
        f'{file.name}: keep one of them there.'
      )
    if split:
      found[split] = file
  if 'train' in found:
    others = [x.name for x in there if x not in found.values()]
    if others:
      logging.warning(
        '%s: %d file(s) of no split are left out, such as %s.',
        folder,
        len(others),
        others[0],
      )
    return found
  if len(there) == 1:
    return found or {'': there[0]}
  raise types.InputError(
    f'{folder} has {len(there)} files, {there[0].name} and so on, and none is '
    f'called train{suffixes[0]}: give --data_dir the one file, or call them '
    f'train{suffixes[0]} and test{suffixes[0]}.'
  )


def with_splits(rows: Rows, *, test_share: float, title: str) -> Rows:
  """Rows with a training and a test split, whatever the files gave.

  Where there is no test split, the share is taken of each class of the training
  rows, by `order`: another order of lines or files gives the same split, and
  equal rows are on one side. The log says so.

  Raises:
    InputError: There are no training rows, or too few.
  """
  given = set(rows.splits)
  if not given & {'', 'train'}:
    raise types.InputError(
      f'{title} has rows of {", ".join(sorted(given))} alone, and none to '
      'train on: call them train, or add such.'
    )
  if 'test' in rows.splits or (
    'validation' in rows.splits and 'train' in rows.splits
  ):
    return rows
  train = np.flatnonzero((rows.splits == '') | (rows.splits == 'train'))
  labels = None if rows.labels is None else rows.labels[train]
  chosen = train[stratified(rows.order[train], labels, share=test_share)]
  if not chosen.size:
    raise types.InputError(
      f'{title} has no split for tests, and too few rows to take some '
      f'({len(train)}): give more.'
    )
  splits = rows.splits.copy()
  splits[train] = 'train'
  splits[chosen] = 'test'
  logging.info(
    '%s gives no test split: %g %% of %s are test, always the same (%s train, '
    '%s test).',
    title,
    100 * test_share,
    'all rows' if labels is None else 'each class',
    f'{len(train) - len(chosen):,}',
    f'{len(chosen):,}',
  )
  return rows._replace(splits=splits)


def by_old_name(renamed: Mapping[str, str]) -> dict[str, str]:
  """What the files call a column -> the column.

  Raises:
    InputError: One is taken for two things.
  """
  moved = {old: new for new, old in renamed.items()}
  for new, old in renamed.items():
    if moved[old] != new:
      raise types.InputError(
        f'--config.data.name takes {old!r} for {new} and for {moved[old]}: '
        'give each a column of its own.'
      )
  return moved


def stratified(
  order: np.ndarray, labels: np.ndarray | None, *, share: float
) -> np.ndarray:
  """Which rows are chosen, bool [n]: a share of each class, by `order`.

  Of a class of two rows or more at least one is chosen, and one is not; rows of
  equal `order` go together where that leaves both.
  """
  chosen = np.zeros(len(order), bool)
  groups: Iterable[Any] = [slice(None)]
  if labels is not None:
    groups = (labels == x for x in set(labels))
  for group in groups:
    rows = np.arange(len(order))[group]
    if len(rows) < 2:
      continue
    rows = rows[np.argsort(order[rows], kind='stable')]
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    # Where rows differ from the next ones, and may be parted.
    ends = np.flatnonzero(np.diff(order[rows])) + 1
    if ends.size:
      count = ends[np.abs(ends - count).argmin()]
    chosen[rows[:count]] = True
  return chosen


def mixed(order: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
  """All rows in an order of which each part has the classes in their shares.

  Files lie class by class, so that 'train[90%:]' would else be one of them.

  Args:
    order: What decides within a class, [n].
    labels: Of each row, [n]; None where there are none.

  Returns:
    Rows, [n].
  """
  places = np.empty(len(order))
  groups: Iterable[Any] = [np.arange(len(order))]
  if labels is not None:
    groups = (np.flatnonzero(labels == x) for x in set(labels))
  for group in groups:
    sorted_group = group[np.argsort(order[group], kind='stable')]
    places[sorted_group] = (np.arange(len(group)) + 0.5) / len(group)
  return np.argsort(places, kind='stable')


def classes(labels: np.ndarray, *, title: str) -> tuple[str, ...]:
  """Names of the classes of training rows: numbers by size, others by letters.

  Raises:
    InputError: There is one class, or nearly every row has one of its own.
  """
  found = set(labels)
  if len(found) < 2:
    raise types.InputError(
      f'{title} has one class alone, {next(iter(found))!r}: a classifier needs '
      'two or more.'
    )
  if len(labels) > 40 and len(found) > len(labels) / 2:
    raise types.InputError(
      f'{title} has {len(found):,} different labels in {len(labels):,} rows, '
      f'such as {labels[0]!r}: these are no classes. Give the column of '
      'classes, such as --config.data.name=csv:label=COLUMN.'
    )
  return tuple(sorted(found, key=_place(found)))


def _place(found):
  """What classes are sorted by: numbers, if all are, and then letters."""
  try:
    numbers = {x: float(x) for x in found}
  except ValueError:
    return str
  if not all(map(math.isfinite, numbers.values())):
    return str
  return lambda x: (numbers[x], x)  # '1' and '1.0' are two.


def indices(
  labels: np.ndarray, names: Sequence[str], *, title: str
) -> np.ndarray:
  """The class of each label, int32 [n].

  Raises:
    InputError: A label is none of the training rows'.
  """
  place = {name: i for i, name in enumerate(names)}
  unknown: Mapping[str, int] = {
    x: int((labels == x).sum()) for x in sorted(set(labels) - set(place))
  }
  if unknown:
    shown = ', '.join(f'{x!r} ({n})' for x, n in list(unknown.items())[:5])
    raise types.InputError(
      f'{title} has labels that no training row has: {shown}; known are '
      f'{", ".join(list(names)[:10])}{" ..." * (len(names) > 10)}. Mend them, '
      'or give training rows of them.'
    )
  return np.array([place[x] for x in labels], np.int32)


def order_of(
  columns: Mapping[str, Sequence[Any]], *, named: bool
) -> np.ndarray:
  """Numbers of the rows of a table, which their cells decide, [N].

  Args:
    columns: Name -> N cells.
    named: Whether each row names its cells, in an order of its own, and may
      leave some out: names count, in alphabetical order, and no empty cells.
  """
  names = sorted(columns) if named else list(columns)
  found = []
  for row in zip(*(columns[x] for x in names), strict=True):
    cells = [str(x) for x in row]
    if named:
      cells = [y for x in zip(names, cells, strict=True) if x[1] for y in x]
    found.append(digest(*(x.encode() for x in cells)))
  return np.array(found, np.uint64)
