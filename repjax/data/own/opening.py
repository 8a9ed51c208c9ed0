"""Host side: files of one's own as a split, of their own set or of another.

The split 'labelled:PATH' of any set is the files at PATH with the classes of
that set, to evaluate on them what was trained on it; 'inputs:PATH' is the same
for files without labels, to predict.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from repjax import types
from repjax.data.own import arrays
from repjax.data.own import folders
from repjax.data.own import names
from repjax.data.own import rows
from repjax.data.own import sets
from repjax.data.own import tables
from repjax.data.reading import prepared
from repjax.data.reading import records
from repjax.data.reading import source


def load(name: str, split: str, *, data_dir: str) -> source.Source:
  """A split of files of one's own; what `source.load` calls for such.

  Args:
    name: Of the set, which is own files, or any other one.
    split: Of own files, or 'inputs:PATH' or 'labelled:PATH'.
    data_dir: Where the set is.

  Raises:
    InputError: Files cannot be read, or do not fit the set.
  """
  marker, _, place = split.partition(':')
  if marker not in (prepared.INPUTS, prepared.LABELLED):
    return sets.load(name, split, data_dir=data_dir)
  like = _training_rows(name, data_dir)
  path = pathlib.Path(place).expanduser()
  needs_label = marker == prepared.LABELLED
  read = _read(path, name, like, needs_label)
  made = _filled(read.source, like, path)
  if like.num_classes is None:
    return dataclasses.replace(made, name=name, split=split)
  if not needs_label:
    # Nothing is measured by it, but batches have the columns of the set.
    labels = np.zeros(len(made), np.int32)
    made = dataclasses.replace(
      made.with_columns(label=labels),
      num_classes=like.num_classes,
      class_names=like.class_names,
    )
  else:
    if read.labels is None:
      raise types.InputError(
        f'{path} has no labels to evaluate by: give folders of classes, or a '
        'column label; launch.predict needs none.'
      )
    classes = like.class_names or tuple(map(str, range(like.num_classes)))
    made = sets.labelled(made, read.labels, classes, title=str(path))
  return dataclasses.replace(made, name=name, split=split)


class Named(NamedTuple):
  """What files call their rows and columns.

  Attributes:
    rows: One name a row: a file, or a file and a line.
    columns: Those that the files have, but for the label.
  """

  rows: Sequence[str]
  columns: Sequence[str]


def named(name: str, split: str, *, data_dir: str) -> Named:
  """The names of a split 'inputs:PATH' or 'labelled:PATH'; see `load`."""
  marker, _, place = split.partition(':')
  like = _training_rows(name, data_dir)
  path = pathlib.Path(place).expanduser()
  read = _read(path, name, like, marker == prepared.LABELLED)
  return Named(read.names, list(read.source.read([0])))


def _training_rows(name, data_dir):
  """Rows of the set, which say what columns and classes it has."""
  if name.partition(':')[0] in names.KINDS:
    return sets.load(name, 'train', data_dir=data_dir)
  builder = prepared.find(name, data_dir=data_dir)
  return source.load(name, next(iter(builder.info.splits)), data_dir=data_dir)


def _read(path, name, like, needs_label) -> rows.Rows:
  """The rows of files, read by what they are."""
  if not path.exists():
    raise types.InputError(f'There is no file or folder {path}.')
  own = name.partition(':')[0] in names.KINDS
  said = names.parse(name) if own else names.Name('', {})
  suffixes = {path.suffix.lower()}
  if path.is_dir():
    suffixes = {x.suffix.lower() for x in path.iterdir() if x.is_file()}
    if like.num_channels is not None and folders.has_images(path):
      suffixes = set()  # Notes beside them are no rows.
  for kind, known in tables.SUFFIXES.items():
    if suffixes & set(known):
      return tables.read(
        path,
        kind,
        renamed=said.renamed,
        features=_features(said, like),
        texts=_texts(like),
        needs_label=needs_label,
      )
  if suffixes & {'.npz', '.npy'}:
    return arrays.read(path, renamed=said.renamed, needs_label=needs_label)
  if suffixes & {'.txt'}:
    if path.is_dir():
      raise types.InputError(
        f'{path} is a folder of texts: give one file, a text a line.'
      )
    return tables.lines(path, _text_columns(like, path))
  if not path.is_dir() and path.suffix.lower() not in folders.SUFFIXES:
    raise types.InputError(
      f'{path} is no file that is read here: images, .csv, .tsv, .jsonl, .txt, '
      '.npz, or a folder of such.'
    )
  like.check_images()
  if needs_label and not path.is_dir():
    raise types.InputError(
      f'{path} is one image, without a label: give a folder that has a folder '
      'of images for each class.'
    )
  read = folders.read if needs_label else folders.read_unlabelled
  return read(path, unreadable=said.unreadable, channels=like.num_channels or 0)


def _features(said, like):
  """Columns that are the features of a table, in the order of the set."""
  first = like.read([0])
  if said.kind not in tables.SUFFIXES or 'features' not in first:
    return ()
  if 'features' in said.renamed:
    return said.renamed['features'].split('+')
  return tables.feature_names(first)


def _texts(like):
  """Columns of texts of a set."""
  first = like.read([0])
  return [k for k, x in first.items() if x.dtype == object and k != 'image']


def _text_columns(like, path):
  """Where lines of text go: a run reads one of these columns."""
  texts = _texts(like)
  if not texts:
    raise types.InputError(
      f'{path} has lines of text, and {like.name} no column of texts: give '
      'files like those that the run was trained on.'
    )
  return texts


def _filled(made, like, path):
  """Rows with all columns of a set: what inputs do not have is empty."""
  there, wanted = made.read([0]), like.read([0])
  inputs = {k for k, x in wanted.items() if x.dtype == object}
  inputs |= set(wanted) & set(types.INPUTS)
  if inputs and not inputs & set(there):
    raise types.InputError(
      f'{path} has the columns {", ".join(there)}, and none of those of '
      f'{like.name}, {", ".join(sorted(inputs))}: call them so.'
    )
  for name in sorted(set(wanted) & set(there)):
    if (wanted[name].dtype == object) != (there[name].dtype == object):
      if name == 'image':
        continue  # Sizes may differ, where a run resizes images.
      raise types.InputError(
        f'{path}: the column {name!r} holds '
        f'{"numbers" if wanted[name].dtype == object else "texts"}, that of '
        f'{like.name} does not.'
      )
  lacking = {k: x for k, x in wanted.items() if k not in there and k != 'label'}
  if not lacking:
    return made
  logging.warning(
    '%s has no column %s, which %s has: they are taken as empty.',
    path,
    ', '.join(lacking),
    like.name,
  )
  return made.with_columns(
    **{
      name: records.as_objects([b''] * len(made))
      if x.dtype == object
      else np.zeros((len(made), *x.shape[1:]), x.dtype)
      for name, x in lacking.items()
    }
  )
