"""Host side: one time series: values, times, covariates and labels."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from repjax import types


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
  """T rows of C numbers in the order of time; made by `from_arrays`.

  Attributes:
    name: For messages and files.
    columns: Names of the C numbers.
    values: float32 [T, C]; NaN where nothing was measured.
    times: datetime64[s] [T], rising, or None.
    covariates: Name -> float32 [T]; what is known ahead, such as the hour.
    labels: int32 [T], 1 within an anomaly, or None.
    centre: float32 [C]; `values` * `scale` + `centre` are in units of the
      source.
    scale: float32 [C].
    before: float32 [C], what was measured last before the first row; NaN where
      nothing was; None of a whole series.
  """

  name: str
  columns: tuple[str, ...]
  values: np.ndarray
  times: np.ndarray | None
  covariates: Mapping[str, np.ndarray]
  labels: np.ndarray | None
  centre: np.ndarray
  scale: np.ndarray
  before: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.values)

  @property
  def observed(self) -> np.ndarray:
    """Which values were measured, bool [T, C]."""
    return ~np.isnan(self.values)

  def filled(self) -> np.ndarray:
    """Values [T, C] with the last one measured in place of what is missing.

    Nothing is taken from the future: before the first it is what was measured
    before the part, or 0, which is the mean where the series was scaled.
    """
    observed = self.observed
    rows = np.where(observed, np.arange(len(self))[:, None], -1)
    last = np.maximum.accumulate(rows, axis=0)
    taken = np.take_along_axis(self.values, np.maximum(last, 0), axis=0)
    before = np.float32(0) if self.before is None else self.before
    return np.where(last < 0, np.nan_to_num(before), taken)

  def in_units(self, values: np.ndarray) -> np.ndarray:
    """Scaled numbers [..., C] in the units of the source."""
    return values * self.scale + self.centre

  def scaled(self, centre: np.ndarray, scale: np.ndarray) -> 'Series':
    """The series whose values are (x - centre) / scale, [C] each."""
    centre, scale = (np.asarray(x, np.float32) for x in (centre, scale))
    return dataclasses.replace(
      self,
      values=(self.values - centre) / scale,
      before=None if self.before is None else (self.before - centre) / scale,
      centre=self.centre + self.scale * centre,
      scale=self.scale * scale,
    )

  def part(self, start: int, stop: int) -> 'Series':
    """Rows [start, stop), which are no copies."""
    cut = slice(start, stop)
    return dataclasses.replace(
      self,
      values=self.values[cut],
      before=self._measured_before(start),
      times=None if self.times is None else self.times[cut],
      covariates={name: x[cut] for name, x in self.covariates.items()},
      labels=None if self.labels is None else self.labels[cut],
    )

  def _measured_before(self, row):
    """What was measured last in front of a row, [C]; NaN where nothing was."""
    before = self.before
    if before is None:
      before = np.full(len(self.columns), np.nan, np.float32)
    if row:
      seen = self.observed[:row]
      last = row - 1 - seen[::-1].argmax(0)
      known = self.values[last, np.arange(len(self.columns))]
      before = np.where(seen.any(0), known, before)
    return before

  def select(self, columns: Sequence[str]) -> 'Series':
    """The columns of these names, in this order.

    Raises:
      InputError: If there is no such column.
    """
    check_columns(self.name, columns, self.columns)
    places = [self.columns.index(x) for x in columns]
    return dataclasses.replace(
      self,
      columns=tuple(columns),
      values=self.values[:, places],
      before=None if self.before is None else self.before[places],
      centre=self.centre[places],
      scale=self.scale[places],
    )

  def known_ahead(self, names: Sequence[str]) -> 'Series':
    """The series with columns of these names as covariates, not as values.

    Raises:
      InputError: If there is no such column, no other one is left, or one has
        no value in some row.
    """
    for name in names:
      if name not in self.columns:
        raise types.InputError(
          f'{self.name} has no column {name!r}; it has '
          f'{", ".join(self.columns)}: change --config.data.covariates.'
        )
    left = [x for x in self.columns if x not in names]
    if not left:
      raise types.InputError(
        f'{self.name}: --config.data.covariates takes all columns, and none is '
        'left to forecast.'
      )
    known = {x: self.values[:, self.columns.index(x)] for x in names}
    for name, x in known.items():
      missing = np.flatnonzero(np.isnan(x))
      if missing.size:
        raise types.InputError(
          f'{self.name}: the covariate {name!r} has no value in row '
          f'{missing[0]} (of {missing.size} such rows): what is known ahead is '
          'known of every row.'
        )
    return self.select(left).with_covariates(known)

  def with_covariates(self, covariates: Mapping[str, np.ndarray]) -> 'Series':
    """The series with more that is known ahead, name -> [T]."""
    made = {
      name: np.asarray(x, np.float32)
      for name, x in {**self.covariates, **covariates}.items()
    }
    for name, x in made.items():
      if x.shape != (len(self),) or not np.isfinite(x).all():
        raise types.InputError(
          f'{self.name}: the covariate {name} needs {len(self)} finite '
          f'numbers, got shape {x.shape}.'
        )
    return dataclasses.replace(self, covariates=made)


FRACTIONS = (
  'its times have fractions of a second, and those of a series are whole: '
  'round them, or leave the times out where rows are equally far apart.'
)


def as_float32(
  name: str, columns: Sequence[str], values: np.ndarray
) -> np.ndarray:
  """Numbers [T, C] as they are kept.

  Raises:
    InputError: What a column does from row to row is lost by it: a counter that
      stands at 1e8 and rises by 3 would be a staircase.
  """
  if values.dtype == object:  # None is no number.
    values = values.astype(np.float64)
  with np.errstate(over='ignore'):  # Refused as infinite, by its column.
    kept = values.astype(np.float32)
  for column, exact, rough in zip(columns, values.T, kept.T, strict=True):
    there = np.isfinite(exact) & np.isfinite(rough)
    known = exact[there].astype(np.float64)
    steps = np.abs(np.diff(known))
    # What is not rounding, as of a mean of the same numbers.
    steps = steps[steps > 1e-14 * np.abs(known).max(initial=0)]
    lost = np.abs(known - rough[there])
    if steps.size and np.median(lost) > 0.1 * np.median(steps):
      raise types.InputError(
        f'{name}: column {column!r} changes by about {np.median(steps):.3g} '
        f'from row to row around {np.median(known):.7g}, which float32 does '
        'not tell apart: subtract a constant from it, or take its differences.'
      )
  return kept


def from_arrays(
  name: str,
  values: Any,
  *,
  columns: Sequence[str] | None = None,
  times: Any = None,
  labels: Any = None,
) -> Series:
  """The series of arrays in memory.

  >>> from_arrays('steps', np.arange(6.0)).columns
  ('0',)

  Args:
    name: For messages.
    values: Numbers [T, C] or [T]; NaN where nothing was measured.
    columns: Names of the C numbers; '0', '1', ... if None.
    times: Rising times [T], datetime64.
    labels: [T], 1 within an anomaly and 0 outside.

  Raises:
    InputError: If there are no rows, a value is infinite, times do not rise, or
      something has another length than the series.
  """
  values = np.asarray(values)
  if values.dtype.kind in 'cmMSU':
    raise types.InputError(
      f'{name}: a series is real numbers, got {values.dtype}.'
    )
  values = values[:, None] if values.ndim == 1 else values
  if values.ndim != 2 or not values.size:
    raise types.InputError(
      f'{name}: a series is numbers [T, C] with T, C >= 1; got shape '
      f'{values.shape}.'
    )
  length, num_columns = values.shape
  if columns is None:
    columns = [str(i) for i in range(num_columns)]
  columns = tuple(columns)
  if len(columns) != num_columns or len(set(columns)) != num_columns:
    raise types.InputError(
      f'{name}: {num_columns} columns need as many names of their own, got '
      f'{list(columns)}.'
    )
  values = as_float32(name, columns, values)
  infinite = np.argwhere(np.isinf(values))
  if infinite.size:
    row, column = infinite[0]
    raise types.InputError(
      f'{name}: column {columns[column]!r} is infinite in row {row}; leave the '
      'cell empty (NaN in arrays) where nothing was measured.'
    )
  if times is not None:
    fine, times = np.asarray(times), np.asarray(times, 'datetime64[s]')
    if fine.dtype == object:
      fine = np.asarray(fine, 'datetime64[us]')
    is_time = fine.dtype.kind == 'M' and fine.shape == times.shape
    if is_time and (fine != times)[~np.isnat(times)].any():
      raise types.InputError(f'{name}: {FRACTIONS}')
    _check_length(name, 'times', times, length)
    check_rising(name, times)
  if labels is not None:
    labels = np.asarray(labels)
    _check_length(name, 'labels', labels, length)
    if not np.isin(labels, (0, 1)).all():
      raise types.InputError(f'{name}: labels must be 0 or 1.')
    labels = labels.astype(np.int32)
  return Series(
    name=name,
    columns=columns,
    values=values,
    times=times,
    covariates={},
    labels=labels,
    centre=np.zeros(num_columns, np.float32),
    scale=np.ones(num_columns, np.float32),
  )


def check_columns(
  name: str, wanted: Sequence[str], known: Sequence[str]
) -> None:
  """Raises InputError for the first wanted column that there is not."""
  for column in wanted:
    if column not in known:
      raise types.InputError(
        f'{name} has no column {column!r}; it has {", ".join(known)}: change '
        '--config.data.columns.'
      )


def check_names(columns: Sequence[str], made: Sequence[str]) -> None:
  """Refuses columns that are called as what tables show beside them.

  Args:
    columns: Of a series.
    made: Names of the other columns of a table.

  Raises:
    InputError: One of both would be lost, where lines are read by names.
  """
  for name in columns:
    if name in made:
      raise types.InputError(
        f'A column of the series is called {name!r}, as one of the table that '
        'a run writes: rename it in the file.'
      )


def check_rising(name: str, times: np.ndarray) -> None:
  """Raises InputError where a time is not later than the one before it."""
  if np.isnat(times).any():
    raise types.InputError(f'{name}: a time stamp is missing.')
  wrong = np.flatnonzero(np.diff(times) <= np.timedelta64(0, 's'))
  if wrong.size:
    row = int(wrong[0]) + 1
    same = times[row] == times[row - 1]
    raise types.InputError(
      f'{name}: time stamps must rise, but row {row} ({times[row]}) '
      f'{"repeats" if same else "is before"} row {row - 1} ({times[row - 1]}): '
      + ('drop one of them.' if same else 'sort the rows by time.')
    )


def _check_length(name, what, values, length):
  if values.shape != (length,):
    raise types.InputError(
      f'{name}: {what} have shape {values.shape}, but the series has {length} '
      'rows: give one for each.'
    )
