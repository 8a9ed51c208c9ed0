"""Host side: parts of a series by time, and scales fitted on the first."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools

import numpy as np

from repjax import types
from repjax.data.series import series as seriess

# Split -> (first row, row behind the last).
Borders = Mapping[str, tuple[int, int]]

NAMES = ('train', 'validation', 'test')


def by_share(
  length: int, shares: Sequence[float] = (0.7, 0.1, 0.2)
) -> dict[str, tuple[int, int]]:
  """Training, validation and test rows, one after the other in time.

  >>> by_share(100)
  {'train': (0, 70), 'validation': (70, 80), 'test': (80, 100)}

  Args:
    length: Rows of the series.
    shares: Of the three, which add up to 1.

  Raises:
    InputError: If a part has no rows.
  """
  if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
    raise types.InputError(
      f'config.data.shares are three numbers > 0 that add up to 1; got {shares}'
    )
  ends = np.rint(np.cumsum([0, *shares]) * length).astype(int).tolist()
  return _borders(ends, length)


def by_rows(length: int, counts: Sequence[int]) -> dict[str, tuple[int, int]]:
  """So many training, validation and test rows from the first on.

  `ETT_HOURS`, and `ETT_MINUTES` where a row is 15 minutes, are those of 12, 4
  and 4 months of 30 days that results on ETT are published with (Zhou et al.,
  AAAI 2021, sec. 4.1, https://arxiv.org/abs/2012.07436).

  Args:
    length: Rows of the series.
    counts: Rows of the three.

  Raises:
    InputError: If the series is shorter, or there are not three counts.
  """
  if len(counts) != 3:
    raise types.InputError(f'counts are those of three splits; got {counts}')
  return _borders(np.cumsum([0, *counts]).tolist(), length)


ETT_HOURS = (12 * 30 * 24, 4 * 30 * 24, 4 * 30 * 24)
ETT_MINUTES = (48 * 30 * 24, 16 * 30 * 24, 16 * 30 * 24)


def fit_scale(
  series: seriess.Series, rows: tuple[int, int], *, constant: str = 'refuse'
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation [C] of what was measured in some rows.

  Args:
    series: What is to be scaled.
    rows: [start, stop), those of training: no later number is looked at.
    constant: What to do with a column that never changes in these rows:
      'refuse', or 'keep' it with the scale 1.

  Raises:
    InputError: If a column has no values there, or is constant.
  """
  types.check_choice('constant', constant, ('refuse', 'keep'))
  values = series.values[slice(*rows)].astype(np.float64)
  counts = (~np.isnan(values)).sum(0)
  for name, count in zip(series.columns, counts, strict=True):
    if not count:
      raise types.InputError(
        f'{series.name}: column {name!r} has no value in the training rows: '
        'leave it out of --config.data.columns.'
      )
  centre = np.nanmean(values, 0)
  scale = np.nanstd(values, 0)
  flat = scale <= 1e-6 * np.maximum(abs(centre), 1e-6)
  if flat.any() and constant == 'refuse':
    name = series.columns[int(flat.argmax())]
    raise types.InputError(
      f'{series.name}: column {name!r} is constant in the training rows '
      f'({centre[flat.argmax()]:g}), so that it has no scale and nothing to '
      'forecast: leave it out of --config.data.columns, or the series out of '
      '--config.data.channels.'
    )
  return centre.astype(np.float32), np.where(flat, 1, scale).astype(np.float32)


def fit_column(values: np.ndarray) -> tuple[float, float]:
  """Mean and standard deviation of numbers [T]; 1 where they never change."""
  values = values.astype(np.float64)
  centre, scale = float(values.mean()), float(values.std())
  return centre, scale if scale > 1e-6 * max(abs(centre), 1e-6) else 1.0


def scaled(
  series: seriess.Series, rows: tuple[int, int], *, constant: str = 'refuse'
) -> seriess.Series:
  """The series in units of its own training rows; arguments of `fit_scale`."""
  return series.scaled(*fit_scale(series, rows, constant=constant))


def _borders(ends, length):
  borders = dict(zip(NAMES, itertools.pairwise(ends), strict=True))
  for name, (start, stop) in borders.items():
    if not 0 <= start < stop <= length:
      raise types.InputError(
        f'The {name} split is rows {start} to {stop} of a series of {length}: '
        'give a longer series, or other --config.data.shares.'
      )
  return borders
