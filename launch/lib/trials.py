"""The trials of a sweep: running what is not finished, and the summary."""

from collections.abc import Iterator
import contextlib
import csv
import io
import json
import pathlib
import sys
import threading
from typing import Any
from typing import NamedTuple
import zlib

from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import executors
from launch.lib import space as spaces
from repjax import files
from repjax import types

# What one trial runs.
TRAIN = (sys.executable, '-m', 'launch.train')


class Sweep(NamedTuple):
  """What all trials share.

  Attributes:
    workdir: Folder of the sweep.
    file: Config file.
    preset: Its preset, or ''.
    overrides: Field -> value of the command line.
    space: What is searched.
    metric: What trials are ranked by.
    mode: 'max' or 'min'.
    train_flags: More flags of launch.train.
  """

  workdir: pathlib.Path
  file: str
  preset: str
  overrides: dict[str, Any]
  space: spaces.Space
  metric: str
  mode: str
  train_flags: tuple[str, ...]

  @property
  def sign(self) -> int:
    """1 where larger is better, else -1."""
    return 1 if self.mode == 'max' else -1

  def identity(self) -> dict[str, Any]:
    """What makes it this sweep, as it comes back from a JSON file."""
    fields = {
      'file': pathlib.Path(self.file).name,
      'preset': self.preset,
      'overrides': self.overrides,
      'space': self.space,
      'recipe': zlib.crc32(pathlib.Path(self.file).read_bytes()),
      'more': executors.own_files(self),
    }
    return json.loads(files.json_line(fields))

  def job(self, folder: pathlib.Path, fields: spaces.Fields) -> executors.Job:
    """One launch of launch.train."""
    config = str(pathlib.Path(self.file).absolute())
    values = {**self.overrides, **fields}
    command = (
      *TRAIN,
      f'--config={config}{self.preset and ":"}{self.preset}',
      f'--workdir={folder}',
      *(f'--config.{name}={value}' for name, value in values.items()),
      *self.train_flags,
    )
    return executors.Job(folder.name, command, folder / 'output.txt')


class Trial(NamedTuple):
  """What became of one trial.

  Attributes:
    name: Name of its folder.
    fields: Field -> value.
    status: 'finished', 'stopped', 'failed (exit code)' or 'not started'.
    metric: What it is ranked by; NaN unless finished.
    seconds: How long it ran; NaN unless finished.
    note: The last line of a failed trial's log.
  """

  name: str
  fields: spaces.Fields
  status: str
  metric: float
  seconds: float
  note: str


def run(
  sweep: Sweep,
  candidates: list[spaces.Fields],
  execute: executors.Executor,
  stop: threading.Event,
  *,
  until: float | None = None,
) -> list[Trial]:
  """Runs what is not finished, then writes the summary.

  Args:
    sweep: What all trials share.
    candidates: Fields of each trial.
    execute: Where trials run.
    stop: Event that stops them.
    until: Metric at which no more trials are started, or None.

  Raises:
    InputError: If the folder is that of another sweep, or no finished trial
      has the metric.
    PreemptedError: If trials were stopped.
    SystemExit: With its exit code, if a trial failed.
  """
  with held(sweep.workdir):
    prepare(sweep, candidates)
    return _run(sweep, candidates, execute, stop, until)


def _run(sweep, candidates, execute, stop, until) -> list[Trial]:
  root = sweep.workdir / 'trials'
  folders = [root / f'{i:03}' for i in range(len(candidates))]
  by_name = {f.name: x for f, x in zip(folders, candidates, strict=True)}
  todo = [
    sweep.job(folder, fields)
    for folder, fields in zip(folders, candidates, strict=True)
    if not report(folder)
  ]
  done = len(folders) - len(todo)
  logging.info('%d trials, of which %d are finished', len(folders), done)

  def seen(job, code):
    value = _value(sweep, report(job.log.parent))
    outcome = f'exit code {code}'
    if value is not None:
      outcome = f'{sweep.metric} {value:.4f}'
    logging.info('%s %s: %s', job.name, _shown(by_name[job.name]), outcome)
    if enough(value):
      logging.info('--until=%g is reached', until)
      reached.append(job.name)
    return bool(reached)

  def enough(value):
    return None not in (value, until) and sweep.sign * (value - until) >= 0

  reached = [x.name for x in folders if enough(_value(sweep, report(x)))]
  if reached:
    logging.info('--until=%g was reached before', until)
    todo = []
  codes = execute(todo, stop, seen)
  trials = [
    _trial(sweep, folder, fields, codes.get(folder.name))
    for folder, fields in zip(folders, candidates, strict=True)
  ]
  best = summarize(sweep, trials)
  if best is not None:
    logging.info(
      'best: %s (%s): %s %.4f',
      root / best.name,
      _shown(best.fields),
      sweep.metric,
      best.metric,
    )
  logging.info('summary: %s', sweep.workdir / 'summary.md')
  if not reached and (stop.is_set() or app.PREEMPTED in codes.values()):
    raise types.PreemptedError(
      'some trials were stopped: run the same command again to go on.'
    )
  failed = [codes[x.name] for x in trials if x.status.startswith('failed')]
  if failed:
    print(
      f'ERROR: {len(failed)} of {len(trials)} trials failed', file=sys.stderr
    )
    raise SystemExit(failed[0] if failed[0] > 0 else app.USAGE)
  return trials


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder of a sweep, and keeps other sweeps out of it.

  Raises:
    InputError: If it cannot be written, or another sweep is running there.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise types.InputError(
      f'Cannot write to --workdir={workdir} ({error.strerror}): give a folder '
      'that you may write to.'
    ) from error
  with files.locked(workdir, '--workdir'):
    yield


def prepare(sweep: Sweep, candidates: list[spaces.Fields]) -> None:
  """Says what the sweep is, or checks that the folder is that of the same."""
  from repjax import checkpoint

  made = {**sweep.identity(), 'candidates': candidates}
  path = sweep.workdir / 'sweep.json'
  if path.exists():
    stored = read(path, 'candidates')
    old, new = stored.pop('candidates'), made['candidates']
    now = sweep.identity() | ({} if stored.get('more') else {'more': []})
    lines = checkpoint.differing_fields(stored, now)
    if any(a != b for a, b in zip(old, new, strict=False)):
      lines.append('other trials')
    if lines:
      raise types.InputError(
        f'--workdir={sweep.workdir} is that of another sweep: '
        f'{"; ".join(lines)}. Give another --workdir.'
      )
    if len(old) >= len(new):
      return
  files.write_json(path, made)


def read(path: pathlib.Path, *fields: str) -> dict[str, Any]:
  """What a sweep is, from its file.

  Raises:
    InputError: If it is damaged: then nobody knows whose trials these are.
  """
  try:
    return files.read_json(path, *fields)
  except types.InputError as error:
    raise types.InputError(
      f'{error}. Give another --workdir; or delete it, if the trials beside it '
      'are of this very command.'
    ) from error


def report(folder: pathlib.Path) -> dict[str, Any]:
  """The content of a trial's report.json; {} if it is not finished."""
  return files.read_json_if_whole(folder / 'report.json', 'result') or {}


def metric_of(sweep: Sweep, found: dict[str, Any]) -> float:
  """What a finished trial is ranked by; NaN where that had no value."""
  if sweep.metric not in found['result']:
    raise types.InputError(
      f'--metric={sweep.metric} is not in the reports; there are '
      f'{", ".join(found["result"])}.'
    )
  value = found['result'][sweep.metric]
  return np.nan if value is None else float(value)


def _value(sweep, found) -> float | None:
  return found.get('result', {}).get(sweep.metric)


def _trial(sweep, folder, fields, code) -> Trial:
  found = report(folder)
  if found:
    return Trial(
      folder.name,
      fields,
      'finished',
      metric_of(sweep, found),
      float(found.get('seconds', np.nan)),
      '',
    )
  status, note = 'not started', ''
  if code == app.PREEMPTED:
    status = 'stopped'
  elif code is not None:
    status = f'failed ({code})'
    note = executors.last_line(folder / 'output.txt')
  return Trial(folder.name, fields, status, np.nan, np.nan, note)


def summarize(sweep: Sweep, trials: list[Trial]) -> Trial | None:
  """Writes summary.md, summary.csv and plots; the best trial, if any."""
  finished = sorted(
    (x for x in trials if x.status == 'finished'),
    key=lambda x: (np.isnan(x.metric), -sweep.sign * x.metric),
  )
  ranked = [*finished, *(x for x in trials if x.status != 'finished')]
  names = list(sweep.space)
  header = ['trial', *names, sweep.metric, 'seconds', 'status']
  rows = [
    [
      x.name,
      *(x.fields[name] for name in names),
      '' if np.isnan(x.metric) else f'{x.metric:.6g}',
      '' if np.isnan(x.seconds) else f'{x.seconds:.0f}',
      f'{x.status}: {x.note}' if x.note else x.status,
    ]
    for x in ranked
  ]
  lines = [f'# {pathlib.Path(sweep.file).name}:{sweep.preset}', '']
  best = finished[0] if finished and np.isfinite(finished[0].metric) else None
  if best is not None:
    lines += [f'Best: trials/{best.name} ({_shown(best.fields)})', '']
  lines += [_line(header), _line(['---'] * len(header)), *map(_line, rows)]
  text = '\n'.join(lines) + '\n'
  files.replace(sweep.workdir / 'summary.md', text)
  table = io.StringIO()
  csv.writer(table, lineterminator='\n').writerows([header, *rows])
  files.replace(sweep.workdir / 'summary.csv', table.getvalue())
  if finished:
    _plot(sweep, finished)
  print(text)
  return best


def _plot(sweep, finished):
  """Metric against each field, plots/<field>.png."""
  from repjax import plots

  folder = sweep.workdir / 'plots'
  folder.mkdir(exist_ok=True)
  metrics = np.array([x.metric for x in finished])
  for name in sweep.space:
    texts = [x.fields[name] for x in finished]
    try:
      places, ticks = np.array([float(x) for x in texts]), None
    except ValueError:
      ticks = sorted(set(texts))
      places = np.array([ticks.index(x) for x in texts])
    figure = plots.lines(
      {'trials': (places, metrics), 'best': (places[:1], metrics[:1])},
      **dict(xlabel=name, ylabel=sweep.metric, joined=False),
    )
    if ticks is not None:
      figure.axes[0].set_xticks(range(len(ticks)), ticks)
    elif (places > 0).all() and places.max() >= 10 * places.min():
      figure.axes[0].set_xscale('log')
    figure.savefig(folder / f'{name}.png', dpi=120, bbox_inches='tight')


def _line(cells):
  return '| ' + ' | '.join(x.replace('|', '\\|') for x in cells) + ' |'


def _shown(fields):
  return ', '.join(f'{name}={value}' for name, value in fields.items())
