"""A run's directory: what it was, what it measured, what it looks like.

    config.json     the resolved config, versions, git commit, devices, command
    metrics.jsonl   one object a line, each with its `step`
    events.out.*    the same numbers for TensorBoard (no TensorFlow)
    log.txt         what was printed (log.<i>.txt for process i > 0)
    plots/*.png     figures
    checkpoints/    see `checkpoint.py`
    noise_key       of a private run: secret, see `experiments/private_keys.py`
    report.json     the result; written last, so its presence means done

Only process 0 writes; `log.<i>.txt` is the exception.
"""

from collections.abc import Mapping
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from absl import logging
import jax
import numpy as np

from repjax import types

_PACKAGES = (
  'repjax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'tensorflow-datasets',
  'grain',
  'numpy',
)


class Run:
  """Writes one run's directory."""

  def __init__(self, workdir: str | os.PathLike):
    """Makes the directory.

    Args:
      workdir: Where to write.

    Raises:
      InputError: If nothing can be written there.
    """
    self.workdir = pathlib.Path(workdir).absolute()
    self.is_writer = jax.process_index() == 0
    self._events: Any = None  # A writer of TensorBoard from the first use on.
    try:
      (self.workdir / 'plots').mkdir(parents=True, exist_ok=True)
      probe = self.workdir / f'.probe.{jax.process_index()}'
      probe.write_text('')
      probe.unlink()
    except OSError as error:
      raise types.InputError(
        f'Cannot write to --workdir={workdir} ({error.strerror}): give a '
        'folder that you may write to.'
      ) from error

  def start(self, config: Mapping[str, Any]) -> None:
    """Writes config.json and begins the log file."""
    name = 'log.txt' if self.is_writer else f'log.{jax.process_index()}.txt'
    self._log_to(self.workdir / name)
    if not self.is_writer:
      return
    _write_json(
      self.workdir / 'config.json', {'config': config, **environment()}
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends numbers to metrics.jsonl and the TensorBoard events."""
    if not self.is_writer:
      return
    line = json.dumps({'step': step, **_plain(values)})
    with open(self.workdir / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.write(line + '\n')
    if self._events is None:
      self._events = _tensorboard().SummaryWriter(str(self.workdir))
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def history(self) -> list[dict[str, float]]:
    """The objects of metrics.jsonl; a half-written last line is left out."""
    path = self.workdir / 'metrics.jsonl'
    if not path.exists():
      return []
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        logging.warning('%s: left out the unreadable line %r', path, line[:80])
    return rows

  def truncate(self, step: int) -> None:
    """Forgets numbers of steps after `step`: a resumed run makes them again."""
    path = self.workdir / 'metrics.jsonl'
    if not self.is_writer or not path.exists():
      return
    kept = [row for row in self.history() if row['step'] <= step]
    _replace(path, ''.join(json.dumps(row) + '\n' for row in kept))

  def figure(self, name: str, figure: Any) -> pathlib.Path:
    """Saves a matplotlib figure as plots/<name>.png."""
    path = self.workdir / 'plots' / f'{name}.png'
    if self.is_writer:
      figure.savefig(path, dpi=120, bbox_inches='tight')
    return path

  def finish(self, result: Mapping[str, Any]) -> None:
    """Writes report.json: the run is done."""
    if self._events is not None:
      self._events.close()
      self._events = None
    if self.is_writer:
      _write_json(self.workdir / 'report.json', result)

  def result(self) -> dict[str, Any] | None:
    """The content of report.json if the run is done, or None."""
    path = self.workdir / 'report.json'
    return json.loads(path.read_text('utf-8')) if path.exists() else None

  def _log_to(self, path):
    import logging as python_logging

    handler = python_logging.FileHandler(path)
    handler.setFormatter(
      python_logging.Formatter('%(asctime)s %(levelname)s %(message)s')
    )
    # On a full disk the console still says all of it; no traceback there.
    handler.handleError = lambda record: None
    # Libraries tell much about themselves; their warnings are enough.
    handler.addFilter(
      lambda record: (
        record.levelno >= python_logging.WARNING
        or 'site-packages' not in record.pathname
        or '/repjax/' in record.pathname
      )
    )
    root = logging.get_absl_logger()
    for old in [
      h for h in root.handlers if isinstance(h, python_logging.FileHandler)
    ]:
      root.removeHandler(old)
      old.close()
    root.addHandler(handler)


def _tensorboard() -> Any:
  """Imports tensorboardX without PyTorch, which it would load for seconds."""
  modules: dict[str, Any] = sys.modules
  hidden = 'torch' not in modules
  if hidden:
    modules['torch'] = None  # Importing it fails now.
  try:
    import tensorboardX
  finally:
    if hidden:
      del modules['torch']
  return tensorboardX


def environment() -> dict[str, Any]:
  """Versions, git commit, devices and command line of this process."""
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return {
    'versions': versions,
    'git': _git_commit(),
    'devices': [str(d) for d in jax.devices()],
    'cores': os.cpu_count(),
    'processes': jax.process_count(),
    'command': [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def _git_commit() -> str:
  """The commit of the package's checkout, '+' if changed; '' outside of one."""
  folder = pathlib.Path(__file__).parent

  def git(*args):
    # Reading the status may not lock the user's index.
    command = ('git', '--no-optional-locks', *args)
    return subprocess.run(
      command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '-s') else '')
  except (OSError, subprocess.CalledProcessError):
    return ''


def _plain(tree: Any) -> Any:
  """NumPy and JAX scalars and arrays as what JSON knows."""
  if isinstance(tree, Mapping):
    return {str(name): _plain(x) for name, x in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [_plain(x) for x in tree]
  if isinstance(tree, (np.ndarray, np.generic, jax.Array)):
    return np.asarray(tree).tolist()
  return tree


def _write_json(path: pathlib.Path, value: Any) -> None:
  _replace(path, json.dumps(_plain(value), indent=2) + '\n')


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)
