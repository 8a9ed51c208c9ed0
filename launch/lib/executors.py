"""Where the trials of a sweep run: on this machine, or as jobs of SLURM.

Both take commands and give exit codes; what a trial prints goes into a file.
Both are told to stop by an event, and pass it on: `launch.train` then saves
its state and exits with 75.
"""

import ast
from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
import shlex
import subprocess
import threading
import time
from typing import Any
from typing import NamedTuple

from absl import flags

from configs import presets
from launch.lib import app
from launch.lib import process
from launch.lib import recipes
from repjax import types

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What launchers look at before any trial starts, or what hides it.
_LAUNCHERS = ('config', 'noconfig', 'workdir', 'data_dir', 'flagfile')
# What ends well and leaves no report.
_TRAIN_NOTHING = ('dry_run', 'print_config', 'help')
_POLL = 0.05  # Seconds between looks at processes on this machine.


class Job(NamedTuple):
  """One trial.

  Attributes:
    name: Of the trial.
    command: What is run, from the folder where its launcher was started.
    log: Where its output is appended.
  """

  name: str
  command: tuple[str, ...]
  log: pathlib.Path


# (jobs, stop, seen) -> name -> exit code. Once `stop` is set, what runs is
# asked to stop and nothing is started; `seen(job, code)` after each that ends.
Executor = Callable[
  [Sequence[Job], threading.Event, Callable[[Job, int], None]], dict[str, int]
]


class Flags(NamedTuple):
  """Flags that choose an executor, as `define` makes them."""

  executor: flags.FlagHolder
  slurm: flags.FlagHolder

  def chosen(self, folder: pathlib.Path, num_parallel: int) -> Executor:
    """The executor that they ask for.

    Args:
      folder: Where SLURM's files go.
      num_parallel: Trials at the same time.

    Raises:
      InputError: One of them would do nothing, or is no name=value.
    """
    if self.executor.value == 'local':
      if self.slurm.present:
        raise types.InputError(
          '--slurm is of --executor=slurm: give both, or neither.'
        )
      return local(num_parallel)
    parameters = {}
    for item in self.slurm.value:
      name, equals, value = item.partition('=')
      if not equals:
        raise types.InputError(f'--slurm={item}: write name=value.')
      try:
        parameters[name] = ast.literal_eval(value)
      except (ValueError, SyntaxError):
        parameters[name] = value
    return slurm(
      folder / 'slurm', num_parallel=num_parallel, parameters=parameters
    )


def define() -> Flags:
  """Defines --executor and --slurm."""
  return Flags(
    flags.DEFINE_enum(
      'executor',
      'local',
      ['local', 'slurm'],
      'Processes on this machine, or an array of SLURM jobs (extra `sweep`), '
      'for which this process waits.',
    ),
    flags.DEFINE_list(
      'slurm',
      [],
      "Parameters of submitit's AutoExecutor, for example "
      'timeout_min=60,slurm_partition=gpu,gpus_per_node=1.',
    ),
  )


def train_flags(given: str, data_dir: str) -> tuple[str, ...]:
  """Flags of each trial, from --train_flags and --data_dir.

  Raises:
    InputError: A quote is not closed, a flag is one of the launcher's own,
      which looks at it before any trial starts, or trials would train nothing.
  """
  try:
    found = shlex.split(given)
  except ValueError as error:
    raise types.InputError(f'--train_flags={given}: {error}.') from error
  for flag in found:
    if flag.lstrip('-').startswith(_LAUNCHERS):
      raise types.InputError(
        f'--train_flags={given}: {flag} is for all trials: give it beside '
        '--train_flags.'
      )
    if flag.lstrip('-').startswith(_TRAIN_NOTHING):
      raise types.InputError(
        f'--train_flags={given}: with {flag} no trial would train: give it to '
        'launch.train.'
      )
  if data_dir:
    folder = pathlib.Path(data_dir).expanduser().absolute()
    found.append(f'--data_dir={folder}')
  return tuple(found)


def own_files(sweep: Any) -> list[str]:
  """The place of one's own files that are the data; sweeps from before: [].

  Args:
    sweep: A `trials.Sweep`; its preset may name them as well as its overrides.
  """
  from repjax.data.reading import prepared

  recipe = recipes.load_config_module(str(pathlib.Path(sweep.file).absolute()))
  usual = recipe.get_config(*([sweep.preset] if sweep.preset else []))
  fields = {**presets.fields(usual), **sweep.overrides}
  if not prepared.is_own(str(fields.get('data.name', '')), ''):
    return []
  return [x for x in sweep.train_flags if x.startswith('--data_dir=')]


def local(num_parallel: int) -> Executor:
  """Runs so many processes at a time on this machine."""
  if num_parallel < 1:
    raise types.InputError(f'--jobs must be >= 1; got {num_parallel}.')

  def run(jobs, stop, seen):
    waiting, running, codes, told = list(jobs), {}, {}, False
    try:
      while running or (waiting and not stop.is_set()):
        while waiting and len(running) < num_parallel and not stop.is_set():
          job = waiting.pop(0)
          running[job] = _start(job)
        if stop.is_set() and not told:
          told = True
          for trial in running.values():
            trial.terminate()
        for job, trial in list(running.items()):
          if trial.poll() is not None:
            del running[job]
            codes[job.name] = trial.returncode
            if seen(job, trial.returncode):
              waiting.clear()
        time.sleep(_POLL)
    finally:
      for trial in running.values():
        trial.terminate()
    return codes

  return run


def slurm(
  folder: pathlib.Path,
  *,
  num_parallel: int,
  parameters: dict[str, Any],
  cluster: str = 'slurm',
) -> Executor:
  """Submits an array of jobs and waits for them, by `submitit`.

  A job that SLURM preempts or that reaches its time limit lets its trial save
  and is queued again. Jobs go on without this process; while they do, running
  the sweep again would start them twice: cancel them first.

  Args:
    folder: Of submitit's own files, shared by all machines.
    num_parallel: Jobs that run at the same time at most.
    parameters: Of `submitit.AutoExecutor.update_parameters`, for example
      timeout_min=60, slurm_partition='gpu', gpus_per_node=1.
    cluster: 'slurm'; 'local' and 'debug' are submitit's own stand-ins for it.

  Raises:
    InputError: If submitit is not installed, there is no SLURM, or a
      parameter is unknown.
  """
  try:
    import submitit
  except ImportError as error:
    raise types.InputError(
      '--executor=slurm needs submitit: pip install -e ".[sweep]"'
    ) from error
  try:
    executor = submitit.AutoExecutor(folder, cluster=cluster)
    executor.update_parameters(
      **{'slurm_array_parallelism': num_parallel, **parameters}
    )
  except (NameError, TypeError, RuntimeError) as error:
    raise types.InputError(f'--executor=slurm: {error}') from error

  def run(jobs, stop, seen):
    if stop.is_set() or not jobs:
      return {}
    with executor.batch():
      submitted = [executor.submit(_Trial(job)) for job in jobs]
    codes, told = {}, False
    waiting = dict(zip(jobs, submitted, strict=True))
    while waiting:
      if stop.is_set() and not told:
        told = True
        for one in waiting.values():
          one.cancel(check=False)
      for job, one in list(waiting.items()):
        if job in waiting and (one.done() or told):
          waiting.pop(job, None)
          codes[job.name] = app.PREEMPTED if told else _outcome(one, job)
          if seen(job, codes[job.name]):
            for other, queued in list(waiting.items()):
              if queued.state == 'PENDING':
                queued.cancel(check=False)
                del waiting[other]
      time.sleep(_POLL if cluster != 'slurm' else 2.0)
    return codes

  return run


def _outcome(submitted, job):
  """Exit code of a job of submitit; what broke it goes into the trial's log."""
  error = submitted.exception()
  if error is None:
    return submitted.result()
  with open(job.log, 'a', encoding='utf-8') as file:
    file.write(f'ERROR: {" ".join(str(error).split())[-400:]}\n')
  return app.USAGE


class _Trial:
  """What a job of submitit calls; may be stopped and queued again."""

  def __init__(self, job: Job):
    self.job = job
    self._process: subprocess.Popen[bytes] | None = None

  def __call__(self) -> int:
    self._process = _start(self.job)
    return self._process.wait()

  def checkpoint(self) -> Any:
    """Called by submitit before the job is preempted."""
    import submitit

    if self._process is not None and self._process.poll() is None:
      self._process.terminate()
      self._process.wait()
    return submitit.helpers.DelayedSubmission(_Trial(self.job))

  def __getstate__(self):
    return {'job': self.job, '_process': None}


def _start(job: Job) -> subprocess.Popen[bytes]:
  job.log.parent.mkdir(parents=True, exist_ok=True)
  line = process.lifeline()
  places = (str(_ROOT), os.environ.get('PYTHONPATH', ''))
  with open(job.log, 'a', encoding='utf-8') as log:
    return subprocess.Popen(
      job.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      # A Ctrl-C is for the sweep, which passes it on in good order.
      start_new_session=True,
      # A sweep that is killed takes its trials with it.
      pass_fds=[line],
      env={
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, places)),
        process.LIFELINE: str(line),
      },
    )


def stop_on_signals() -> threading.Event:
  """Set by SIGTERM and SIGINT; a second one ends this process at once."""
  event = threading.Event()

  def stop(name):
    event.set()
    print(f'{name}: stopping the trials', flush=True)

  process.on_signal(stop)
  return event


def last_line(log: pathlib.Path) -> str:
  """The last line of a log that is not empty, or ''."""
  if not log.exists():
    return ''
  lines = log.read_text('utf-8', errors='replace').split('\n')
  return next((x.strip() for x in reversed(lines) if x.strip()), '')
