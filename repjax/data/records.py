"""Host side: finding a prepared TFDS set and parsing its records.

Nothing is ever downloaded here: a set that is not there is an error that says
how to prepare it. TFDS is imported when a set is opened.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import shlex
import shutil
from typing import Any
from typing import NamedTuple
import uuid

from absl import logging
import numpy as np

from repjax import types
from repjax.data import cache

_NAME = re.compile(
  r'(?P<set>[A-Za-z]\w*)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?'
)


def embedded(name: str) -> Any:
  """The builder class of a set that comes with repjax, or None."""
  if name.partition(':')[0] == 'digits':
    from repjax.data import digits

    return digits.Digits
  return None


def root(data_dir: str = '') -> pathlib.Path:
  """The folder of prepared sets; '' is TFDS's default."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(data_dir or default).expanduser()


def find(name: str, *, data_dir: str = '') -> Any:
  """The read-only TFDS builder of a prepared set.

  An embedded set is prepared first, into the cache folder.

  Raises:
    InputError: If the set is not there, or not with random access.
  """
  import tensorflow_datasets as tfds

  builder_class = embedded(name)
  if builder_class is None:
    folder = root(data_dir)
  else:
    folder = prepare_embedded(builder_class)
  builder = tfds.builder_from_directory(_newest(name, folder))
  formats = {x.value for x in builder.info.available_file_formats()}
  if 'array_record' not in formats:
    raise types.InputError(
      f'{name} is prepared in {builder.data_dir} as '
      f'{", ".join(sorted(formats))}, which has no random access; convert it '
      f'once with `{_prepare_command(name, folder)}`.'
    )
  return builder


def prepare_embedded(builder_class: Any) -> pathlib.Path:
  """Prepares an embedded set in the cache folder, once; returns the root.

  Several processes may do this at the same time: each writes a folder of its
  own, and the first to finish gives it its name.
  """
  folder = cache.folder() / 'tfds'
  place = folder / builder_class.name / str(builder_class.VERSION)
  if place.exists():
    return folder
  logging.info('Preparing %s in %s, once.', builder_class.name, folder)
  work = folder / f'.preparing-{uuid.uuid4().hex}'
  try:
    with open(os.devnull, 'w') as silence, contextlib.redirect_stdout(silence):
      builder = builder_class(data_dir=work)
      builder.download_and_prepare(file_format='array_record')
    place.parent.mkdir(exist_ok=True)
    os.rename(builder.data_dir, place)
  except OSError as error:
    if not place.exists():
      raise types.InputError(
        f'{builder_class.name} cannot be prepared in {folder}: {error}; set '
        '$REPJAX_CACHE to a folder that can be written.'
      ) from error
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return folder


def _newest(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Where the (highest) version of a set lies."""
  match = _NAME.fullmatch(name)
  if match is None:
    raise types.InputError(
      f"'{name}' is not the name of a data set; names look like mnist, "
      'glue/sst2 or mnist:3.0.1.'
    )
  parent = folder / match['set'] / (match['config'] or '')
  versions = [
    path.parent
    for path in parent.glob(f'{match["version"] or "*"}/features.json')
  ]
  if versions:
    return max(versions, key=lambda path: _version_key(path.name))
  present = sorted(
    str(path.parent.relative_to(folder))
    for path in (folder / match['set']).glob('**/features.json')
  )
  there = f' (found there: {", ".join(present)})' if present else ''
  raise types.InputError(
    f'The data set {name} is not prepared in {folder}{there}. Prepare it once '
    f'with `{_prepare_command(name, folder)}`, or use digits, which comes with '
    'repjax and needs nothing.'
  )


def _version_key(version):
  return [int(x) for x in re.findall(r'\d+', version)]


def _prepare_command(name, folder):
  return (
    f'python -m launch.prepare --name={name} '
    f'--data_dir={shlex.quote(str(folder))}'
  )


class Tensor(NamedTuple):
  """Shape and NumPy type of one column; None where rows differ."""

  shape: tuple[int | None, ...]
  dtype: Any

  @property
  def is_fixed(self) -> bool:
    """Whether all rows can be stacked to one array of numbers."""
    return self.dtype != object and None not in self.shape

  @property
  def is_ragged(self) -> bool:
    """Whether rows are bytes, or numbers that differ in their first size."""
    if self.dtype == object:
      return not self.shape
    return self.shape[:1] == (None,) and None not in self.shape[1:]


def tensors(builder: Any) -> dict[str, Tensor]:
  """The columns of a set; nested features are named 'outer/inner'."""
  info = dict(_flatten(builder.info.features.get_tensor_info()))
  columns = {k: Tensor(x.shape, np.dtype(x.np_dtype)) for k, x in info.items()}
  label = columns.get('label')
  if label is not None and np.issubdtype(label.dtype, np.integer):
    columns['label'] = label._replace(dtype=np.dtype(np.int32))
  return columns


def encoded_images(builder: Any) -> dict[str, tuple[int | None, ...]]:
  """Shapes of the columns that `Records` leaves encoded."""
  import tensorflow_datasets as tfds

  return {
    name: feature.shape
    for name, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
    and np.dtype(feature.np_dtype) == np.uint8
    and feature.shape[-1] in (1, 3, 4)
  }


def split_info(builder: Any, split: str, *, name: str) -> Any:
  """TFDS's description of a split, which has at least one row."""
  known = ', '.join(builder.info.splits) or 'none'
  try:
    info = builder.info.splits[split]
    num_rows = info.num_examples
  except (KeyError, ValueError, AssertionError) as error:
    reason = ' '.join(str(error).split())
    raise types.InputError(
      f"{name} has no split '{split}'; it has {known}, and parts of them such "
      f"as 'train[:10%]'. ({reason})"
    ) from error
  if num_rows <= 0:
    raise types.InputError(
      f"The split '{split}' of {name} is empty; its splits are {known}."
    )
  return info


def reader(builder: Any, split: str, *, name: str) -> 'Records':
  """The reader of a split's records."""
  import tensorflow_datasets as tfds

  encoded = encoded_images(builder)
  try:
    files = builder.as_data_source(
      split=split,
      file_format='array_record',
      decoders={image: tfds.decode.SkipDecoding() for image in encoded} or None,
    )
  except (OSError, ValueError, RuntimeError) as error:
    raise types.InputError(
      f'{name} {split}: the files in {builder.data_dir} cannot be opened; '
      f'delete that folder and prepare the set again. ({error})'
    ) from error
  columns = tensors(builder)
  for image in encoded:
    columns[image] = Tensor((), np.dtype(object))
  return Records(f'{name} {split}', files, columns, num_classes(builder))


def num_classes(builder: Any) -> int | None:
  """Classes of the column 'label'; None where it holds something else."""
  import tensorflow_datasets as tfds

  label = dict(builder.info.features.items()).get('label')
  if isinstance(label, tfds.features.ClassLabel):
    return label.num_classes
  return None


def class_names(builder: Any) -> tuple[str, ...] | None:
  """Names of the classes of the column 'label'."""
  if num_classes(builder) is None:
    return None
  return tuple(builder.info.features['label'].names)


@dataclasses.dataclass(frozen=True)
class Records:
  """Reads and parses records of one split; images stay encoded.

  Attributes:
    title: Name and split, for messages.
    files: TFDS's random access to the records.
    columns: What the records hold.
    num_classes: Of the column 'label', or None.
  """

  title: str
  files: Any
  columns: Mapping[str, Tensor]
  num_classes: int | None

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    # Damaged files raise whatever the reader and the parser raise.
    try:
      rows = self.files.__getitems__(indices.tolist())
      rows = [dict(_flatten(row)) for row in rows]
    except Exception as error:
      raise types.InputError(
        f'{self.title}: rows {indices.min()} to {indices.max()} cannot be '
        'read, so the prepared files are damaged; delete them and prepare '
        f'the set again. ({error})'
      ) from error
    columns = {
      name: np.array([row[name] for row in rows], column.dtype)
      if column.is_fixed
      else as_objects([row[name] for row in rows])
      for name, column in self.columns.items()
    }
    check_labels(columns, self.num_classes, title=self.title, rows=indices)
    return columns


def as_objects(values: Sequence[Any]) -> np.ndarray:
  """An object array [n] of n values, whatever they are."""
  return np.fromiter(values, object, len(values))


def _flatten(tree, prefix='') -> Iterator[tuple[str, Any]]:
  """(name, leaf) of nested mappings; names are joined by '/'."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{key}/')
    else:
      yield prefix + key, value


def check_labels(
  columns: Mapping[str, np.ndarray],
  num_classes: int | None,
  *,
  title: str,
  rows: np.ndarray,
) -> None:
  """Raises InputError where column 'label' holds no class index."""
  if num_classes is None or 'label' not in columns:
    return
  labels = columns['label']
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    raise types.InputError(
      f"{title}: 'label' of row {rows[wrong[0]]} is {labels[wrong[0]]}, "
      f'outside [0, {num_classes}); a split without labels cannot be used.'
    )


def fingerprint(builder: Any, split_info: Any) -> str:
  """Changes whenever the prepared files of a split do."""
  folder = pathlib.Path(builder.data_dir)
  digest = hashlib.sha256()
  for name in ('dataset_info.json', 'features.json'):
    digest.update((folder / name).read_bytes())
  for instruction in split_info.file_instructions:
    file = pathlib.Path(instruction.filename)
    status = file.stat()
    rows = (instruction.skip, instruction.take)
    digest.update(
      f'{file.name} {rows} {status.st_size} {status.st_mtime_ns}'.encode()
    )
  return digest.hexdigest()[:16]
