"""Grids of methods x shifts x seeds, on the trials of a sweep."""

from collections.abc import Iterator
import itertools
import pathlib
import threading
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from launch.lib import executors
from launch.lib import space as spaces
from launch.lib import trials
from repjax import files
from repjax import types
from repjax.benchmarks import shift_results


class Grid(NamedTuple):
  """What is compared.

  Attributes:
    methods: Values of config.method; the first is the baseline.
    twice: Those that start from the baseline's run.
    shifts: Fields of the config and their values.
    num_seeds: Number of seeds.
    metric: What is compared, 'split/name'.
  """

  methods: tuple[str, ...]
  twice: tuple[str, ...]
  shifts: spaces.Space
  num_seeds: int
  metric: str


def check(grid: Grid, overrides: dict[str, Any]) -> None:
  """Raises InputError if the grid has a cell twice, or none."""
  types.check_range('[1, inf)', **{'--seeds': grid.num_seeds})
  if len(set(grid.methods)) < len(grid.methods) or len(grid.methods) < 2:
    raise types.InputError(
      f'--methods={",".join(grid.methods)}: name two or more, each once.'
    )
  if not set(grid.twice) <= set(grid.methods[1:]):
    raise types.InputError(
      f'--twice={",".join(grid.twice)}: name some of --methods, but not the '
      'first one, from which they start.'
    )
  if spaces.has_ranges(grid.shifts):
    raise types.InputError('--space has a range, which has no grid.')
  for name, values in grid.shifts.items():
    if len(set(values)) < len(values):
      raise types.InputError(
        f'--space names a value of {name} twice: name each once.'
      )
  for name in ('method', 'seed'):
    if name in grid.shifts or name in overrides:
      flag = {'method': 'methods', 'seed': 'seeds'}[name]
      raise types.InputError(f'config.{name} is what --{flag} goes through.')


def space(grid: Grid) -> spaces.Space:
  """The fields that tell cells apart."""
  seeds = tuple(str(x) for x in range(grid.num_seeds))
  return {'method': grid.methods, **grid.shifts, 'seed': seeds}


def first_wave(grid: Grid) -> list[spaces.Fields]:
  """Fields of the cells that need no other run."""
  return [
    {'method': method, **shift, 'seed': str(seed)}
    for method in grid.methods
    if method not in grid.twice
    for shift, seed in _columns(grid)
  ]


def rows_and_columns(grid: Grid) -> list[spaces.Fields]:
  """Fields of one cell for each method and for each shift."""
  cells = first_wave(grid)
  columns = len(list(_columns(grid)))
  return cells[::columns] + cells[: columns : grid.num_seeds]


def second_wave(grid: Grid, workdir: pathlib.Path) -> list[spaces.Fields]:
  """Fields of the cells that start from one of the first wave."""
  # The baseline is the first method, so that its cells are the first trials.
  return [
    {
      'method': method,
      **shift,
      'seed': str(seed),
      f'{method}.first': str(workdir / 'trials' / f'{number:03}'),
    }
    for method in grid.methods
    if method in grid.twice
    for number, (shift, seed) in enumerate(_columns(grid))
  ]


def _columns(grid: Grid) -> Iterator[tuple[spaces.Fields, int]]:
  return itertools.product(spaces.grid(grid.shifts), range(grid.num_seeds))


def run(
  grid: Grid,
  sweep: trials.Sweep,
  execute: executors.Executor,
  stop: threading.Event,
) -> None:
  """Runs what is not finished, then writes the tables of all that is.

  Raises:
    As `trials.run`, after the tables are written; what is refused leaves those
    that stand there, which may be of another grid.
  """
  first = first_wave(grid)
  candidates = first + second_wave(grid, sweep.workdir)
  try:
    try:
      trials.run(sweep, first, execute, stop)
    except SystemExit:
      # What failed is tried again beside those that start from others.
      if not grid.twice:
        raise
    if grid.twice:
      trials.run(sweep, candidates, execute, stop)
  except types.InputError:
    raise
  except BaseException:
    write(grid, sweep.workdir, candidates)
    raise
  write(grid, sweep.workdir, candidates)


def write(
  grid: Grid, workdir: pathlib.Path, candidates: list[spaces.Fields]
) -> None:
  """Writes grid.md, cells.csv and the plots of the finished cells.

  Methods are compared where all of their cells are finished.
  """
  split = grid.metric.rpartition('/')[0]
  found: dict[str, dict[str, dict[int, float]]] = {}
  tables = {}
  for number, fields in enumerate(candidates):
    report = trials.report(workdir / 'trials' / f'{number:03}')
    if not report:
      continue
    method, seed, shift = fields['method'], int(fields['seed']), _name(fields)
    value = report['result'].get(grid.metric)
    of_method = found.setdefault(method, {}).setdefault(shift, {})
    of_method[seed] = np.nan if value is None else value
    tables[method, shift, seed] = shift_results.from_numbers(
      report['result'], split
    )
  names = list(dict.fromkeys(_name(x) for x in candidates))
  accuracy = {
    method: {
      shift: np.array([found[method][shift][x] for x in range(grid.num_seeds)])
      for shift in names
    }
    for method in grid.methods
    if _is_whole(found.get(method, {}), names, grid.num_seeds)
  }
  waiting = [x for x in grid.methods if x not in accuracy]
  if tables:
    files.replace(workdir / 'cells.csv', shift_results.table_of_cells(tables))
  if grid.methods[0] not in accuracy or len(accuracy) < 2:
    logging.info('nothing to compare yet: not finished: %s', ', '.join(waiting))
    return
  lines = f'# {grid.metric}, mean of {grid.num_seeds} seed(s) (mean rank)\n\n'
  lines += shift_results.rank_table(accuracy)
  if waiting:
    lines += f'\nNot finished: {", ".join(waiting)}.\n'
  files.replace(workdir / 'grid.md', lines)
  folder = workdir / 'plots'
  folder.mkdir(exist_ok=True)
  baseline = grid.methods[0]
  for name, figure in {
    f'change_over_{baseline}': shift_results.change_figure(accuracy, baseline),
    'ranks': shift_results.rank_figure(accuracy),
  }.items():
    figure.savefig(folder / f'{name}.png', dpi=120, bbox_inches='tight')
  print(lines)
  logging.info('grid: %s', workdir / 'grid.md')


def _name(fields: spaces.Fields) -> str:
  """A shift by its values: 'correlated', or 'correlated, num_rare=5'."""
  given = [
    x
    for x in fields
    if x not in ('method', 'seed') and not x.endswith('.first')
  ]
  last = [x.rpartition('.')[2] for x in given]
  own = {
    short if last.count(short) == 1 else x: fields[x]
    for x, short in zip(given, last, strict=True)
  }
  return ', '.join(y if x == 'kind' else f'{x}={y}' for x, y in own.items())


def _is_whole(by_shift, names, num_seeds) -> bool:
  return all(len(by_shift.get(name, {})) == num_seeds for name in names)
