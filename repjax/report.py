"""A run's directory: what it was, what it measured, what it looks like.

    config.json     the resolved config, versions, git commit, devices, command
    metrics.jsonl   one object a line, each with its `step`
    events.out.*    the same for TensorBoard, and the figures (no TensorFlow)
    tracking.json   which runs of other trackers this one is, see `tracking`
    log.txt         what was printed (log.<i>.txt for process i > 0)
    plots/*.png     figures
    checkpoints/    see `checkpoint.py`
    noise_key       of a private run: secret, see `experiments/private_keys.py`
    report.json     the result; written last, so its presence means done (of a
                    run that went on with another config: report.before.json)
    lock.json       who is writing here; see `files.locked`

Only process 0 writes; `log.<i>.txt` is the exception.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any
from typing import Protocol

from absl import logging
import jax
import PIL.Image

from repjax import files
from repjax import parallel
from repjax import types

_PACKAGES = (
  *('repjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'),
  *('tensorflow-datasets', 'grain', 'numpy'),
)


class Writer(Protocol):
  """Keeps what a run says, besides its directory; see `repjax.tracking`."""

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    """What the run is: field, 'tx.learning_rate', -> value."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """A figure, as a PNG file."""

  def close(self, *, finished: bool) -> None:
    """Nothing more comes, or not before the run goes on."""


class Events:
  """The `Writer` of events for TensorBoard.

  As they come: tensorboardX's thread dies of a full disk, and who waits for it.
  """

  def __init__(self, workdir: pathlib.Path):
    board = _tensorboard()
    self._summary, self._event = board.summary, board.proto.event_pb2
    self._image = board.proto.summary_pb2.Summary
    self._path = workdir / 'events.out'
    with files.naming(self._path):
      self._file = board.event_file_writer.EventsWriter(str(workdir / 'events'))

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    self._write(0, *self._summary.hparams(dict(fields), {}))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._write(step, *(self._summary.scalar(k, x) for k, x in values.items()))

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    with PIL.Image.open(path) as picture:
      width, height = picture.size
    image = self._image.Image(
      height=height,
      width=width,
      colorspace=3,
      encoded_image_string=path.read_bytes(),
    )
    value = self._image.Value(tag=f'plots/{name}', image=image)
    self._write(step, self._image(value=[value]))

  def close(self, *, finished: bool) -> None:
    del finished  # A run that goes on begins a file of its own.
    with files.naming(self._path):
      self._file.close()

  def _write(self, step, *summaries):
    with files.naming(self._path):
      for summary in summaries:
        self._file.write_event(
          self._event.Event(wall_time=time.time(), step=step, summary=summary)
        )
      self._file.flush()


def _tensorboard() -> Any:
  """Imports tensorboardX without PyTorch, which it would load for seconds."""
  modules: dict[str, Any] = sys.modules
  hidden = 'torch' not in modules
  if hidden:
    modules['torch'] = None  # Importing it fails now.
  try:
    import tensorboardX
    import tensorboardX.proto.event_pb2
    import tensorboardX.proto.summary_pb2
  finally:
    if hidden:
      del modules['torch']
  return tensorboardX


class Run:
  """Writes one run's directory."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    track: Callable[[pathlib.Path], Writer] = Events,
    read_only: bool = False,
  ):
    """Makes the directory.

    Args:
      workdir: Where to write; `read_only` makes nothing there.
      track: Opens what gets numbers and figures besides, at the first ones.

    Raises:
      InputError: If nothing can be written there.
    """
    self._track, self._step = track, 0
    self.workdir = files.path_of(workdir)
    self.is_writer = jax.process_index() == 0
    self._writer: Writer | None = None  # From the first use on.
    if read_only:
      return
    try:
      (self.workdir / 'plots').mkdir(parents=True, exist_ok=True)
      probe = self.workdir / f'.probe.{jax.process_index()}'
      probe.write_text('')
      probe.unlink(missing_ok=True)  # Another may look at the same time.
    except OSError as error:
      raise types.InputError(
        f'Cannot write to --workdir={workdir} ({error.strerror}): give a '
        'folder that you may write to.'
      ) from error

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Keeps other runs out.

    Raises:
      InputError: On all processes, if another run is writing here.
    """
    with contextlib.ExitStack() as stack:
      refused = None
      if self.is_writer:
        try:
          stack.enter_context(files.locked(self.workdir, '--workdir'))
        except types.InputError as error:
          refused = error
      if parallel.any_process(refused is not None):
        raise refused or types.InputError(
          f'--workdir={self.workdir} is in use: see what process 0 says.'
        )
      stack.callback(self._close, finished=False)
      yield

  def log(self) -> None:
    """Begins the log file."""
    name = 'log.txt' if self.is_writer else f'log.{jax.process_index()}.txt'
    self._log_to(self.workdir / name)

  def start(self, config: Mapping[str, Any]) -> None:
    """Writes config.json: what the run that begins or goes on here is."""
    if self.is_writer:
      files.write_json(
        self.workdir / 'config.json', {'config': config, **environment()}
      )
      self._tracked().hyperparameters(flat(config))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends numbers to metrics.jsonl, and gives them to the trackers."""
    if not self.is_writer:
      return
    line = files.json_line({'step': step, **values})
    path = self.workdir / 'metrics.jsonl'
    with files.naming(path), open(path, 'a', encoding='utf-8') as file:
      file.write(line)
    self._step = step
    self._tracked().scalars(step, {k: float(x) for k, x in values.items()})

  def history(self) -> list[dict[str, float]]:
    """The objects of metrics.jsonl; lines that are none are left out.

    The last one may be half written. A number that was not finite is None.
    """
    path = self.workdir / 'metrics.jsonl'
    if not path.exists():
      return []
    rows = []
    for line in path.read_text('utf-8', errors='replace').splitlines():
      try:
        row = json.loads(line)
      except json.JSONDecodeError:
        row = None
      if (
        isinstance(row, dict)
        and isinstance(row.get('step'), int)
        and all(isinstance(x, (int, float, type(None))) for x in row.values())
      ):
        rows.append(row)
      else:
        logging.warning('%s: left out the unreadable line %r', path, line[:80])
    return rows

  def truncate(self, step: int) -> None:
    """Forgets numbers of steps after `step`: a resumed run makes them again."""
    self._step = max(step, 0)
    path = self.workdir / 'metrics.jsonl'
    if not self.is_writer or not path.exists():
      return
    kept = [row for row in self.history() if row['step'] <= step]
    files.replace(path, ''.join(map(files.json_line, kept)))

  def figure(self, name: str, figure: Any) -> pathlib.Path:
    """Saves a matplotlib figure as plots/<name>.png."""
    path = self.workdir / 'plots' / f'{name}.png'
    if self.is_writer:
      with files.naming(path):
        figure.savefig(path, dpi=120, bbox_inches='tight')
      if self._writer is not None:  # Not of figures that are drawn later.
        self._writer.image(self._step, name, path)
    return path

  def finish(self, result: Mapping[str, Any]) -> None:
    """Writes report.json: the run is done."""
    self._close(finished=True)
    if self.is_writer:
      files.write_json(self.workdir / 'report.json', result)

  def result(self) -> dict[str, Any] | None:
    """The content of report.json if the run is done, or None."""
    path = self.workdir / 'report.json'
    found = files.read_json_if_whole(path, 'config', 'result')
    if found is None or isinstance(found['config'], dict):
      return found
    logging.warning('%s is damaged: its config is none; it is made again', path)
    return None

  def _tracked(self) -> Writer:
    self._writer = self._writer or self._track(self.workdir)
    return self._writer

  def _close(self, *, finished):
    writer, self._writer = self._writer, None
    if writer is not None:
      writer.close(finished=finished)

  def _log_to(self, path):
    import logging as python_logging

    handler = python_logging.FileHandler(path)
    handler.setFormatter(
      files.PortableFormatter('%(asctime)s %(levelname)s %(message)s')
    )
    # On a full disk the console still says all of it; no traceback there.
    handler.handleError = lambda record: None
    # Of libraries warnings are enough, even inside of a folder called repjax.
    ours = f'{pathlib.Path(__file__).parent}{os.sep}'
    handler.addFilter(
      lambda record: (
        record.levelno >= python_logging.WARNING
        or 'site-packages' not in record.pathname
        or record.pathname.startswith(ours)
      )
    )
    root = logging.get_absl_logger()
    for old in list(root.handlers):
      if isinstance(old, python_logging.FileHandler):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)


def flat(config: Mapping[str, Any], stem: str = '') -> dict[str, Any]:
  """Nested fields by one name each, for a `Writer`.

  >>> flat({'tx': {'rate': 0.1}, 'splits': ['test']})
  {'tx.rate': 0.1, 'splits': "['test']"}
  """
  fields: dict[str, Any] = {}
  for name, x in config.items():
    if isinstance(x, Mapping):
      fields |= flat(x, f'{stem}{name}.')
    else:
      fields[stem + name] = x if isinstance(x, int | float | str) else str(x)
  return fields


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
    'git': git_commit(),
    'devices': [str(d) for d in jax.devices()],
    'cores': os.cpu_count(),
    'processes': jax.process_count(),
    'command': [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def git_commit() -> str:
  """The commit of the package's checkout, '+' if code is not it; '' if none."""

  def git(*args):
    # Reading the status may not lock the user's index.
    here = ('-C', str(pathlib.Path(__file__).parent), '--no-optional-locks')
    command = ('git', *here, *args)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    changed = git('status', '-s', '--', ':/*.py')  # And not what runs leave.
    return git('rev-parse', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return ''
