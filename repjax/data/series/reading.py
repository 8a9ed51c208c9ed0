"""Host side: files and TFDS sets as series.

A CSV file has a header line, a row a time, perhaps time stamps, and numbers.
"""

from collections.abc import Sequence
import csv
import datetime
import os
import pathlib
from typing import Literal

import numpy as np

from repjax import files
from repjax import types
from repjax.data.reading import source as sources
from repjax.data.series import series as seriess

# What cells without a value hold, besides nothing.
_MISSING = ('', 'nan', 'na', 'n/a', 'null', 'none')
_MOST_FILLED = 20  # Times the measured rows, once gaps are filled.
# Names of a column of time stamps where none is given.
_TIME_NAMES = ('date', 'time', 'timestamp', 'datetime', 'ds')


def read_csv(
  path: str | pathlib.Path,
  *,
  columns: Sequence[str] = (),
  time_column: str = '',
  label_column: str = '',
  gaps: Literal['refuse', 'fill'] = 'refuse',
) -> seriess.Series:
  """The series of a CSV file.

  Args:
    path: With a header line.
    columns: Which are read; () for all that are no times and no labels.
    time_column: Of time stamps, such as 2016-07-01 00:00:00; '' for one named
      date, time, timestamp, datetime or ds, if there is one.
    label_column: Of 1 within anomalies and 0 outside; '' for none.
    gaps: What to do where time stamps skip steps: refuse, or 'fill' in rows of
      missing values.

  Raises:
    InputError: In one line, if the file cannot be read, a column is not there
      or holds text, or time stamps are not sorted, repeat or skip steps.
  """
  path = pathlib.Path(path)
  header, rows = _rows(path)
  if not time_column:
    named = [x for x in header if x.strip().lower() in _TIME_NAMES]
    time_column = named[0] if named else ''
  special = [x for x in (time_column, label_column) if x]
  if twice := [x for x in special if [*columns, *special].count(x) > 1]:
    raise types.InputError(
      f'{path}: the column {twice[0]!r} has two roles: that of times or labels '
      'and another; take it out of --config.data.columns.'
    )
  if not columns:
    columns = [x for x in header if x not in special]
    if '' in columns:
      raise types.InputError(
        f'{path}: column {header.index("") + 1} has no name: give it one.'
      )
  seriess.check_columns(str(path), [*columns, *special], header)
  if not columns:
    raise types.InputError(f'{path} has no column of numbers.')
  cells = {
    name: [row[header.index(name)] for row in rows]
    for name in [*columns, *special]
  }
  made = seriess.from_arrays(
    path.name,
    np.stack([_numbers(path, x, cells[x]) for x in columns], -1),
    columns=columns,
    times=_times(path, time_column, cells[time_column])
    if time_column
    else None,
    labels=_numbers(path, label_column, cells[label_column])
    if label_column
    else None,
  )
  return regular(made, gaps=gaps)


def read_npz(
  path: str | pathlib.Path, key: str, *, label_key: str = ''
) -> seriess.Series:
  """The series of an array [T, C] or [T] of an .npz file.

  Args:
    path: Of the file.
    key: Name of the array.
    label_key: Name of the array of labels [T]; '' for none.

  Raises:
    InputError: If the file cannot be read or holds no such array.
  """
  path = pathlib.Path(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      for name in (key, label_key):
        if name and name not in arrays:
          raise types.InputError(
            f'{path} has no array {name!r}; it has {", ".join(arrays)}.'
          )
      values = np.asarray(arrays[key])
      labels = np.asarray(arrays[label_key]) if label_key else None
  except types.InputError:
    raise
  # Whatever a damaged archive makes of itself.
  except Exception as error:
    raise types.InputError(
      f'{path} cannot be read as an .npz file: {error}'
    ) from error
  return seriess.from_arrays(f'{path.name}:{key}', values, labels=labels)


def read_tfds(
  name: str,
  split: str,
  *,
  data_dir: str = '',
  value: str = 'value',
  label: str = '',
  time: str = '',
) -> list[seriess.Series]:
  """One series a row of a prepared TFDS set, such as `nab`.

  Args:
    name: As TFDS writes it.
    split: As TFDS writes it.
    data_dir: Folder of prepared sets; see `source.load`.
    value: Column of the values, [T] or [T, C].
    label: Column of the labels [T]; '' for none.
    time: Column of seconds since 1970 [T]; '' for none.
  """
  source = sources.load(name, split, data_dir=data_dir)
  found = []
  for row in range(len(source)):
    read = source.read([row])
    lacking = [x for x in (value, label, time) if x and x not in read]
    if lacking:
      raise types.InputError(
        f'{name} has no column {lacking[0]!r}; it has {", ".join(read)}.'
      )
    title = read['name'][0] if 'name' in read else f'{name}[{row}]'
    found.append(
      seriess.from_arrays(
        title.decode() if isinstance(title, bytes) else str(title),
        read[value][0],
        labels=read[label][0] if label else None,
        times=read[time][0].astype('datetime64[s]') if time else None,
      )
    )
  return found


def named(
  series: Sequence[seriess.Series], names: Sequence[str], *, of: str
) -> list[seriess.Series]:
  """Those of some names, or of folders that names such as `a/b` begin with.

  Args:
    series: All that there are.
    names: Of series or folders; () for all.
    of: The set's name, for messages.

  Raises:
    InputError: If there is none of a name.
  """
  if not names:
    return list(series)
  found: list[seriess.Series] = []
  for name in names:
    chosen = [x for x in series if name in (x.name, x.name.split('/')[0])]
    if not chosen:
      known = sorted({x.name.split('/')[0] for x in series})
      raise types.InputError(
        f'config.data.channels: {of} has no series or folder {name!r}; it has '
        f'{", ".join(known[:20])}{", ..." if len(known) > 20 else ""}.'
      )
    found += [x for x in chosen if not any(x is y for y in found)]
  return found


def regular(
  series: seriess.Series, *, gaps: Literal['refuse', 'fill'] = 'refuse'
) -> seriess.Series:
  """The series with one row every step of time.

  The step is the most frequent difference of two time stamps. Series without
  times are taken as they are.

  Raises:
    InputError: If steps are skipped and `gaps` is 'refuse', or time stamps are
      not whole steps apart.
  """
  types.check_choice('config.data.gaps', gaps, ('refuse', 'fill'))
  if series.times is None or len(series) < 2:
    return series
  times = series.times
  differences = np.diff(times)
  steps, counts = np.unique(differences, return_counts=True)
  step = steps[counts.argmax()]
  if (differences == step).all():
    return series
  row = int(np.flatnonzero(differences != step)[0]) + 1
  said = (
    f'{series.name}: time stamps are {step} apart, but from {times[row - 1]} '
    f'to {times[row]} (row {row}) it is {differences[row - 1]}'
  )
  places = (times - times[0]) // step
  if ((times - times[0]) % step != np.timedelta64(0, 's')).any():
    raise types.InputError(f'{said}: bring the rows to even steps first.')
  if gaps == 'refuse':
    missing = int(places[-1]) + 1 - len(series)
    raise types.InputError(
      f'{said}, and {missing} row(s) are missing in all: give '
      '--config.data.gaps=fill to take them as missing values.'
    )
  length = int(places[-1]) + 1
  if length > max(_MOST_FILLED * len(series), 10_000):
    row = int(differences.argmax()) + 1
    raise types.InputError(
      f'{series.name}: gaps=fill makes {length:,} rows of {len(series):,}; '
      f'the largest gap is before row {row}, from {times[row - 1]} to '
      f'{times[row]}: is a time wrong? Else leave out the rows before it.'
    )
  values = np.full((length, len(series.columns)), np.nan, np.float32)
  values[places] = series.values
  labels = None
  if series.labels is not None:
    labels = np.zeros(length, np.int32)
    labels[places] = series.labels
  return seriess.from_arrays(
    series.name,
    values,
    columns=series.columns,
    times=times[0] + step * np.arange(length),
    labels=labels,
  )


def header(path: str | os.PathLike) -> list[str]:
  """Names of the columns of a CSV file."""
  return _rows(files.path_of(path))[0]


def _rows(path):
  """(header, rows of cells) of a CSV file."""
  lines: list[list[str]] = []
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      # Strictly: a quote that is not closed would swallow the rows behind it.
      lines += csv.reader(file, strict=True)
  except FileNotFoundError:
    raise types.InputError(
      f'There is no file {path}: check --config.data.file, or give --data_dir, '
      'the folder that it is in.'
    ) from None
  except UnicodeDecodeError as error:
    raise types.InputError(
      f'{path} is no text in UTF-8 ({error.reason} at byte {error.start}): '
      'save it in that encoding.'
    ) from error
  except (OSError, csv.Error) as error:
    raise types.InputError(
      f'{path} cannot be read as a CSV file from row {len(lines) + 1} on: '
      f'{error}'
    ) from error
  while lines and not lines[-1]:
    lines.pop()
  # An empty line of a file of one column is a cell without a value.
  while lines and not lines[0]:
    del lines[0]
  is_one = bool(lines) and len(lines[0]) == 1
  # But for a file whose line ends are doubled.
  if not is_one or not any(lines[1::2]):
    lines = [x for x in lines if x]
  lines = [x or [''] for x in lines]
  if len(lines) < 2:
    raise types.InputError(f'{path} needs a header line and rows below it.')
  header = [x.strip() for x in lines[0]]
  for mark, name in ((';', 'semicolons'), ('\t', 'tabs')):
    if len(header) == 1 and mark in header[0]:
      raise types.InputError(
        f'{path} has {name} between its cells: write it with commas, and '
        'numbers with points.'
      )
  values = [x for x in header if _is_value(x)]
  if values:
    raise types.InputError(
      f'{path}: the first line holds {values[0]!r}, which is no name: write a '
      'line of column names above it.'
    )
  if len(set(header)) != len(header):
    raise types.InputError(f'{path}: two columns have one name: {header}.')
  for number, row in enumerate(lines[1:], 2):
    if len(row) != len(header):
      raise types.InputError(
        f'{path}: line {number} has {len(row)} cells, the header {len(header)}.'
      )
  return header, lines[1:]


def _is_value(cell):
  """Whether it is a time stamp or a fraction; names may be whole numbers."""
  try:
    datetime.datetime.fromisoformat(cell)
  except ValueError:
    number = cell.removeprefix('-').replace('.', '', 1)
    return '.' in cell and number.isdecimal()
  return '-' in cell  # 20160701 is a time, too, but may be a name.


def _numbers(path, name, cells):
  """[T]; NaN for cells without a value."""
  numbers = np.full(len(cells), np.nan)
  for row, cell in enumerate(cells):
    if cell.strip().lower() in _MISSING:
      continue
    try:
      numbers[row] = float(cell)
    except ValueError:
      raise types.InputError(
        f'{path}: column {name!r} holds text ({cell!r} in line {row + 2}): '
        'name the columns of numbers by --config.data.columns, or mend it.'
      ) from None
  return numbers


def _times(path, name, cells):
  """datetime64[s] [T], in UTC where the stamps name a zone."""
  times = []
  for number, cell in enumerate(cells, 2):
    try:
      time = datetime.datetime.fromisoformat(cell.strip())
    except ValueError:
      raise types.InputError(
        f'{path}: {cell!r} in line {number} of column {name!r} is no time.'
      ) from None
    if time.microsecond:
      raise types.InputError(f'{path}: {seriess.FRACTIONS}')
    if time.tzinfo is not None:
      time = time.astimezone(datetime.UTC).replace(tzinfo=None)
    times.append(time)
  return np.array(times, 'datetime64[s]')
