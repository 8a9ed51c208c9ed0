"""Host side: rows in NumPy's files.

    digits.npz   image [N, H, W, C] (or x) and label [N] (or y); image_train,
                 label_train, image_test, label_test, if there are splits
    digits/      train.npz, test.npz; or one .npy file a column

'image' is uint8; rows of other numbers are called 'features' [N, D], 'tokens'
[N, L] or 'series' [N, L, C] by the models that read them.
"""

from collections.abc import Mapping
import pathlib
import zipfile

import numpy as np

from repjax import types
from repjax.data.own import rows
from repjax.data.own import tables
from repjax.data.reading import source

_USUAL = {'y': 'label', 'labels': 'label', 'images': 'image'}


def read(
  path: pathlib.Path,
  *,
  renamed: Mapping[str, str] | None = None,
  needs_label: bool = True,
) -> rows.Rows:
  """The rows of an .npz file, or of a folder of .npz or .npy files.

  Args:
    path: Of either.
    renamed: Column -> what the files call it.
    needs_label: Whether a file is refused that has not the array that `renamed`
      takes for it.

  Raises:
    InputError: A file cannot be read, arrays differ in length, or one is of a
      kind that no model reads.
  """
  parts = {
    split: _named(columns, renamed or {}, str(path), needs_label)
    for split, columns in _parts(path).items()
  }
  first = next(iter(parts.values()))
  for split, columns in parts.items():
    if set(columns) != set(first):
      raise types.InputError(
        f'{path}: the split {split} has the arrays {", ".join(sorted(columns))}'
        f', another {", ".join(sorted(first))}.'
      )
    lengths = {name: len(x) for name, x in columns.items()}
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
      raise types.InputError(
        f'{path} needs arrays of one length above 0, got {lengths}.'
      )
  whole = {}
  for name in first:
    shapes = {columns[name].shape[1:] for columns in parts.values()}
    if len(shapes) > 1:
      raise types.InputError(
        f'{path}: {name} has rows of different shapes: {sorted(shapes)}.'
      )
    pieces = [columns[name] for columns in parts.values()]
    whole[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
  labels = whole.pop('label', None)
  if not whole:
    raise types.InputError(f'{path} has no array besides the label.')
  num = len(next(iter(whole.values())))
  splits = [s for s, x in parts.items() for _ in next(iter(x.values()))]
  ordered = [np.ascontiguousarray(x) for x in whole.values()]
  return rows.Rows(
    source=source.from_arrays(
      path.name, {k: _column(path, k, x) for k, x in whole.items()}, split=''
    ),
    labels=None if labels is None else _labels(path, labels),
    splits=np.array(splits, object),
    names=[f'{path.name}[{i}]' for i in range(num)],
    order=np.array(
      [rows.digest(*(x[i].tobytes() for x in ordered)) for i in range(num)],
      np.uint64,
    ),
  )


def _parts(path):
  """Split -> name -> array, '' where there is no split."""
  if not path.is_dir():
    return _of_suffixes(_npz(path))
  if any(x.suffix == '.npy' for x in path.iterdir()):
    return {'': {x.stem: _npy(x) for x in sorted(path.glob('*.npy'))}}
  files = rows.split_files(path, ('.npz',))
  if '' in files:
    return _of_suffixes(_npz(files['']))
  return {split: _npz(file) for split, file in files.items()}


def _of_suffixes(columns):
  """x_train, y_train, x_test, y_test by their splits."""
  ends = {name: name.rpartition('_')[2] for name in columns}
  if not columns or not all(x in rows.SPLITS for x in ends.values()):
    return {'': columns}
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, values in columns.items():
    column = name.rpartition('_')[0]
    part = found.setdefault(rows.SPLITS[ends[name]], {})
    if column in part:
      raise types.InputError(
        f'{name} and another array are both {column!r} of the split '
        f'{rows.SPLITS[ends[name]]}: keep one of them.'
      )
    part[column] = values
  return found


def _npz(path):
  if not path.is_file():
    raise types.InputError(f'There is no file {path}: give --data_dir one.')
  if not zipfile.is_zipfile(path):
    raise types.InputError(
      f'{path} cannot be read as an .npz file: it is another one, or damaged. '
      'numpy.savez writes such.'
    )
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found = {name: np.asarray(arrays[name]) for name in arrays}
  # Objects are pickles, which are refused; a damaged archive is none.
  except Exception as error:
    raise types.InputError(
      f'{path} cannot be read as an .npz file of arrays of numbers: {error}'
    ) from error
  if not found:
    raise types.InputError(f'{path} has no arrays.')
  return found


def _npy(path):
  try:
    return np.load(path, allow_pickle=False, mmap_mode='r')
  except (OSError, ValueError, EOFError) as error:
    raise types.InputError(
      f'{path} cannot be read as an .npy file of numbers: {error}'
    ) from error


def _named(columns, renamed, title, needs_label):
  """Columns by the names that they have in batches."""
  for name, old in renamed.items():
    if old not in columns and (needs_label or name != 'label'):
      raise types.InputError(
        f'{title} has no array {old!r}, which --config.data.name takes for '
        f'{name}; it has {", ".join(columns)}.'
      )
  moved = rows.by_old_name(renamed)
  made = {}
  for name, values in columns.items():
    if not values.ndim:
      raise types.InputError(f'{title}: {name} is one number, and has no rows.')
    new = moved.get(name, _USUAL.get(name, name))
    if new == 'x':
      picture = values.dtype == np.uint8 and values.ndim in (3, 4)
      new = 'image' if picture else 'features'
    if new in renamed and name not in moved:
      continue  # Another array was asked for in its place.
    if new in made:
      raise types.InputError(f'{title} has two arrays for {new}.')
    made[new] = values
  return made


def _labels(path, labels):
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1 or labels.dtype.kind not in 'iubUS':
    raise types.InputError(
      f'{path}: label holds one class a row, as a whole number or a text; got '
      f'{labels.dtype} {labels.shape}.'
    )
  texts = (x.decode() if isinstance(x, bytes) else str(x) for x in labels)
  try:
    return np.fromiter(texts, object, len(labels))
  except UnicodeDecodeError as error:
    raise types.InputError(
      f'{path}: label holds texts that are no UTF-8 ({error.object!r}): write '
      'them as such, or number the classes.'
    ) from error


def _column(path, name, values):
  """One column as batches have it."""
  if name == 'image':
    if values.ndim == 3:
      values = values[..., None]
    if values.dtype != np.uint8 or values.ndim != 4:
      raise types.InputError(
        f'{path}: images are uint8 [N, H, W, C], grey values of 0 to 255; got '
        f'{values.dtype} {values.shape}.'
      )
    _, height, _, num_channels = values.shape
    if not values[0].size or (num_channels > 4 and height in (1, 3, 4)):
      raise types.InputError(
        f'{path}: images are [N, H, W, C], the channels last; got '
        f'{values.shape}.'
      )
    return values
  kind = values.dtype.kind
  if kind not in 'iubf':
    raise types.InputError(f'{path}: {name} holds no numbers: {values.dtype}.')
  if kind == 'f':
    with np.errstate(over='ignore'):  # What float32 does not hold is infinite.
      narrow = np.asarray(values, np.float32)
    if not np.isfinite(narrow).all():
      raise types.InputError(f'{path}: {name} has NaN or infinite values.')
    _check_apart(path, name, values)
    return narrow
  if (
    values.size and max(abs(int(values.max())), abs(int(values.min()))) >= 2**31
  ):
    raise types.InputError(f'{path}: {name} has numbers of 2^31 and more.')
  if name in ('features', 'series'):
    _check_apart(path, name, values)
  return np.asarray(values, np.int32)


def _check_apart(path, name, values):
  """Refuses numbers of which float32 makes one."""
  if values.dtype.itemsize <= (4 if values.dtype.kind == 'f' else 2):
    return
  width = values.shape[-1] if values.ndim > 1 else 1
  for i, column in enumerate(values.reshape(-1, width).T):
    if tables.are_lost(column):
      raise types.InputError(
        f'{path}: float32 does not tell the numbers of {name}[..., {i}] apart, '
        f'such as {column[0]}: subtract a constant from them.'
      )
