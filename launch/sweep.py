r"""Trains one config over a space of its fields, and names the best trial.

    python -m launch.sweep --config=configs/sam.py:small --workdir=runs/rho \
      --space='sam.rho=0.05,0.1,0.5;tx.learning_rate=0.02,0.05' --jobs=2

Each trial is a work directory of launch.train, trials/<number>. Run the same
command again to go on after an interruption: finished trials are kept, stopped
ones go on, failed ones are tried again. With --private the search is
differentially private as a whole, see launch/lib/private_search.py. Exit codes
are those of launch.train: of the first trial that failed, if any did.
"""

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
_WHERE = executors.define()
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
    execute = _WHERE.chosen(sweep.workdir / 'sealed', _JOBS.value)
    one_candidate.check_metric(sweep, spaces.grid(sweep.space))
    _check_mode(sweep)
    private_search.run(sweep, execute, executors.stop_on_signals())
    return
  _check_public()
  candidates = _candidates(sweep.space)
  execute = _WHERE.chosen(sweep.workdir, _JOBS.value)
  one_candidate.check_metric(sweep, candidates)
  _check_mode(sweep)
  stop = executors.stop_on_signals()
  trials.run(sweep, candidates, execute, stop, until=_UNTIL.value)


def _check_public() -> None:
  """Refuses settings of a private search where none is asked for."""
  for name in (*private_search.ASKED_FOR, 'score_noise'):
    if flags.FLAGS[name].present:
      raise types.InputError(
        f'--{name} is of a private search: give --private, without which all '
        'trials and their exact scores are told, or leave it out.'
      )


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
  if measure in _MODES:
    return _MODES[measure]
  if config.run.best and measure == config.run.best.rpartition('/')[2]:
    return config.run.best_mode
  return ''


def _check_mode(sweep) -> None:
  if not sweep.mode:
    raise types.InputError(
      f'--mode is missing: say whether --metric={sweep.metric} is better where '
      'it is larger (max) or smaller (min).'
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
