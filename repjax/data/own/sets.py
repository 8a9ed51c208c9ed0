"""Host side: files of one's own as a set with splits and classes."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.own import arrays
from repjax.data.own import folders
from repjax.data.own import names
from repjax.data.own import rows
from repjax.data.own import tables
from repjax.data.reading import source


def load(name: str, split: str, *, data_dir: str) -> source.Source:
  """One split of the files that a name and a path say; see `names`.

  Args:
    name: Such as 'folder', 'csv:label=stars' or 'npz:test_share=0.1'.
    split: As TFDS writes it: 'train', 'test', 'train[:10%]', 'train+test'.
    data_dir: The folder, or the one file.

  Raises:
    InputError: The files cannot be read, or have no such split.
  """
  named = names.parse(name)
  if not data_dir:
    what = 'folder of images' if named.kind == 'folder' else 'file'
    raise types.InputError(
      f'--config.data.name={name} needs the {what}: give --data_dir=PATH.'
    )
  path = pathlib.Path(data_dir).expanduser().absolute()
  whole = _open(name, path, _fingerprint(path))
  chosen = _rows_of(split, whole.sizes(), title=f'{named.kind} {path}')
  indices = [whole.splits[x][start:stop] for x, start, stop in chosen]
  return dataclasses.replace(
    whole.source.select(np.concatenate(indices)), name=name, split=split
  )


def from_folder(
  path: str | os.PathLike,
  split: str = 'train',
  *,
  unreadable: str = 'refuse',
  channels: int = 0,
  test_share: float = 0.2,
) -> source.Source:
  """Images of a folder with a sub-folder a class, or with train/ and test/.

  Args:
    path: The folder.
    split: 'train', 'test', 'validation' where there is one, or parts of them
      such as 'train[:10%]'.
    unreadable: 'refuse' images that cannot be read, or 'skip' them.
    channels: 1 for grey, 3 for colours, 0 for what the images have.
    test_share: Part of each class that is the test split where there is none.
  """
  options = f'unreadable={unreadable},channels={channels}'
  name = f'folder:{options},test_share={test_share}'
  return load(name, split, data_dir=os.fspath(path))


def from_table(
  path: str | os.PathLike,
  split: str = 'train',
  *,
  test_share: float = 0.2,
  **columns: str,
) -> source.Source:
  """Rows of a CSV file or of lines of JSON, or of a folder of train and test.

  Args:
    path: Of the file, .csv, .tsv or .jsonl, or of the folder.
    split: Which part, as `from_folder` takes it.
    test_share: Part of each class that is the test split where there is none.
    **columns: Column -> what the file calls it: label='stars'; and
      features='age+height' for numbers side by side.
  """
  place = pathlib.Path(path).expanduser()
  inside = list(place.iterdir()) if place.is_dir() else [place]
  kinds = [
    kind
    for kind, suffixes in tables.SUFFIXES.items()
    if any(x.suffix.lower() in suffixes for x in inside)
  ]
  if not kinds:
    raise types.InputError(
      f'{place} is no table: give a .csv, .tsv or .jsonl file, or a folder '
      'with train.csv and test.csv.'
    )
  options = ','.join(f'{k}={x}' for k, x in columns.items())
  name = f'{kinds[0]}:test_share={test_share}{"," * bool(options)}{options}'
  return load(name, split, data_dir=os.fspath(path))


class _Whole(NamedTuple):
  """All rows of a set, and split -> its rows, with their classes mixed."""

  source: source.Source
  splits: Mapping[str, np.ndarray]

  def sizes(self) -> Mapping[str, int]:
    """Split -> number of rows."""
    return {name: len(x) for name, x in self.splits.items()}


_ORDER = ('train', 'validation', 'test')


@functools.lru_cache(maxsize=4)
def _open(name, path, fingerprint):
  """Reads files; again only where they have changed."""
  del fingerprint
  named = names.parse(name)
  title = f'{named.kind} {path}'
  read = _read(named, path)
  if read.labels is not None:
    rows.classes(read.labels, title=title)  # Refuses what are none.
  read = rows.with_splits(read, test_share=named.test_share, title=title)
  splits = {}
  for split in _ORDER:
    own = np.flatnonzero(read.splits == split)
    if own.size:
      labels = None if read.labels is None else read.labels[own]
      splits[split] = own[rows.mixed(read.order[own], labels)]
  if read.labels is None:
    return _Whole(read.source, splits)
  classes = rows.classes(read.labels[read.splits == 'train'], title=title)
  made = labelled(read.source, read.labels, classes, title=title)
  return _Whole(made, splits)


def _read(named, path) -> rows.Rows:
  """All rows of files of one kind."""
  if named.kind == 'folder':
    return folders.read(
      path, unreadable=named.unreadable, channels=named.channels
    )
  if not path.exists():
    raise types.InputError(
      f'There is no file or folder {path}: give --data_dir one.'
    )
  if named.kind == 'npz':
    return arrays.read(path, renamed=named.renamed)
  return tables.read(path, named.kind, renamed=named.renamed)


def labelled(
  unlabelled: source.Source,
  labels: np.ndarray,
  classes: Sequence[str],
  *,
  title: str,
) -> source.Source:
  """Rows with the column 'label', the place of each label in `classes`."""
  found = rows.indices(labels, classes, title=title)
  return dataclasses.replace(
    unlabelled.with_columns(label=found),
    num_classes=len(classes),
    class_names=tuple(classes),
  )


def _rows_of(split, sizes, *, title):
  """(split, first, last) of the parts of a split, as TFDS writes them."""
  import tensorflow_datasets as tfds

  infos = {
    name: tfds.core.SplitInfo(name=name, shard_lengths=[num], num_bytes=0)
    for name, num in sizes.items()
  }
  shown = ', '.join(f'{name} ({num:,} rows)' for name, num in sizes.items())
  try:
    asked = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, AssertionError, KeyError) as error:
    there = 'test' if 'test' in sizes else next(reversed(sizes))
    raise types.InputError(
      f"{title} has no split '{split}'; it has {shown}, and parts of them such "
      f"as 'train[:10%]': give --config.data.eval_splits=\"('{there}',)\", "
      'say, and a --config.run.best of it.'
    ) from error
  parts = []
  for x in asked:
    stop = sizes[x.splitname] if x.to is None else x.to
    parts.append((x.splitname, x.from_ or 0, stop))
  ends: dict[str, int] = {}
  for name, start, stop in sorted(parts):
    if stop <= start or start < ends.get(name, 0):
      raise types.InputError(
        f"The split '{split}' of {title} has no rows, or rows more than once; "
        f'its splits are {shown}.'
      )
    ends[name] = stop
  return parts


def _fingerprint(path):
  """Changes whenever the files below a path do."""
  if path.is_dir():
    below = sorted(path.rglob('*'))
    # A class may be a link to a folder, into which `rglob` does not go.
    links = [x for x in below if x.is_symlink() and x.is_dir()]
    below += [y for x in links for y in sorted(x.rglob('*'))]
    return folders.fingerprint([x for x in below if x.is_file()])
  return folders.fingerprint([path] if path.exists() else [])
