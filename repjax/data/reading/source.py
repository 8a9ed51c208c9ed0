"""Host side: the rows of one split of a data set, read by index.

`load` reads sets that TFDS has prepared as array_record, without TensorFlow
and without network, and files of one's own (`data.own`); `from_arrays` wraps
arrays in memory. All give a `Source`, which worker processes can get.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

from repjax import types
from repjax.data.reading import cache
from repjax.data.reading import decode as decoding
from repjax.data.reading import prepared
from repjax.data.reading import records

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
  """Rows of a data set by index.

  Attributes:
    name: As TFDS writes it, for example 'mnist' or 'glue/sst2'.
    version: '3.0.1'; '' for arrays in memory.
    split: As TFDS writes it, for example 'train[:10%]'.
    num_rows: Number of rows, > 0.
    num_classes: Classes of the column 'label'; None where it is not a class.
    class_names: One name a class, or None.
    image_shape: (H, W, C) of the column 'image', or None where images differ
      in size or there are none.
    reader: (indices [n]) -> name -> n values.
    encoded: Columns that `reader` returns as bytes of image files, and their
      shapes (H, W, C), with None for what differs between rows.
  """

  name: str
  version: str
  split: str
  num_rows: int
  num_classes: int | None
  class_names: tuple[str, ...] | None
  image_shape: tuple[int, int, int] | None
  reader: Callable[[np.ndarray], Columns]
  encoded: Mapping[str, tuple[int | None, ...]]

  def __len__(self) -> int:
    return self.num_rows

  @property
  def num_channels(self) -> int | None:
    """Channels of the column 'image', also where images differ in size."""
    shape = self.image_shape or self.encoded.get('image')
    return None if shape is None else shape[-1]

  def check_images(self) -> None:
    """Raises InputError for a set without a column 'image'."""
    if self.num_channels is None:
      raise types.InputError(
        f'{self.name} has no images: give a --config.data.name that has.'
      )

  def read(
    self,
    indices: Any,
    *,
    decode: decoding.Decode | None = None,
    draws: np.ndarray | None = None,
  ) -> Columns:
    """Reads rows.

    Args:
      indices: Integers in [0, num_rows), [n]; may repeat.
      decode: What makes an array of one size of each image; the default
        leaves images as they are.
      draws: Uniform numbers for `decode`, [n, decode.num_draws]; may be left
        out where it uses none.

    Returns:
      Name -> n values: stacked where all rows have one shape ('image' uint8
      [n, H, W, C], 'label' int32 [n]), else an object array [n] of arrays.
      Text is an object array of bytes.

    Raises:
      InputError: If a record cannot be read or an image cannot be decoded.
      IndexError: If an index is out of range.
    """
    indices = self._check(indices)
    columns = dict(self.reader(indices))
    for name, shape in self.encoded.items():
      if decode is None or name != 'image':
        images = self._decode(columns[name], shape, _WHOLE, None, indices)
        stacks = images and None not in shape
        columns[name] = np.stack(images) if stacks else _objects(images)
    if decode is not None:
      if 'image' not in columns:
        raise types.InputError(f'{self.name} has no images to decode.')
      size = self.encoded.get('image')
      images = self._decode(columns['image'], size, decode, draws, indices)
      columns['image'] = np.stack(images) if images else _objects(images)
    return columns

  def column(self, name: str) -> np.ndarray:
    """All values of one column; parses every record of a set without cache."""
    from repjax.data.reading import in_memory  # Not a part of every program.

    known = in_memory.column(self, name)
    if known is not None:
      return known
    read = self.read if name in self.encoded else self.reader
    parts = []
    # In parts, since the other columns are read, too.
    for start in range(0, len(self), 4096):
      columns = read(np.arange(start, min(start + 4096, len(self))))
      if name not in columns:
        raise types.InputError(
          f'{self.name} has no column {name!r}; it has {sorted(columns)}.'
        )
      parts.append(columns[name])
    return np.concatenate(parts)

  def columns(self) -> dict[str, np.ndarray]:
    """All rows, column by column; of a small set, and numbers alone."""
    return {
      name: x
      for name, x in self.read(np.arange(len(self))).items()
      if np.issubdtype(x.dtype, np.number)
    }

  def select(self, rows: Any) -> 'Source':
    """The source of these rows only, in this order."""
    rows = self._check(rows)
    if not rows.size:
      raise types.InputError(f'No row of {self.name} {self.split} is selected.')
    return dataclasses.replace(
      self, num_rows=len(rows), reader=_Selection(self.reader, rows)
    )

  def with_columns(self, **columns: np.ndarray) -> 'Source':
    """The same rows with columns added or replaced, [num_rows, ...] each."""
    for name, values in columns.items():
      if len(values) != self.num_rows:
        raise ValueError(
          f'{name} must have {self.num_rows} rows, got {len(values)}'
        )
    _check_labels(columns, self)
    image_shape = self.image_shape
    if 'image' in columns:
      image_shape = columns['image'].shape[1:]
    return dataclasses.replace(
      self,
      reader=_Overlay(self.reader, columns),
      image_shape=image_shape,
      encoded={k: v for k, v in self.encoded.items() if k not in columns},
    )

  def _check(self, indices):
    indices = np.asarray(indices)
    if not indices.size:
      indices = indices.astype(np.int64)  # [] is an array of floats.
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
      raise ValueError(
        f'indices must be integers [n], got {indices.dtype} {indices.shape}'
      )
    if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
      raise IndexError(
        f'{self.name} {self.split} has rows 0 to {len(self) - 1}, got '
        f'{indices.min()} to {indices.max()}'
      )
    return indices

  def _decode(self, values, shape, decode, draws, rows):
    """Applies `decode` to the images of one column, one after the other."""
    if draws is None:
      draws = np.empty((len(rows), 0))
    if draws.shape != (len(rows), decode.num_draws):
      raise ValueError(
        f'draws must be [{len(rows)}, {decode.num_draws}], got {draws.shape}'
      )
    images = []
    for row, value, row_draws in zip(rows, values, draws, strict=True):
      # Pillow's decoders raise many kinds of errors for a damaged file.
      try:
        picture = decoding.to_picture(value, shape and shape[-1])
        images.append(decode.apply(picture, row_draws))
      except Exception as error:
        raise types.InputError(
          f'The image of row {row} of {self.name} {self.split} cannot be '
          f'decoded: {error}'
        ) from error
    return images


def from_arrays(
  name: str,
  columns: Mapping[str, Any],
  *,
  num_classes: int | None = None,
  class_names: Sequence[str] | None = None,
  split: str = 'train',
) -> Source:
  """The source of arrays in memory.

  >>> pixels = np.zeros((3, 8, 8, 1), np.uint8)
  >>> blank = from_arrays('blank', {'image': pixels})
  >>> len(blank), blank.image_shape
  (3, (8, 8, 1))

  Args:
    name: For messages.
    columns: Name -> [num_rows, ...].
    num_classes: Classes of the column 'label'.
    class_names: One name a class.
    split: For messages.

  Raises:
    InputError: If there are no rows, columns differ in length, or a label is
      not in [0, num_classes).
  """
  columns = {key: np.asarray(values) for key, values in columns.items()}
  lengths = {key: len(values) for key, values in columns.items()}
  if len(set(lengths.values())) != 1 or not min(lengths.values()):
    raise types.InputError(
      f'{name} needs columns of one length above 0, got {lengths}.'
    )
  label = columns.get('label')
  if label is not None and np.issubdtype(label.dtype, np.integer):
    columns['label'] = label.astype(np.int32)
  image = columns.get('image')
  source = Source(
    name=name,
    version='',
    split=split,
    num_rows=min(lengths.values()),
    num_classes=num_classes,
    class_names=None if class_names is None else tuple(class_names),
    image_shape=image.shape[1:]
    if image is not None and image.ndim == 4
    else None,
    reader=_Arrays(columns),
    encoded={},
  )
  _check_labels(columns, source)
  return source


def load(
  name: str, split: str, *, data_dir: str = '', cache_limit: int = 4 << 30
) -> Source:
  """Opens one split of a prepared TFDS set, an embedded one, or own files.

  Nothing is downloaded. A set whose decoded rows take at most `cache_limit`
  bytes is decoded once and kept in the cache folder ($REPJAX_CACHE, or
  ~/.cache/repjax). Records of a larger one, and of one whose images differ in
  size, are parsed and decoded whenever they are read.

  Args:
    name: As TFDS writes it: 'mnist', 'glue/sst2', 'mnist:3.0.1'. Without a
      version, the highest one that is there. 'digits', 'handwriting' (with the
      column 'author') and 'python_topics' are embedded; 'folder', 'csv',
      'jsonl' and 'npz' are own (`own.names`).
    split: As TFDS writes it: 'train', 'train[:10%]', 'train+test'.
    data_dir: Folder of prepared sets, may be read-only; '' means
      $TFDS_DATA_DIR, or ~/tensorflow_datasets. Own files, or their folder.
    cache_limit: In bytes.

  Raises:
    InputError: If the set or the split is not there, is empty, has no random
      access, or is damaged.
  """
  if prepared.is_own(name, split):
    from repjax.data.own import opening

    return opening.load(name, split, data_dir=data_dir)
  builder = prepared.find(name, data_dir=data_dir)
  info = records.split_info(builder, split, name=name)
  tensors = records.tensors(builder)
  image = tensors.get('image')
  source = Source(
    name=name,
    version=str(builder.version),
    split=split,
    num_rows=info.num_examples,
    num_classes=records.num_classes(builder),
    class_names=records.class_names(builder),
    image_shape=image.shape
    if image is not None and image.is_fixed and len(image.shape) == 3
    else None,
    reader=records.reader(builder, split, name=name),
    encoded=records.encoded_images(builder),
  )
  if not all(x.is_fixed or x.is_ragged for x in tensors.values()):
    return source
  fixed = [x for x in tensors.values() if x.is_fixed]
  row_bytes = sum(x.dtype.itemsize * math.prod(x.shape) for x in fixed)
  # What ragged columns take is known only roughly: as much as on disk.
  if row_bytes * len(source) + info.num_bytes > cache_limit:
    return source
  key = f'{builder.info.full_name}/' + re.sub(r'[^\w.+-]', '_', split)[:60]
  key += f'-{prepared.fingerprint(builder, split)}'
  reader = cache.columns(key, source.read, len(source))
  return dataclasses.replace(source, reader=reader, encoded={})


def _check_labels(columns, source):
  records.check_labels(
    columns,
    source.num_classes,
    title=f'{source.name} {source.split}',
    rows=np.arange(len(source)),
  )


_WHOLE = decoding.Decode(0, lambda picture, draws: decoding.to_array(picture))
_objects = records.as_objects


@dataclasses.dataclass(frozen=True)
class _Arrays:
  columns: Mapping[str, np.ndarray]

  def __call__(self, indices):
    return {name: values[indices] for name, values in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class _Selection:
  reader: Callable[[np.ndarray], Columns]
  rows: np.ndarray

  def __call__(self, indices):
    return self.reader(self.rows[indices])


@dataclasses.dataclass(frozen=True)
class _Overlay:
  reader: Callable[[np.ndarray], Columns]
  columns: Mapping[str, np.ndarray]

  def __call__(self, indices):
    new = {name: values[indices] for name, values in self.columns.items()}
    return {**self.reader(indices), **new}
