"""Host side: files that are whole or not there, and folders of one process.

What is replaced is on the disk before it gets its name, so that neither a kill
nor a power cut leaves half of it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import datetime
import fcntl
import json
import logging as python_logging
import math
import os
import pathlib
import re
import socket
from typing import Any

from absl import logging
import numpy as np

from repjax import types

# The name of a lock in the folder that is locked.
LOCK = 'lock.json'


def path_of(path: str | os.PathLike) -> pathlib.Path:
  """An absolute path; '~' is the user's home."""
  return pathlib.Path(path).expanduser().absolute()


class PortableFormatter(python_logging.Formatter):
  """Log lines without the places of one machine, since records are shared.

  Paths below the working directory begin there, those below home with '~'.
  """

  def format(self, record: python_logging.LogRecord) -> str:
    """The line of a record."""
    text = super().format(record)
    for place, name in (pathlib.Path.cwd(), ''), (pathlib.Path.home(), '~/'):
      if place != pathlib.Path(place.anchor):
        # But not where the name of a longer path ends like this one.
        text = re.sub(
          rf'(?<![\w.~-]){re.escape(f"{place}{os.sep}")}', name, text
        )
    return text


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A path to write to, which becomes `path` when all went well."""
  path = pathlib.Path(path).expanduser()
  partial = path.with_name(f'{path.name}.partial')
  try:
    with naming(path):
      yield partial
      _sync(partial)
      partial.replace(path)
    with contextlib.suppress(OSError):  # Not every system has it of folders.
      _sync(path.parent)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Errors of the system that name no file name this one, as on a full disk."""
  try:
    yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def replace(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file whole or not at all; see `plain`."""
  replace(path, json.dumps(plain(value), indent=2, allow_nan=False) + '\n')


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
  """Writes an npz file whole or not at all; makes its folder."""
  path_of(path).parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as partial, open(partial, 'wb') as file:
    np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """All arrays of an npz file.

  Raises:
    InputError: If it is missing or damaged.
  """
  try:
    with open(path, 'rb') as file, np.load(file) as stored:
      return {name: np.asarray(stored[name]) for name in stored.files}
  except Exception as error:  # Whatever a damaged archive makes of itself.
    raise types.InputError(
      f'{path} is missing or damaged ({error}): give it, or another place.'
    ) from error


def json_line(value: Any) -> str:
  """One line of JSON; see `plain`."""
  return json.dumps(plain(value), allow_nan=False) + '\n'


def plain(tree: Any) -> Any:
  """Scalars and arrays as what JSON knows: NaN and infinity are None.

  >>> plain({'loss': np.float32(0.5), 'perplexity': np.inf})
  {'loss': 0.5, 'perplexity': None}
  """
  if isinstance(tree, Mapping):
    return {str(name): plain(x) for name, x in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [plain(x) for x in tree]
  if hasattr(tree, '__array__'):
    return plain(np.asarray(tree).tolist())
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def read_json(path: str | os.PathLike, *fields: str) -> dict[str, Any]:
  """The object in a JSON file.

  Args:
    path: The file.
    *fields: What the object must have.

  Raises:
    InputError: It cannot be read, or is no such object; names the file.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise types.InputError(f'{path} cannot be read: {error}') from error
  if not isinstance(found, dict):
    raise types.InputError(f'{path} is damaged: it holds no JSON object')
  missing = [name for name in fields if name not in found]
  if missing:
    raise types.InputError(f'{path} is damaged: it has no {missing[0]!r}')
  return found


def read_json_if_whole(
  path: str | os.PathLike, *fields: str
) -> dict[str, Any] | None:
  """As `read_json`; None, and a warning, for one that is damaged or missing."""
  if not pathlib.Path(path).exists():
    return None
  try:
    return read_json(path, *fields)
  except types.InputError as error:
    logging.warning('%s; it is made again', error)
    return None


@contextlib.contextmanager
def locked(folder: str | os.PathLike, flag: str) -> Iterator[None]:
  """Keeps other processes out of a folder that this one writes.

  The lock is a file that says who holds it. On one machine the system frees it
  when its process ends, however that ends, and the next one takes it over.

  Args:
    folder: That is locked; exists.
    flag: That names the folder, for the error: '--workdir'.

  Raises:
    InputError: Another process works there, or one on another machine did and
      has left its lock behind. (What SLURM has queued again takes its own
      over.)
  """
  path = pathlib.Path(folder) / LOCK
  file = _lock(path, flag)
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(file)


def is_free(file: int) -> bool | None:
  """Locks an open file or folder.

  Returns:
    Whether nobody else held it; None where the file system has no locks.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True


def machine() -> str:
  """Tells this machine from others, containers on it being one with it."""
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  return boot.read_text().strip() if boot.exists() else socket.gethostname()


def _lock(path, flag) -> int:
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      free = is_free(file)
      if free and not _is_at(file, path):
        os.close(file)  # Its holder has just removed it: there is a new one.
        continue
      _refuse_or_take_over(file, free, path, flag)
      now = datetime.datetime.now(datetime.UTC)
      me = {
        'host': socket.gethostname(),
        'machine': machine(),
        'pid': os.getpid(),
        'since': now.isoformat(timespec='seconds'),
        **_slurm_job(),
      }
      os.truncate(file, 0)
      os.pwrite(file, json.dumps(me).encode(), 0)
      return file
    except BaseException:
      os.close(file)
      raise


def _refuse_or_take_over(file, free, path, flag):
  try:
    holder = json.loads(os.pread(file, 4096, 0))
    who = '{host}, process {pid}, since {since}'.format(**holder)
    # After a restart, a machine has another name for itself.
    here = machine() == holder['machine'] or (
      socket.gethostname() == holder['host']
    )
    if not here and _was_requeued(holder):
      here = free = True
    if free is None:
      free = not _is_alive(int(holder['pid']))
  except (ValueError, KeyError, TypeError):  # Killed before it had written.
    who, here = '', True
  if here and free is not False:
    if who:
      logging.warning('%s: taken over from %s, which has ended', path, who)
    return
  remedy = 'wait for it' if here else f'if that has ended, delete {path}'
  raise types.InputError(
    f'{flag}={path.parent} is in use by {who or "another process"}: {remedy}, '
    f'or give another {flag}.'
  )


def _slurm_job():
  job = os.environ.get('SLURM_JOB_ID', '')
  return {'job': job, 'start': int(os.environ.get('SLURM_RESTART_COUNT', 0))}


def _was_requeued(holder):
  """Whether this is the holder's job of SLURM, put on another machine."""
  mine = _slurm_job()
  return (
    mine['job'] != ''
    and mine['job'] == holder['job']
    and mine['start'] > holder['start']
  )


def _is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # Somebody else's.
  return True


def _is_at(file, path):
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _sync(path):
  file = os.open(path, os.O_RDONLY)
  try:
    os.fsync(file)
  finally:
    os.close(file)
