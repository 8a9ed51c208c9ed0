"""Host side: decoded columns on disk, read through memory maps.

Parsing and decoding a small image set takes half a minute, reading the
decoded arrays a fraction of a second. A cache folder holds one .npy file a
column (text and arrays of varying length: two, values and offsets) and
`manifest.json` with a checksum a file. It gets its name when it is complete,
and it is never changed after that. Deleting it is always safe.
"""

from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import socket
import time
import uuid
import zlib

from absl import logging
import numpy as np

from repjax import files
from repjax import types

_WORK = '.unfinished-'  # How names of folders begin that are no cache yet.
_CHUNK = 512  # Rows that one thread decodes at a time.
_THREADS = min(8, os.cpu_count() or 1)  # Parsing holds Python's lock.
_FORMAT = 1  # Part of every folder's name; raise it when the files change.


def folder() -> pathlib.Path:
  """Where repjax keeps what it can make again: $REPJAX_CACHE."""
  default = os.environ.get('REPJAX_CACHE') or '~/.cache/repjax'
  return pathlib.Path(default).expanduser()


def columns(
  key: str,
  read: Callable[[np.ndarray], dict[str, np.ndarray]],
  num_rows: int,
) -> 'MappedColumns':
  """The reader of cached columns; decodes and writes them where needed.

  Safe when several processes call it at once: each writes a folder of its
  own, and the first to finish gives it its name.

  Args:
    key: Path of the cache folder below `folder()`; must change whenever what
      `read` returns does.
    read: (indices [n]) -> name -> n values; arrays of numbers, or object
      arrays of bytes or of arrays that differ in their first dimension only.
    num_rows: Number of rows to read.

  Raises:
    InputError: If the cache cannot be written.
  """
  place = folder() / 'decoded' / f'{key}-v{_FORMAT}'
  if place.exists():
    if _is_sound(place):
      return MappedColumns(place)
    logging.warning('The cache %s is damaged and is built again.', place)
  try:
    with workplace(place.parent) as work:
      _build(work, read, num_rows, title=key)
      _publish(work, place)
  except OSError as error:
    raise types.InputError(
      f'The decoded rows cannot be kept in {place.parent}: {error}; set '
      '$REPJAX_CACHE to a folder with enough room that can be written.'
    ) from error
  return MappedColumns(place)


@contextlib.contextmanager
def workplace(parent: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder in `parent`, which does not outlive its process for long.

  It is removed at the end unless it was renamed; if its process is killed, then
  by the next one that works there.
  """
  parent.mkdir(parents=True, exist_ok=True)
  remove_left(parent, f'{_WORK}*')
  host = socket.gethostname()
  work = parent / f'{_WORK}{host}-{uuid.uuid4().hex}'
  work.mkdir()
  file = os.open(work, os.O_RDONLY)
  try:
    files.is_free(file)  # Locks it.
    yield work
  finally:
    shutil.rmtree(work, ignore_errors=True)
    os.close(file)


def remove_left(parent: pathlib.Path, pattern: str) -> None:
  """Removes folders that killed processes have left unfinished.

  That is, those in which nothing was written for a day; or for a minute, where
  they were made here and nobody holds their lock.
  """
  for folder in parent.glob(pattern):
    try:
      written = max(x.stat().st_mtime for x in (folder, *folder.rglob('*')))
      age = time.time() - written
      here = folder.name.rpartition('-')[0] == _WORK + socket.gethostname()
      if age > 86400 or (age > 60 and here and not _is_held(folder)):
        logging.info('Removing %s, which was never finished.', folder)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # Another process was faster.
      continue


def _is_held(folder):
  file = os.open(folder, os.O_RDONLY)
  try:
    return files.is_free(file) is not True
  finally:
    os.close(file)


@dataclasses.dataclass(frozen=True)
class MappedColumns:
  """Reads rows of a cache folder; a copy in another process maps it anew."""

  place: pathlib.Path

  def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {name: take(indices) for name, take in self._columns.items()}

  def __getstate__(self):
    return {'place': self.place}

  @functools.cached_property
  def _columns(self):
    manifest = json.loads((self.place / 'manifest.json').read_text('utf-8'))
    return {
      name: _READERS[column['kind']](
        *(_map(self.place / file) for file in column['files'])
      )
      for name, column in manifest['columns'].items()
    }


def _map(file):
  # An empty file cannot be mapped; `asarray` drops the slower memmap class.
  mapped = np.load(file, mmap_mode='r' if file.stat().st_size > 256 else None)
  return np.asarray(mapped)


def _fixed(values):
  return lambda indices: values[indices]


def _ragged(values, offsets):
  def take(indices):
    rows = [values[offsets[i] : offsets[i + 1]] for i in indices]
    return np.fromiter(rows, object, len(rows))

  return take


def _bytes(values, offsets):
  def take(indices):
    rows = [values[offsets[i] : offsets[i + 1]].tobytes() for i in indices]
    return np.fromiter(rows, object, len(rows))

  return take


_READERS = {'fixed': _fixed, 'ragged': _ragged, 'bytes': _bytes}


def _build(work, read, num_rows, title):
  """Decodes all rows with threads and writes them in order."""
  started = time.monotonic()
  reported = started - 1  # The first line comes after one second.
  starts = range(0, num_rows, _CHUNK)
  writers = {}
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    chunks = pool.map(
      lambda start: read(np.arange(start, min(start + _CHUNK, num_rows))),
      starts,
    )
    try:
      for start, chunk in zip(starts, chunks, strict=True):
        for name, values in chunk.items():
          if name not in writers:
            writers[name] = _writer(work / str(len(writers)), values, num_rows)
          writers[name].write(start, values)
        now = time.monotonic()
        if now - reported > 2:
          logging.info(
            'Decoding %s, once: %s of %s rows, %s a second',
            title,
            f'{start:,}',
            f'{num_rows:,}',
            f'{start / (now - started):,.0f}',
          )
          reported = now
    finally:
      pool.shutdown(cancel_futures=True)  # Do not decode on after an error.
  entries = {name: writer.close() for name, writer in writers.items()}
  files = [file for entry in entries.values() for file in entry['files']]
  manifest = {
    'columns': entries,
    'crc32': {file: _crc32(work / file) for file in files},
  }
  (work / 'manifest.json').write_text(json.dumps(manifest), 'utf-8')


def _writer(stem, values, num_rows):
  if values.dtype != object:
    return _FixedWriter(stem, values, num_rows)
  return _RaggedWriter(stem, values)


class _FixedWriter:
  """Writes rows of one shape into an .npy file.

  Not by mapping it: a disk that is full would end the process by a signal.
  """

  def __init__(self, stem, values, num_rows):
    self._file = stem.with_suffix('.npy')
    header = dict(
      descr=np.lib.format.dtype_to_descr(values.dtype),
      fortran_order=False,
      shape=(num_rows, *values.shape[1:]),
    )
    with open(self._file, 'wb') as file:
      np.lib.format.write_array_header_1_0(file, header)

  def write(self, start, values):
    del start  # Rows come in order.
    with open(self._file, 'ab') as file:
      file.write(np.ascontiguousarray(values).tobytes())

  def close(self):
    return {'kind': 'fixed', 'files': [self._file.name]}


class _RaggedWriter:
  """Writes bytes or one-dimensional arrays, one after the other."""

  def __init__(self, stem, values):
    self._stem = stem
    self._kind = 'bytes' if isinstance(values[0], bytes) else 'ragged'
    self._rows = []

  def write(self, start, values):
    del start  # Rows come in order.
    if self._kind == 'bytes':
      values = [np.frombuffer(x, np.uint8) for x in values]
    self._rows.extend(values)

  def close(self):
    offsets = np.cumsum([0, *(len(x) for x in self._rows)])
    files = [f'{self._stem.name}.npy', f'{self._stem.name}.offsets.npy']
    np.save(self._stem.parent / files[0], np.concatenate(self._rows))
    np.save(self._stem.parent / files[1], offsets)
    return {'kind': self._kind, 'files': files}


def _publish(work, place):
  """Gives a complete folder its name, unless a sound one has it already."""
  try:
    os.rename(work, place)
  except OSError:
    if place.exists() and _is_sound(place):
      return  # Another process was faster.
    with workplace(place.parent) as damaged:
      os.rename(place, damaged / 'damaged')
      os.rename(work, place)


def _is_sound(place):
  try:
    manifest = json.loads((place / 'manifest.json').read_text('utf-8'))
    return all(
      _crc32(place / file) == value for file, value in manifest['crc32'].items()
    )
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _crc32(file):
  value = 0
  with file.open('rb') as stream:
    while block := stream.read(1 << 22):
      value = zlib.crc32(block, value)
  return value
