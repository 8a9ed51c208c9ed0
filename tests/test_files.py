"""Files are whole or not there; a folder is written by one process."""

import json
import logging
import os
import pathlib
import resource
import signal
import socket

import numpy as np
import pytest

from repjax import files
from repjax import types


def test_a_file_is_replaced_whole_and_is_on_the_disk_first(
  tmp_path, monkeypatch
):
  path, seen = tmp_path / 'a.json', []
  files.write_json(path, {'x': 1})
  synced = os.fsync

  def fsync(file):
    seen.append((os.readlink(f'/proc/self/fd/{file}'), path.read_text()))
    synced(file)

  monkeypatch.setattr(os, 'fsync', fsync)
  files.write_json(path, {'x': 2})
  # First what is in the file, then what is in the folder.
  (first, before), (second, after) = seen
  assert (first, second) == (f'{path}.partial', str(tmp_path))
  assert (json.loads(before), json.loads(after)) == ({'x': 1}, {'x': 2})
  with pytest.raises(TypeError):
    files.write_json(path, {'x': object()})
  assert os.listdir(tmp_path) == ['a.json']
  assert files.read_json(path, 'x') == {'x': 2}


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'x': 1})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError, match=rf"File too large: '{path}'"):
      files.write_json(path, {'x': 'y' * 2000})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert files.read_json(path) == {'x': 1}
  assert os.listdir(tmp_path) == ['a.json']


def test_json_never_holds_what_is_no_json(tmp_path):
  path = tmp_path / 'a.json'
  values = {'a': np.nan, 'b': [np.float32(np.inf), 1.5], 'c': np.array([1.0])}
  files.write_json(path, values)
  found = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert found == {'a': None, 'b': [None, 1.5], 'c': [1.0]}


@pytest.mark.parametrize('content', [b'{"a', b'\xff\xfe', b'[1]', b'{"b": 1}'])
def test_a_damaged_file_is_named(tmp_path, content):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(types.InputError, match=rf'{path} (is damaged|cannot)'):
    files.read_json(path, 'a')
  assert files.read_json_if_whole(path, 'a') is None


def test_the_home_is_known_everywhere(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert files.path_of('~/x') == tmp_path / 'x'
  files.write_arrays('~/made/x.npz', x=np.arange(3))
  assert [x.name for x in tmp_path.iterdir()] == ['made']


def _enter(folder):
  with files.locked(folder, '--workdir'):
    pass


def _holder(tmp_path, **changes):
  me = dict(host=socket.gethostname(), machine=files.machine(), pid=1)
  made = {**me, 'since': '2026-01-02T03:04:05+00:00', **changes}
  (tmp_path / files.LOCK).write_text(json.dumps(made))


def test_a_folder_is_held_by_one_until_it_leaves(tmp_path):
  with (
    files.locked(tmp_path, '--workdir'),
    pytest.raises(types.InputError, match=rf'process {os.getpid()}, sinc'),
  ):
    _enter(tmp_path)
  assert not list(tmp_path.iterdir())
  _enter(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, caplog):
  read, write = os.pipe()
  child = os.fork()
  if not child:
    with files.locked(tmp_path, '--workdir'):
      os.write(write, b'x')
      signal.pause()
  os.read(read, 1)
  with pytest.raises(types.InputError, match=rf'process {child}, .*wait for'):
    _enter(tmp_path)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  with files.locked(tmp_path, '--workdir'):
    held = json.loads((tmp_path / files.LOCK).read_text())
  assert held['pid'] == os.getpid()


@pytest.mark.parametrize('unlocked', [False, True])
def test_another_machine_is_believed(tmp_path, monkeypatch, unlocked):
  if unlocked:  # A file system without locks.
    monkeypatch.setattr(files, 'is_free', lambda file: None)
  _holder(tmp_path, host='elsewhere', machine='other')
  with pytest.raises(types.InputError, match=r'elsewhere.*delete .*lock\.jso'):
    _enter(tmp_path)
  # One that was started anew, and one that was killed as it wrote.
  _holder(tmp_path, machine='before', pid=2**22 + 1)
  _enter(tmp_path)
  (tmp_path / files.LOCK).write_text('{"ho')
  _enter(tmp_path)


def test_a_job_that_was_queued_again_takes_its_lock_over(tmp_path, monkeypatch):
  there = dict(host='elsewhere', machine='other', job='7', start=0)
  _holder(tmp_path, **there)
  for job, count in (('8', '1'), ('7', '0')):
    monkeypatch.setenv('SLURM_JOB_ID', job)
    monkeypatch.setenv('SLURM_RESTART_COUNT', count)
    with pytest.raises(types.InputError, match='elsewhere'):
      _enter(tmp_path)
  monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
  _enter(tmp_path)


def test_without_locks_a_process_that_lives_is_respected(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'is_free', lambda file: None)
  _holder(tmp_path, pid=os.getppid())
  with pytest.raises(types.InputError, match='wait for it'):
    _enter(tmp_path)


@pytest.mark.parametrize('home', ['/home/me', '/'])
def test_a_log_names_no_place_of_one_machine(home, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pathlib.Path, 'home', lambda: pathlib.Path(home))
  record = logging.LogRecord(
    *('x', logging.INFO, '', 0),
    'from %s: /home/me/sets, /home/melon/b, /mnt/home/me/c, /old%s/d, %s',
    (tmp_path / 'a' / 'b', tmp_path, '/data'),
    None,
  )
  sets = '~/sets' if home != '/' else '/home/me/sets'
  assert files.PortableFormatter('%(levelname)s %(message)s').format(
    record
  ) == (
    f'INFO from a/b: {sets}, /home/melon/b, /mnt/home/me/c, /old{tmp_path}/d, '
    '/data'
  )
