"""Host side: tables of texts and numbers, as CSV files or lines of JSON.

    reviews.csv                    or   reviews/train.csv, reviews/test.csv
    text,label
    "A quiet, clever film.",good

One row a line, of one class each in the column 'label'. A column in which all
cells are numbers is one of numbers (int32 or float32), any other one of texts.
A table without texts has the column 'features' [D], its columns of numbers side
by side; 'features=a+b' says which.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from repjax import types
from repjax.data.own import rows
from repjax.data.reading import source

SUFFIXES = {'csv': ('.csv', '.tsv'), 'jsonl': ('.jsonl', '.ndjson')}
# Columns that are no features of a row.
_NO_FEATURES = ('label', 'group', 'user', 'index', 'mask')


def read(
  path: pathlib.Path,
  kind: str,
  *,
  renamed: Mapping[str, str] | None = None,
  features: Sequence[str] = (),
  texts: Sequence[str] = (),
  needs_label: bool = True,
) -> rows.Rows:
  """The rows of a file, or of a folder with a file a split.

  Args:
    path: Of either.
    kind: 'csv' (also .tsv, with tabs) or 'jsonl'.
    renamed: Column -> what the files call it; 'features' names several by
      'a+b'.
    features: Columns of numbers side by side; () for what `renamed` says, or
      all where there are no texts.
    texts: Columns of texts, whatever their cells are.
    needs_label: Whether a row without a label is refused, and so is a file that
      has not the column that `renamed` takes for it.

  Raises:
    InputError: A file cannot be read, or a column is not there.
  """
  if path.is_dir():
    files = rows.split_files(path, SUFFIXES[kind])
  else:
    files = {'': path}
  # Columns stand as in the training file, whatever the others are called.
  files = dict(sorted(files.items(), key=lambda x: x[0] != 'train'))
  renamed = dict(renamed or {})
  if not features and 'features' in renamed:
    features = renamed['features'].split('+')
  renamed.pop('features', None)
  columns: dict[str, list[Any]] = {}
  splits: list[str] = []
  names: list[str] = []
  for split, file in files.items():
    table, lines = _TABLES[kind](file)
    table = _renamed(table, renamed, features, str(file), needs_label)
    if columns and set(table) != set(columns):
      odd = sorted(set(table) ^ set(columns))
      raise types.InputError(
        f'{file} has other columns than {next(iter(files.values())).name}: '
        f'{", ".join(odd)} stand(s) in one of them alone.'
      )
    for name, cells in table.items():
      columns.setdefault(name, []).extend(cells)
    splits += [split] * len(lines)
    names += [f'{file.name}:{line}' for line in lines]
  labels = None
  order = rows.order_of(columns, named=kind == 'jsonl')
  if 'label' in columns:
    labels = _labels(columns.pop('label'), names, path, needs_label)
  made = _typed(columns, names, texts)
  if features or 'features' not in made:
    made |= _features(made, names, path, features)
  if not made:
    raise types.InputError(f'{path} has no column besides the label.')
  return rows.Rows(
    source=source.from_arrays(path.name, made, split=''),
    labels=labels,
    splits=np.array(splits, object),
    names=names,
    order=order,
  )


def lines(path: pathlib.Path, columns: Sequence[str]) -> rows.Rows:
  """The lines of a file that are not empty, as each of some columns."""
  # Not by `splitlines`, which knows of more ends than files have.
  texts = [x.strip() for x in _text(path).split('\n')]
  kept = [(i, x) for i, x in enumerate(texts, 1) if x]
  if not kept:
    raise types.InputError(f'{path} has no line of text.')
  encoded = _objects([x.encode() for _, x in kept])
  made = source.from_arrays(
    path.name, dict.fromkeys(columns, encoded), split=''
  )
  return rows.Rows(
    source=made,
    labels=None,
    splits=np.array([''] * len(kept), object),
    names=[f'{path.name}:{i}' for i, _ in kept],
    order=np.array([rows.digest(x.encode()) for _, x in kept], np.uint64),
  )


def feature_names(columns: Mapping[str, np.ndarray]) -> list[str]:
  """Columns that are laid side by side where none are named, in their order."""
  return [
    name
    for name, x in columns.items()
    if x.ndim == 1 and x.dtype != object and name not in _NO_FEATURES
  ]


def _text(path):
  try:
    return path.read_text('utf-8-sig')
  except FileNotFoundError:
    raise types.InputError(
      f'There is no file {path}: give --data_dir one.'
    ) from None
  except UnicodeDecodeError as error:
    raise types.InputError(
      f'{path} is no text in UTF-8 ({error.reason} at byte {error.start}): '
      'save it in that encoding.'
    ) from error


def _csv(path):
  """(name -> cells, line numbers) of a CSV file."""
  text = _text(path)
  limit = csv.field_size_limit(max(131_072, len(text) + 1))
  try:
    reader = csv.reader(
      io.StringIO(text, newline=''),
      delimiter='\t' if path.suffix.lower() == '.tsv' else ',',
      strict=True,
    )
    read = [(reader.line_num, cells) for cells in reader if cells]
  except csv.Error as error:
    raise types.InputError(
      f'{path} cannot be read as a CSV file: {error} in line {reader.line_num}.'
    ) from error
  finally:
    csv.field_size_limit(limit)
  if len(read) < 2:
    raise types.InputError(f'{path} needs a header line and rows below it.')
  header = [x.strip() for x in read[0][1]]
  if len(header) == 1 and ';' in header[0]:
    raise types.InputError(
      f'{path} has semicolons between its cells: write it with commas.'
    )
  if len(set(header)) != len(header) or not all(header):
    raise types.InputError(
      f'{path}: each column needs a name of its own in the first line, got '
      f'{header}.'
    )
  for line, cells in read[1:]:
    if len(cells) != len(header):
      raise types.InputError(
        f'{path}: the row that ends in line {line} has {len(cells)} cells, the '
        f'header {len(header)}. (Texts with commas stand in quotes.)'
      )
  table = {
    name: [cells[i] for _, cells in read[1:]] for i, name in enumerate(header)
  }
  return table, [line for line, _ in read[1:]]


def _json_lines(path):
  """(name -> values, line numbers) of a file with one JSON object a line."""
  read = []
  # Not `splitlines`, which breaks at characters that JSON strings may hold.
  for number, line in enumerate(_text(path).split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if '\\ud' in line.lower():  # Half of a pair is no character.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
      raise types.InputError(
        f'{path}: line {number} is no JSON: {error}.'
      ) from error
    if not isinstance(row, dict) or not row:
      raise types.InputError(
        f'{path}: line {number} is no object such as '
        '{"text": "...", "label": "..."}.'
      )
    read.append((number, row))
  if not read:
    raise types.InputError(f'{path} has no rows.')
  names = list(dict.fromkeys(name for _, row in read for name in row))
  table = {}
  for name in names:
    cells = ['' if row.get(name) is None else row[name] for _, row in read]
    if any(isinstance(x, (list, dict)) for x in cells):
      logging.warning(
        '%s: the column %r holds lists or objects and is left out.', path, name
      )
      continue
    table[name] = cells
  return table, [number for number, _ in read]


_TABLES = {'csv': _csv, 'jsonl': _json_lines}


def _renamed(table, renamed, features, title, needs_label):
  """A table with its columns called as `renamed` says."""
  wanted = {**renamed, **{f'features ({x})': x for x in features}}
  for name, old in wanted.items():
    if old not in table and (needs_label or name != 'label'):
      raise types.InputError(
        f'{title} has no column {old!r}, which --config.data.name takes for '
        f'{name}; it has {", ".join(table)}.'
      )
  moved = rows.by_old_name(renamed)
  return {
    moved.get(name, name): cells
    for name, cells in table.items()
    # What a column is called that is moved onto another's name is lost.
    if name in moved or name not in renamed
  }


def _labels(cells, names, path, needs_label):
  labels = np.array([str(x).strip() for x in cells], object)
  empty = np.flatnonzero(np.isin(labels, ['', *_no_numbers(labels)]))
  if needs_label and empty.size:
    raise types.InputError(
      f'{path}: {empty.size} row(s) have no label, the first is '
      f'{names[empty[0]]}: fill them in, or remove the rows.'
    )
  return None if empty.size else labels


def _no_numbers(labels):
  """How NaN is written among labels that are numbers."""
  try:
    numbers = {x: float(x) for x in set(labels) - {''}}
  except ValueError:
    return []
  return [name for name, x in numbers.items() if np.isnan(x)]


def _typed(columns, names, as_texts):
  """Columns of cells as arrays: numbers, or texts as bytes."""
  made = {}
  for name, cells in columns.items():
    numbers = None if name in as_texts else _numbers(cells)
    if numbers is not None:
      made[name] = numbers
      continue
    texts = [str(x) for x in cells]
    empty = [i for i, x in enumerate(texts) if not x.strip()]
    if empty:
      logging.warning(
        'The column %r has no text in %d row(s), the first is %s.',
        name,
        len(empty),
        names[empty[0]],
      )
    made[name] = _objects([x.encode() for x in texts])
  return made


def _numbers(cells):
  """int32 or float32 [n], with NaN for empty cells; None of texts."""
  if all(isinstance(x, str) and not x.strip() for x in cells):
    return None
  texts = {x.strip() for x in cells if isinstance(x, str)}
  digits = {x for x in texts if x.isdecimal()}
  # What Python takes for a number and nobody else, and names such as 7 and 007.
  same = len({x.lstrip('0') for x in digits}) < len(digits)
  if same or any('_' in x for x in texts):
    return None
  try:
    found = [float(x) if str(x).strip() else np.nan for x in cells]
  except (ValueError, OverflowError):  # Of JSON's whole numbers.
    return None
  wide = np.array(found, np.float64)
  whole = np.isfinite(wide).all() and (wide == np.rint(wide)).all()
  if whole and np.abs(wide).max() < 2**31:
    return wide.astype(np.int32)
  with np.errstate(over='ignore'):  # Refused as infinite, as a feature.
    narrow = wide.astype(np.float32)
  return wide if are_lost(wide) else narrow


def are_lost(numbers: np.ndarray) -> bool:
  """Whether float32 makes one of many that differ by more than rounding."""
  # Of very many some meet by chance, however small the rounding is.
  numbers = numbers[:: max(1, len(numbers) // 100_000)]
  with np.errstate(over='ignore'):
    there = np.isfinite(numbers.astype(np.float32))
  exact = np.unique(numbers[there].astype(np.float64))
  apart = np.diff(exact) > 1e-14 * np.abs(exact).max(initial=0)
  return len(np.unique(exact.astype(np.float32))) < 0.95 * (1 + apart.sum())


def _features(made, names, path, asked: Sequence[str]):
  """The column 'features' of a table without texts, or as it is asked for."""
  if not asked and any(x.dtype == object for x in made.values()):
    return {}
  chosen = asked or feature_names(made)
  if not chosen:
    return {}
  for name in chosen:
    if name not in made or made[name].dtype == object:
      raise types.InputError(
        f'{path}: the column {name!r} is none of numbers, which features are.'
      )
    with np.errstate(over='ignore'):
      lacking = np.flatnonzero(~np.isfinite(made[name].astype(np.float32)))
    if lacking.size:
      raise types.InputError(
        f'{path}: the column {name!r} has no finite number in {lacking.size} '
        f'row(s), the first is {names[lacking[0]]}: fill them in, remove the '
        'rows, or choose columns by --config.data.name=csv:features=A+B.'
      )
    if are_lost(made[name]):
      raise types.InputError(
        f'{path}: float32 does not tell the numbers of the column {name!r} '
        f'apart, such as {made[name][0]}: subtract a constant from it, or '
        'choose columns by --config.data.name=csv:features=A+B.'
      )
  stacked = [made[name].astype(np.float32) for name in chosen]
  return {'features': np.stack(stacked, -1)}


def _objects(values):
  return np.fromiter(values, object, len(values))
