"""Host side: what a time stamp tells: hour, day of the week, of the year."""

import numpy as np

from repjax import types
from repjax.data.series import series as seriess

_DAY = np.timedelta64(1, 'D')


def calendar(times: np.ndarray) -> dict[str, np.ndarray]:
  """Hour, day of the week, of the month and of the year, in [-.5, .5].

  Those of hourly data in Informer and Pyraformer (Zhou et al., AAAI 2021, app.
  B, https://arxiv.org/abs/2012.07436), and the minute where steps are shorter
  than an hour.

  Args:
    times: datetime64[s] [T].

  Returns:
    Name -> float32 [T].
  """
  days = times.astype('datetime64[D]')
  seconds = (times - days).astype(np.int64)
  # 1970-01-01 was a Thursday, and Monday is 0.
  weekday = (days.astype(np.int64) + 3) % 7
  month_day = (days - days.astype('datetime64[M]')) // _DAY
  year_day = (days - days.astype('datetime64[Y]')) // _DAY
  made = {
    'hour': seconds // 3600 / 23.0 - 0.5,
    'weekday': weekday / 6.0 - 0.5,
    'month_day': month_day / 30.0 - 0.5,
    'year_day': year_day / 365.0 - 0.5,
  }
  if (seconds % 3600).any():
    made['minute'] = seconds // 60 % 60 / 59.0 - 0.5
  return {name: x.astype(np.float32) for name, x in made.items()}


def with_calendar(series: seriess.Series) -> seriess.Series:
  """The series with `calendar` as covariates, where it has times.

  Raises:
    InputError: If it has a covariate of the same name.
  """
  if series.times is None:
    return series
  made = calendar(series.times)
  for name in made:
    if name in series.covariates:
      raise types.InputError(
        f'{series.name}: the covariate {name!r} is called as what is made of '
        'its time stamps: rename it in the file.'
      )
  return series.with_covariates(made)
