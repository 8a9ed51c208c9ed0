"""Host side: the folders in which WILDS' sets are published.

Nothing is downloaded: the host of the archives has been away for months at a
time. Each set is a folder, `<name>_v<version>`, with the tables and inputs that
PyPI's `wilds` unpacks.
"""

from collections.abc import Callable
from collections.abc import Sequence
import csv
import dataclasses
import pathlib
import sys

import numpy as np

from repjax import files
from repjax import types
from repjax.data.reading import source as sources

URL = 'https://wilds.stanford.edu/downloads'
_DEFAULT = '~/wilds'


def locate(folder: str, root: str, *, needs: Sequence[str]) -> pathlib.Path:
  """The folder of a published set.

  Args:
    folder: `<name>_v<version>`.
    root: Where such folders are; '' means ~/wilds.
    needs: What must be in it, relative to it.

  Raises:
    InputError: Something is not there; says what to place where.
  """
  place = files.path_of(root or _DEFAULT) / folder
  for name in needs:
    if not (place / name).exists():
      raise types.InputError(
        f'{place / name} is not there: unpack {folder} of WILDS ({URL}, or a '
        f'copy of it) so that {place} holds {", ".join(needs)}, or give '
        'another --data_dir; --preset=small needs no data.'
      )
  return pathlib.Path(place)


def read_table(
  path: pathlib.Path, columns: Sequence[str]
) -> dict[str, np.ndarray]:
  """Some columns of a CSV file with a header, as text.

  Args:
    path: Of the file.
    columns: Names of those that are kept.

  Returns:
    Name -> array of str, one a row.

  Raises:
    InputError: A column is missing, there are no rows, or one is cut short.
  """
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Long comments.
  try:
    with path.open(encoding='utf-8', newline='') as stream:
      reader = csv.reader(stream)
      header = next(reader, [])
      missing = [x for x in columns if x not in header]
      if missing:
        raise types.InputError(
          f'{path} has no column {missing[0]!r}; it has {", ".join(header)}: '
          'it is of another version of the set.'
        )
      at = [header.index(x) for x in columns]
      kept: list[list[str]] = [[] for _ in at]
      for row in reader:
        if len(row) != len(header):
          raise types.InputError(
            f'Line {reader.line_num} of {path} has {len(row)} fields, not the '
            f'{len(header)} of its header: the file is damaged.'
          )
        for values, i in zip(kept, at, strict=True):
          values.append(row[i])
  except (UnicodeDecodeError, csv.Error) as error:
    raise types.InputError(
      f'{path} cannot be read ({error}): the file is damaged.'
    ) from error
  if not kept[0]:
    raise types.InputError(f'{path} has no rows.')
  return {
    name: np.array(values, object)
    for name, values in zip(columns, kept, strict=True)
  }


def whole(values: np.ndarray, *, what: str) -> np.ndarray:
  """Texts as int64; '3.0' is 3."""
  numbers = real(values, what=what)
  rounded = np.where(np.isnan(numbers), 0.0, numbers).astype(np.int64)
  if (rounded != numbers).any():
    row = int((rounded != numbers).argmax())
    raise types.InputError(
      f'{what} in row {row} is {values[row]!r}, no whole number.'
    )
  return rounded


def real(values: np.ndarray, *, what: str) -> np.ndarray:
  """Texts as float64; an empty one is NaN."""
  try:
    return np.array([float(x) if x else np.nan for x in values], np.float64)
  except ValueError as error:
    raise types.InputError(f'{what} holds what is no number: {error}') from None


def codes(values: np.ndarray, known: Sequence[str], *, what: str) -> np.ndarray:
  """The place of each value in `known`, int64."""
  place = {x: i for i, x in enumerate(known)}
  for row, x in enumerate(values):
    if x not in place:
      raise types.InputError(
        f'{what} in row {row} is {x!r}, none of the {len(place)} that WILDS '
        'has: it is of another version of the set.'
      )
  return np.array([place[x] for x in values], np.int64)


def subsampled(
  rows: np.ndarray, number: int, *, seed: int, rest: bool = False
) -> np.ndarray:
  """The rows that PyPI's `wilds` draws with this seed (`subsample_idxs`)."""
  rows = rows.copy()
  np.random.default_rng(seed + 541433).shuffle(rows)
  return rows[number:] if rest else rows[:number]


# Inputs. Callable classes, so that workers can unpickle them.


@dataclasses.dataclass(frozen=True)
class _Files:
  """Bytes of the image files of rows."""

  folder: pathlib.Path
  name: Callable[[int], str]

  def __call__(self, indices):
    found = np.empty(len(indices), object)
    for i, row in enumerate(indices):
      found[i] = _read(self.folder / self.name(int(row)))
    return {'image': found}


@dataclasses.dataclass(frozen=True)
class _Named:
  """Names that a table gives."""

  names: np.ndarray

  def __call__(self, row):
    return self.names[row]


@dataclasses.dataclass(frozen=True)
class _Numbered:
  """Names that hold the number of a row of the table."""

  numbers: np.ndarray
  form: str

  def __call__(self, row):
    return self.form.format(self.numbers[row])


@dataclasses.dataclass(frozen=True)
class _Npz:
  """float32 images [H, W, C] of .npz files that hold [C, H, W] as 'x'."""

  folder: pathlib.Path
  form: str
  without_last: bool

  def __call__(self, indices):
    images = []
    for row in indices:
      path = self.folder / self.form.format(int(row))
      try:
        with np.load(path) as stored:
          image = stored['x'].astype(np.float32)
      except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
      if self.without_last:
        image[-1] = 0
      images.append(image.transpose(1, 2, 0))
    return {'image': np.stack(images) if images else np.empty((0, 0, 0, 0))}


@dataclasses.dataclass(frozen=True)
class _Texts:
  texts: np.ndarray

  def __call__(self, indices):
    return {'text': self.texts[indices]}


def image_files(
  name: str,
  folder: pathlib.Path,
  names: np.ndarray,
  shape: tuple[int | None, int | None, int],
) -> sources.Source:
  """Rows of image files.

  Args:
    name: For messages.
    folder: Where they are.
    names: One a row, relative to `folder`.
    shape: (H, W, C); None where they differ.
  """
  return _source(name, len(names), _Files(folder, _Named(names)), shape)


def numbered_files(
  name: str,
  folder: pathlib.Path,
  numbers: np.ndarray,
  form: str,
  shape: tuple[int | None, int | None, int],
) -> sources.Source:
  """Rows of image files whose names hold a number: form 'rgb_img_{}.png'."""
  reader = _Files(folder, _Numbered(numbers, form))
  return _source(name, len(numbers), reader, shape)


def arrays(
  name: str,
  folder: pathlib.Path,
  num_rows: int,
  form: str,
  shape: tuple[int, int, int],
  *,
  without_last: bool = False,
) -> sources.Source:
  """Rows of .npz files, channels first; `without_last` zeroes one of them."""
  made = _source(name, num_rows, _Npz(folder, form, without_last), shape)
  return dataclasses.replace(made, encoded={})


def texts(name: str, values: np.ndarray) -> sources.Source:
  """Rows of text: a column 'text' of UTF-8 bytes."""
  encoded = np.empty(len(values), object)
  encoded[:] = [x.encode() for x in values]
  made = _source(name, len(values), _Texts(encoded), (None, None, 0))
  return dataclasses.replace(made, encoded={})


def _source(name, num_rows, reader, shape):
  return sources.Source(
    name=name,
    version='',
    split='',
    num_rows=num_rows,
    num_classes=None,
    class_names=None,
    image_shape=None if None in shape else shape,
    reader=reader,
    encoded={'image': shape},
  )


def _read(path):
  try:
    return path.read_bytes()
  except OSError as error:
    raise _unreadable(path, error) from error


def _unreadable(path, error):
  return types.InputError(
    f'{path} cannot be read ({error}): the archive was not unpacked as a whole.'
  )
