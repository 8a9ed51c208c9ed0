"""The cache of decoded columns: same rows, damage found, no half files."""

import fcntl
import os
import pickle
import resource
import shutil
import socket
import threading
import time

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import cache

_ROWS = 1200  # More than two chunks.


def row_values(i):
  return {
    'image': np.full((2, 3, 1), i % 256, np.uint8),
    'label': i % 7,
    'text': b'x' * (i % 5) + b'\0',
    'series': np.arange(i % 3, dtype=np.float32),
  }


def read(indices):
  """The slow way to the same columns."""
  rows = [row_values(int(i)) for i in indices]
  objects = {
    name: np.fromiter([row[name] for row in rows], object, len(rows))
    for name in ('text', 'series')
  }
  return {
    'image': np.stack([row['image'] for row in rows]),
    'label': np.array([row['label'] for row in rows], np.int32),
    **objects,
  }


def same(first, second):
  assert first.keys() == second.keys()
  for name, values in first.items():
    assert values.dtype == second[name].dtype
    for a, b in zip(values, second[name], strict=True):
      if isinstance(a, bytes):
        assert a == b  # NumPy would ignore zeros at the end.
      else:
        np.testing.assert_array_equal(a, b)


def never(indices):
  raise AssertionError('the cache was not used')


@pytest.fixture
def key(request):
  return f'test/{request.node.name}'


def place(key):
  return cache.folder() / 'decoded' / f'{key}-v1'


def test_cached_rows_are_the_rows(key):
  indices = np.array([0, 1199, 511, 512, 3, 3])
  built = cache.columns(key, read, _ROWS)
  same(built(indices), read(indices))
  found = cache.columns(key, never, _ROWS)
  same(found(indices), read(indices))
  same(pickle.loads(pickle.dumps(found))(indices), read(indices))
  same(found(indices[:0]), {k: x[:0] for k, x in read(indices).items()})


def test_a_pickle_holds_no_rows(key):
  reader = cache.columns(key, read, _ROWS)
  reader(np.arange(9))
  assert len(pickle.dumps(reader)) < 1000


def test_text_may_be_empty_everywhere(key):
  def blank(indices):
    return {'text': np.fromiter([b''] * len(indices), object, len(indices))}

  for reader in (cache.columns(key, blank, 5), cache.columns(key, never, 5)):
    assert reader(np.arange(5))['text'].tolist() == [b''] * 5


@pytest.mark.parametrize('damage', ['cut', 'flip', 'delete', 'manifest'])
def test_damage_is_found_and_repaired(key, damage):
  cache.columns(key, read, _ROWS)
  files = sorted(place(key).glob('*.npy'), key=lambda f: f.stat().st_size)
  content = bytearray(files[-1].read_bytes())
  if damage == 'cut':
    files[-1].write_bytes(content[:-100])
  elif damage == 'flip':
    content[-5] ^= 1
    files[-1].write_bytes(content)
  elif damage == 'delete':
    files[-1].unlink()
  else:
    (place(key) / 'manifest.json').write_text('{"columns": {}')
  reads = []

  def counted(indices):
    reads.append(len(indices))
    return read(indices)

  reader = cache.columns(key, counted, _ROWS)
  assert sum(reads) == _ROWS
  same(reader(np.arange(_ROWS)), read(np.arange(_ROWS)))
  cache.columns(key, never, _ROWS)


def test_an_error_while_building_leaves_nothing_behind(key):
  def fail_late(indices):
    if indices[0] > 600:
      raise types.InputError('row 1024 is broken')
    return read(indices)

  with pytest.raises(types.InputError, match='row 1024 is broken'):
    cache.columns(key, fail_late, _ROWS)
  assert not place(key).exists()
  assert not list(place(key).parent.glob('.*'))
  cache.columns(key, read, _ROWS)


def test_several_builders_at_once_agree(key):
  meet = threading.Barrier(3)
  readers = []

  def build():
    def together(indices):
      if indices[0] == 0:
        meet.wait(20)  # All have found no cache before one is finished.
      return read(indices)

    readers.append(cache.columns(key, together, _ROWS))

  threads = [threading.Thread(target=build) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(readers) == 3
  for reader in readers:
    same(reader(np.arange(_ROWS)), read(np.arange(_ROWS)))
  assert [path.name for path in place(key).parent.glob('*several*')] == [
    place(key).name
  ]
  assert not list(place(key).parent.glob('.*'))


def test_a_folder_that_cannot_be_written_names_the_variable(
  tmp_path, monkeypatch
):
  blocker = tmp_path / 'file'
  blocker.write_text('')
  monkeypatch.setenv('REPJAX_CACHE', str(blocker))
  with pytest.raises(types.InputError, match=r'set \$REPJAX_CACHE'):
    cache.columns('any', read, 5)


def _left(parent, host, *, age):
  """A folder that nobody has finished, last written so many seconds ago."""
  folder = parent / f'.unfinished-{host}-{age}'
  folder.mkdir(parents=True)
  (folder / '0.npy').write_bytes(b'x')
  for path in (folder / '0.npy', folder):
    os.utime(path, (time.time() - age,) * 2)
  return folder


def test_a_full_disk_is_told(key):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(types.InputError, match='folder with enough room'):
      cache.columns(key, lambda rows: {'x': rows.astype(np.int32)}, 1000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_killed_processes_left_is_removed(key):
  parent = place(key).parent
  here = socket.gethostname()
  killed = _left(parent, here, age=120)
  ancient = _left(parent, 'elsewhere', age=100_000)
  running = _left(parent, here, age=130)
  kept = [
    _left(parent, here, age=2),
    *(_left(parent, x, age=120) for x in ('elsewhere', f'{here}-2')),
  ]
  file = os.open(running, os.O_RDONLY)
  fcntl.flock(file, fcntl.LOCK_EX)  # As who builds it holds it.
  try:
    cache.columns(key, read, _ROWS)
  finally:
    os.close(file)
  assert not killed.exists()
  assert not ancient.exists()
  for folder in (running, *kept):
    assert folder.exists()
    shutil.rmtree(folder)
  assert not list(parent.glob('.*'))


def test_the_folder_that_is_being_built_is_held(tmp_path):
  with cache.workplace(tmp_path) as work:
    os.utime(work, (0, time.time() - 120))
    with cache.workplace(tmp_path) as other:
      assert work.exists()
      assert other != work
  assert not list(tmp_path.iterdir())
