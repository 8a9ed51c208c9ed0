"""How the process of a launcher ends: by signals, with its parent, at once.

    process.begin()          # A signal ends it in order, a second one at once.
    process.on_signal(stop)  # The first one calls `stop` instead.
    process.end_of(error)    # Whatever its threads do.

What the exit codes mean stands in `app`.
"""

from collections.abc import Callable
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import NoReturn

from absl import logging

# Seconds that process 0 leaves to the others.
_GRACE = 2

# Seconds after which what Python has swallowed is raised again.
_SOON = 0.05

# Exit code of what a signal has stopped: run the same command again.
STOPPED = 75

# In the environment of what a launcher starts: a descriptor at whose end that
# launcher has died.
LIFELINE = 'REPJAX_LIFELINE'


class Stopped(KeyboardInterrupt):
  """A signal has stopped a launcher that has nothing to save."""


def begin() -> None:
  """From here on signals and the end of a parent are heard."""
  on_signal(_raise)
  sys.unraisablehook = _unraisable
  line = os.environ.pop(LIFELINE, '')
  if line:
    threading.Thread(target=_die_with, args=[int(line)], daemon=True).start()


def on_signal(stop: Callable[[str], None]) -> None:
  """What the first SIGTERM or SIGINT does; a second one ends all at once.

  Args:
    stop: Takes the signal's name.
  """
  seen = threading.Event()

  def handler(number, frame):
    del frame
    name = signal.Signals(number).name
    if seen.is_set():
      say_stopped(f'{name} again: ended at once')
      end(STOPPED)
    seen.set()
    stop(name)

  signal.signal(signal.SIGTERM, handler)
  signal.signal(signal.SIGINT, handler)


def ignore_signals() -> None:
  """What is over is not stopped any more."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def say_stopped(why: str) -> None:
  """The last line of what a signal has ended."""
  print(f'STOPPED: {why}; run the same command again.', file=sys.stderr)


def end_of(error: BaseException) -> NoReturn:
  """Ends the process with the exit code of what has ended `main`.

  Raises:
    SystemExit: To end in good order, as the other processes of a job wait for.
  """
  ignore_signals()  # It is over.
  if isinstance(error, Stopped):
    say_stopped(str(error))
    end(STOPPED)
  if not isinstance(error, SystemExit):
    traceback.print_exception(error)
    _let_others_end()
    end(1)
  code = error.code if isinstance(error.code, int) else int(bool(error.code))
  if code == 0 or (code == STOPPED and _is_job()):
    raise error
  _let_others_end()
  end(code)


def end(code: int) -> NoReturn:
  """Ends the process without waiting for threads and what they wait for."""
  for flush in (sys.stdout.flush, sys.stderr.flush, logging.flush):
    with contextlib.suppress(OSError, ValueError):  # A closed pipe.
      flush()
  os._exit(code)


def lifeline() -> int:
  """A descriptor that ends with this process, for those that it starts."""
  global _LINE
  if _LINE is None:
    _LINE = os.pipe()
  return _LINE[0]


_LINE: tuple[int, int] | None = None


def _is_job() -> bool:
  """Whether this process has joined others."""
  import jax

  return jax.distributed.is_initialized()


def _let_others_end():
  """Process 0 of a job, without which the others abort, is the last to end.

  What ends one mostly ends all, each with a line of its own.
  """
  if 'jax' not in sys.modules:  # Nor has it joined any.
    return
  import jax

  with contextlib.suppress(RuntimeError):  # Of devices that are not there.
    if _is_job() and jax.process_index() == 0:
      time.sleep(_GRACE)


def _raise(name):
  raise Stopped(name)


def _unraisable(told):
  """What Python swallows: a signal may come while garbage is collected."""
  if str(told.exc_value) == 'Event loop is closed':
    # TensorStore's threads after a failed save; the save itself is reported.
    return
  if not isinstance(told.exc_value, Stopped):
    sys.__unraisablehook__(told)
    return
  on_signal(_raise)  # It is the first one still.
  number = signal.Signals[str(told.exc_value)]
  again = threading.Timer(_SOON, os.kill, (os.getpid(), number))
  again.daemon = True
  again.start()


def _die_with(line):
  with contextlib.suppress(OSError):
    os.read(line, 1)
    # Nothing is saved, so that the folder is free for whoever comes next.
    os._exit(STOPPED)
