"""Host side: what a run has fitted to its series, kept for its evaluations.

A file that a run learned from grows: rows come behind its last one. Evaluated a
week later the run must see the numbers in the units that it was trained in, and
judge by the rows that it was judged by. So a work directory has a `series.json`
with the scale of each series and the rows of its splits, and what has come
since is a split of its own, `NEW`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from repjax import files
from repjax import types
from repjax.data.series import series as seriess
from repjax.data.series import splits

FILE = 'series.json'

# Rows behind those that a run knew.
NEW = 'new'


class NothingNew(types.InputError):
  """No rows came since a run was trained."""


def nothing_new(num_rows: int) -> NothingNew:
  """What says so of a run that knew so many rows."""
  return NothingNew(
    f'The split {NEW!r} is the rows that came since the run was trained, and '
    f'there are none behind the {num_rows:,} that it knew: append some, and '
    'evaluate with its --workdir.'
  )


class Fitted(NamedTuple):
  """Of one series.

  Attributes:
    columns: Names of its C numbers.
    num_rows: How many there were.
    borders: Split -> (first row, row behind the last).
    centre: [C], float32.
    scale: [C], float32.
    covariates: Name -> (centre, scale) of what is known ahead.
    begins: Its first time stamp; '' without times, or where a run that is older
      than this field has kept none.
  """

  columns: tuple[str, ...]
  num_rows: int
  borders: splits.Borders
  centre: np.ndarray
  scale: np.ndarray
  covariates: Mapping[str, tuple[float, float]]
  begins: str = ''

  def plain(self) -> dict[str, Any]:
    """In JSON's types, which float32 survives."""
    plain = {
      'columns': list(self.columns),
      'num_rows': self.num_rows,
      'borders': {name: [*rows] for name, rows in self.borders.items()},
      'centre': [float(x) for x in self.centre],
      'scale': [float(x) for x in self.scale],
    }
    if self.covariates:  # Files of runs without any are as they always were.
      plain['covariates'] = {k: [*x] for k, x in self.covariates.items()}
    if self.begins:
      plain['begins'] = self.begins
    return plain

  def scaled(self, series: seriess.Series) -> seriess.Series:
    """The series, of any number of rows, in units of the training rows."""
    covariates = {
      name: (series.covariates[name] - centre) / scale
      for name, (centre, scale) in self.covariates.items()
    }
    return series.scaled(self.centre, self.scale).with_covariates(covariates)


def fit(
  series: Sequence[seriess.Series],
  divide: Callable[[int], Mapping[str, tuple[int, int]]],
  *,
  kept: str | os.PathLike = '',
  constant: str = 'refuse',
) -> list[Fitted]:
  """Splits and scales of series, or those that a run has kept.

  Args:
    series: As they were measured.
    divide: Number of rows -> borders of the splits.
    kept: A `series.json`; '' fits them.
    constant: As `splits.fit_scale` has it.

  Raises:
    InputError: The series are not those of the run: there are more or fewer of
      them, one has other columns, or rows are missing.
  """
  if kept:
    return _read(kept, series)
  found = []
  for one in series:
    borders = divide(len(one))
    scale = splits.fit_scale(one, borders['train'], constant=constant)
    known = {
      name: splits.fit_column(x[slice(*borders['train'])])
      for name, x in one.covariates.items()
    }
    found.append(
      Fitted(one.columns, len(one), borders, *scale, known, _begin(one))
    )
  return found


def _begin(series):
  return '' if series.times is None else str(series.times[0])


def companion(fitted: Sequence[Fitted]) -> types.Companion:
  """Writes `series.json` when a run begins.

  A run that goes on refuses series other than those that it began with.
  """
  plain = {'series': [x.plain() for x in fitted]}

  def begin(workdir: pathlib.Path | None, step: int):
    if workdir is None:
      return
    path = workdir / FILE
    if step and path.exists():
      known = files.read_json(path, 'series')['series']
      now = json.loads(files.json_line(plain))['series']
      if not any('begins' in x for x in known):
        now = [{k: v for k, v in x.items() if k != 'begins'} for x in now]
      if known != now:
        raise types.InputError(
          f'--workdir={workdir} was begun with other series ({FILE}): a run '
          'goes on with the rows that it knew; give another --workdir for what '
          'has come since.'
        )
    if jax.process_index() == 0:
      files.write_json(path, plain)

  return types.Companion(begin=begin)


def new_rows(
  series: Sequence[seriess.Series], fitted: Sequence[Fitted]
) -> list[tuple[int, int]]:
  """(first row that the run did not know, row behind the last) of each series.

  Raises:
    NothingNew: None has grown.
  """
  rows = [(y.num_rows, len(x)) for x, y in zip(series, fitted, strict=True)]
  if all(start == stop for start, stop in rows):
    raise nothing_new(rows[0][0])
  return rows


def _read(path, series):
  said = files.read_json(path, 'series')['series']
  try:
    found = [
      Fitted(
        tuple(one['columns']),
        int(one['num_rows']),
        {name: tuple(one['borders'][name]) for name in splits.NAMES},
        np.asarray(one['centre'], np.float32),
        np.asarray(one['scale'], np.float32),
        {
          name: (float(x), float(y))
          for name, (x, y) in one.get('covariates', {}).items()
        },
        str(one.get('begins', '')),
      )
      for one in said
    ]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise types.InputError(
      f'{path} is damaged ({error!r}): without it scales and splits are fitted '
      'to the series as they are now.'
    ) from error
  if len(found) != len(series):
    raise types.InputError(
      f'The run knew {len(found)} series ({path}), now there are '
      f'{len(series)}: give those that it was trained on.'
    )
  for now, then in zip(series, found, strict=True):
    if now.columns != then.columns:
      raise types.InputError(
        f'{now.name} has the columns {", ".join(now.columns)}, the run was '
        f'trained on {", ".join(then.columns)}: give a file with those, or '
        '--config.data.columns.'
      )
    if set(now.covariates) != set(then.covariates):
      raise types.InputError(
        f'{now.name} has the covariates {list(now.covariates)}, the run was '
        f'trained with {list(then.covariates)}: give a file with those.'
      )
    if then.begins and _begin(now) != then.begins:
      raise types.InputError(
        f'{now.name} begins at {_begin(now) or "no time"}, the run was trained '
        f'on rows from {then.begins} on, by whose number it divides them: rows '
        'may only be appended, so give the file from its beginning.'
      )
    if len(now) < then.num_rows:
      raise types.InputError(
        f'{now.name} has {len(now):,} rows, fewer than the {then.num_rows:,} '
        'that the run knew: rows may only be appended.'
      )
  return found
