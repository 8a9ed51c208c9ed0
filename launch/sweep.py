r"""Trains one config over a space of its fields, and names the best trial.

    python -m launch.sweep --config=configs/sam.py:small --workdir=runs/rho \
      --space='sam.rho=0.05,0.1,0.5;tx.learning_rate=0.02,0.05' --jobs=2

Each trial is a work directory of launch.train, trials/<number>. Run the same
command again to go on after an interruption: finished trials are kept, stopped
ones go on, failed ones are tried again. With --private the search is
differentially private as a whole, see launch/lib/private_search.py. Exit codes
are those of launch.train: of the first trial that failed, if any did.
"""

import ast
import math
import pathlib

from absl import flags
from ml_collections import config_flags
import numpy as np

from launch.lib import app
from launch.lib import executors
from launch.lib import one_candidate
from launch.lib import private_search
from launch.lib import space as spaces
from launch.lib import trials
from repjax import types

_CONFIG = app.define_config()
_DATA_DIR = app.define_data_dir()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the sweep, from where it goes on.', required=True
)
_SPACE = flags.DEFINE_string('space', None, spaces.SYNTAX, required=True)
_TRIALS = flags.DEFINE_integer(
  'trials',
  None,
  'Draw so many trials at random, each by itself, so that more can be asked '
  'for later. Without it: every combination of a space of lists.',
)
_SEED = flags.DEFINE_integer(
  'seed', None, 'Of --trials; 0 by default.', lower_bound=0
)
_METRIC = flags.DEFINE_string(
  'metric',
  '',
  'What trials are ranked by: a name in "result" of their report.json. By '
  'default config.run.best.',
)
_MODE = flags.DEFINE_enum(
  'mode',
  None,
  ['max', 'min'],
  'Whether a larger or a smaller --metric is better. By default that of '
  'config.run.best; of an accuracy max, of a loss min.',
)
_UNTIL = flags.DEFINE_float(
  'until', None, 'Start no more trials once one has reached this metric.'
)
_JOBS = flags.DEFINE_integer('jobs', 1, 'Trials at the same time.')
_EXECUTOR = flags.DEFINE_enum(
  'executor',
  'local',
  ['local', 'slurm'],
  'Processes on this machine, or an array of SLURM jobs (extra `sweep`), for '
  'which this process waits.',
)
_SLURM = flags.DEFINE_list(
  'slurm',
  [],
  "Parameters of submitit's AutoExecutor, for example "
  'timeout_min=60,slurm_partition=gpu,gpus_per_node=1.',
)
_TRAIN_FLAGS = flags.DEFINE_string(
  'train_flags', '', "More flags of launch.train, as '--platform=gpu'."
)
flags.mark_flag_as_required('config')
flags.register_validator(
  'until', lambda x: x is None or math.isfinite(x), 'a metric is finite'
)

_MODES = dict(accuracy='max', loss='min')  # Of measures that everyone knows.


def main() -> None:
  """Runs the sweep of the flags."""
  sweep = _sweep()
  if private_search.is_asked_for():
    private_search.refuse(
      sweep.train_flags,
      trials=_TRIALS.value,
      seed=_SEED.value,
      until=_UNTIL.value,
    )
    execute = _executor(sweep.workdir / 'sealed')
    one_candidate.check_metric(sweep, spaces.grid(sweep.space))
    _check_mode(sweep)
    private_search.run(sweep, execute, executors.stop_on_signals())
    return
  candidates, execute = _candidates(sweep.space), _executor(sweep.workdir)
  one_candidate.check_metric(sweep, candidates)
  _check_mode(sweep)
  stop = executors.stop_on_signals()
  trials.run(sweep, candidates, execute, stop, until=_UNTIL.value)


def _sweep() -> trials.Sweep:
  file, preset = app.config_name()
  config = _CONFIG.value
  space = spaces.parse(_SPACE.value)
  overrides = dict(config_flags.get_override_values(flags.FLAGS['config']))
  spaces.check(space, config, tuple(overrides))
  metric = _METRIC.value or config.run.best
  if not metric:
    raise types.InputError(
      '--metric is missing: say what trials are ranked by, for example '
      '--metric=test/accuracy.'
    )
  return trials.Sweep(
    workdir=pathlib.Path(_WORKDIR.value).expanduser().absolute(),
    file=file,
    preset=preset,
    overrides=overrides,
    space=space,
    metric=metric,
    mode=_MODE.value or _mode_of(metric, config),
    train_flags=executors.train_flags(_TRAIN_FLAGS.value, _DATA_DIR.value),
  )


def _mode_of(metric, config) -> str:
  measure = metric.rpartition('/')[2]
  if config.run.best and measure == config.run.best.rpartition('/')[2]:
    return config.run.best_mode
  return _MODES.get(measure, '')


def _check_mode(sweep) -> None:
  if not sweep.mode:
    raise types.InputError(
      f'--mode is missing: say whether --metric={sweep.metric} is better where '
      'it is larger (max) or smaller (min).'
    )


def _executor(folder) -> executors.Executor:
  if _EXECUTOR.value == 'local':
    return executors.local(_JOBS.value)
  parameters = {}
  for item in _SLURM.value:
    name, equals, value = item.partition('=')
    if not equals:
      raise types.InputError(f'--slurm={item}: write name=value.')
    try:
      parameters[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      parameters[name] = value
  return executors.slurm(
    folder / 'slurm', num_parallel=_JOBS.value, parameters=parameters
  )


def _candidates(space) -> list[spaces.Fields]:
  if _TRIALS.value is None:
    if spaces.has_ranges(space):
      raise types.InputError(
        '--space has a range, which has no grid: give --trials=N.'
      )
    if _SEED.value is not None:
      raise types.InputError('--seed draws --trials=N of --space: give both.')
    return spaces.grid(space)
  if _TRIALS.value < 1:
    raise types.InputError(f'--trials must be >= 1; got {_TRIALS.value}.')
  seed = _SEED.value or 0
  return [
    spaces.draw(space, np.random.default_rng([seed, i]))
    for i in range(_TRIALS.value)
  ]


if __name__ == '__main__':
  app.run(main)
