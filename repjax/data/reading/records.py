"""Host side: parsing the records of a prepared TFDS set."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import types


class Tensor(NamedTuple):
  """Shape and NumPy type of one column; None where rows differ."""

  shape: tuple[Any, ...]
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
  """TFDS's description of a split: at least one row, none of them twice."""
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
      f"The split '{split}' of {name} has no rows; its splits are {known}."
    )
  ends: dict[str, int] = {}
  for part in sorted(info.file_instructions, key=lambda x: x.skip):
    size = part.examples_in_shard - part.skip if part.take < 0 else part.take
    if part.skip < ends.get(part.filename, 0):
      raise types.InputError(
        f"The split '{split}' of {name} has rows more than once, so that they "
        'would count as several: give parts that do not overlap.'
      )
    ends[part.filename] = part.skip + size
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
      f'{name} {split} cannot be opened; delete {builder.data_dir} and '
      f'prepare the set again. ({error})'
    ) from error
  columns = tensors(builder)
  for image in encoded:
    columns[image] = Tensor((), np.dtype(object))
  return Records(
    title=f'{name} {split}',
    folder=str(builder.data_dir),
    files=files,
    columns=columns,
    num_classes=num_classes(builder),
  )


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
    folder: Where the files lie, for messages.
    files: TFDS's random access to the records.
    columns: What the records hold.
    num_classes: Classes of the column 'label', or None.
  """

  title: str
  folder: str
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
        f'read; delete {self.folder} and prepare the set again. ({error})'
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
