"""Host side: adds array_record files to a set prepared as TFRecord.

Both hold the same serialised examples, so this needs neither TensorFlow nor a
new download, only room for a second copy.
"""

from collections.abc import Iterator
import json
import os
import pathlib
import struct
from typing import Any

from absl import logging

from repjax import types


def add_array_record(builder: Any) -> None:
  """Converts all shards of a prepared set, in its own folder.

  Args:
    builder: Read-only TFDS builder of a set whose file format is TFRecord.

  Raises:
    InputError: If the folder cannot be written or a shard is damaged.
  """
  folder = pathlib.Path(builder.data_dir)
  try:
    for split in builder.info.splits.values():
      paths = [pathlib.Path(path) for path in split.filepaths]
      for path, length in zip(paths, split.shard_lengths, strict=True):
        logging.info('Converting %s', path)
        _convert(path, length)
    _register(folder / 'dataset_info.json')
  except OSError as error:
    raise types.InputError(
      f'{folder} cannot be converted: {error}; copy it to a folder that can '
      'be written and give that one with --data_dir.'
    ) from error


def read(path: pathlib.Path) -> Iterator[bytes]:
  """The records of a TFRecord file.

  Each is stored as its length (uint64), a checksum of that (uint32), the
  data, and a checksum of the data (uint32), little-endian.

  Raises:
    InputError: If the file is cut off or a checksum does not fit.
  """
  damaged = types.InputError(
    f'{path} is cut off or damaged; prepare the set again.'
  )
  left = path.stat().st_size
  with path.open('rb') as stream:
    while header := stream.read(12):
      if len(header) < 12:
        raise damaged
      length, checksum = struct.unpack('<QI', header)
      left -= 12 + length + 4
      # Before so many bytes are asked for.
      if left < 0 or checksum != _masked_crc32c(header[:8]):
        raise damaged
      record = stream.read(length)
      (checksum,) = struct.unpack('<I', stream.read(4))
      if checksum != _masked_crc32c(record):
        raise damaged
      yield record


def _masked_crc32c(content):
  """As TFRecord stores it: rotated, and a constant added."""
  import google_crc32c

  crc = google_crc32c.value(content)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _convert(path, length):
  from array_record.python import array_record_module

  new = path.with_name(path.name.replace('.tfrecord', '.array_record'))
  part = path.with_name(f'.{new.name}.{os.getpid()}.part')
  try:
    writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
    count = 0
    for record in read(path):
      writer.write(record)
      count += 1
    writer.close()
    if count != length:
      raise types.InputError(
        f'{path} has {count} records instead of {length}; prepare the set '
        'again.'
      )
    os.replace(part, new)
  finally:
    part.unlink(missing_ok=True)


def _register(file):
  """Tells TFDS, last of all, that the new files are there."""
  info = json.loads(file.read_text('utf-8'))
  formats = info.setdefault('alternativeFileFormats', [])
  if 'array_record' not in formats:
    formats.append('array_record')
  part = file.with_name(f'.{file.name}.{os.getpid()}.part')
  part.write_text(json.dumps(info, indent=2), 'utf-8')
  os.replace(part, file)
