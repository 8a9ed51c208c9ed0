r"""Trains methods on shifts and seeds: one run for each cell of a benchmark.

    python -m launch.grid --config=configs/fine_grained_shift.py:small \
      --workdir=runs/shift --methods=erm,hue,irm,coral,jtt --twice=jtt \
      --space='shift.kind=correlated,low_data,unseen' --seeds=3

Each cell is a work directory of launch.train, trials/<number>, as in
launch.sweep; run the same command again to go on. Cells run at the same time,
by default as many as there are cores. When they are finished, grid.md has the
accuracies and ranks, cells.csv the accuracy by label and nuisance of every run,
and plots/ the changes over the first method with their 95 % intervals.
"""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from launch.lib import app
from launch.lib import executors
from launch.lib import grids
from launch.lib import one_candidate
from launch.lib import recipes
from launch.lib import space as spaces
from launch.lib import trials
from repjax import types

_CONFIG = app.define_config()
_DATA_DIR = app.define_data_dir()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the grid, from where it goes on.', required=True
)
_METHODS = flags.DEFINE_list(
  'methods',
  None,
  'Values of config.method; the others are compared with the first.',
  required=True,
)
_TWICE = flags.DEFINE_list(
  'twice',
  [],
  'Those of --methods that start from the run of the first method on the same '
  'shift and seed: config.<method>.first names its folder.',
)
_SPACE = flags.DEFINE_string(
  'space',
  None,
  f'The shifts: every combination of lists. {spaces.SYNTAX}',
  required=True,
)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds 0, 1, ... of every cell.')
_METRIC = flags.DEFINE_string(
  'metric', 'test/accuracy', 'What is compared, the higher the better.'
)
_JOBS = flags.DEFINE_integer(
  'jobs', 0, 'Cells at the same time; 0 for as many as there are cores.'
)
_WHERE = executors.define()
_TRAIN_FLAGS = flags.DEFINE_string(
  'train_flags', '', "More flags of launch.train, as '--platform=gpu'."
)
flags.mark_flag_as_required('config')


def main() -> None:
  """Runs the grid of the flags."""
  file, preset = app.config_name()
  config = _CONFIG.value
  shifts = spaces.parse(_SPACE.value)
  overrides = dict(config_flags.get_override_values(flags.FLAGS['config']))
  spaces.check(shifts, config, tuple(overrides))
  if 'method' not in config:
    raise types.InputError(
      f'--config={file} has no field method: launch.sweep trains any config.'
    )
  grid = grids.Grid(
    methods=tuple(_METHODS.value),
    twice=tuple(_TWICE.value),
    shifts=shifts,
    num_seeds=_SEEDS.value,
    metric=_METRIC.value,
  )
  grids.check(grid, overrides)
  for method in grid.twice:
    problem = recipes.field_problem(config, (method, 'first'), '')
    if problem:
      raise types.InputError(
        f'--twice={method}: config.{method}.first has to be a field: {problem}'
      )
  sweep = trials.Sweep(
    workdir=pathlib.Path(_WORKDIR.value).expanduser().absolute(),
    file=file,
    preset=preset,
    overrides=overrides,
    space=grids.space(grid),
    metric=grid.metric,
    mode='max',
    train_flags=executors.train_flags(_TRAIN_FLAGS.value, _DATA_DIR.value),
  )
  jobs = _JOBS.value or os.cpu_count() or 1
  execute = _WHERE.chosen(sweep.workdir, jobs)
  # Those of a second training need the runs of the first.
  one_candidate.check_built(sweep, grids.rows_and_columns(grid))
  one_candidate.check_metric(sweep, grids.first_wave(grid))
  grids.run(grid, sweep, execute, executors.stop_on_signals())


if __name__ == '__main__':
  app.run(main)
