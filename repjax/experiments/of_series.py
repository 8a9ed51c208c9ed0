"""Host side: experiments that forecast time series."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.series import reading
from repjax.data.series import series as seriess
from repjax.data.series import splits
from repjax.data.series import time_features
from repjax.data.series import windows
from repjax.data.sets import sines
from repjax.experiments import kept_series
from repjax.experiments import series_figures
from repjax.experiments import wiring
from repjax.layers import pyramid_graph
from repjax.methods import forecasting
from repjax.methods import model_inputs
from repjax.methods import naive_forecasts
from repjax.metrics import forecasting as metrics

# The rows behind the last one, which nobody has measured yet.
FUTURE = 'future'


class Data(NamedTuple):
  """What a config of forecasts says about its data, read.

  Attributes:
    series: In units of their own training rows, with calendars.
    sources: Split -> its windows.
    train: Windows of training.
    steps: Number of updates.
    inputs: What models are called with.
    fitted: Scales and splits of the series.
  """

  series: list[seriess.Series]
  sources: Callable[[str], sources.Source]
  train: sources.Source
  steps: int
  inputs: model_inputs.Inputs
  fitted: list[kept_series.Fitted]


def read(config: Any) -> Data:
  """Reads the series that a config names, scales and splits them.

  Args:
    config: With batch_size, epochs, min_steps and the group `data`: file (CSV,
      or FILE.npz:KEY) or else name ('sines', or a TFDS set of series, and value
      and channels, () for all), dir, columns (names with commas between them;
      '' for all), covariates (columns that are known ahead), time_column, gaps,
      split ('shares', 'ett_hours' or 'ett_minutes') and shares, length,
      horizon, stride and eval_stride (rows from one window to the next), sines
      (what generates them); and with run.fitted, the `series.json` of a run
      whose scales and splits count, or ''.

  Raises:
    InputError: Of whatever is wrong with it, before any compute.
  """
  data = config.data
  types.check_range('[1, inf)', **{'config.data.horizon': data.horizon})
  whole = load(config)
  raw = [x.part(0, _measured(x)) for x in whole]
  fitted = kept_series.fit(
    raw, functools.partial(_borders, config), kept=config.run.fitted
  )
  # Calendars have a scale of their own.
  whole = [
    time_features.with_calendar(y.scaled(x))
    for x, y in zip(whole, fitted, strict=True)
  ]
  series = [x.part(0, len(y)) for x, y in zip(whole, raw, strict=True)]

  def windows_of(split):
    if split == FUTURE:
      longer = [
        _with_future(x, y, known=z.covariates, horizon=data.horizon)
        for x, y, z in zip(series, whole, raw, strict=True)
      ]
      rows = [(len(x), len(x) + data.horizon) for x in series]
      return windows.windows(
        longer, length=data.length, horizon=data.horizon, rows=rows, name=split
      )
    if split == kept_series.NEW:
      rows = kept_series.new_rows(series, fitted)
    elif split in splits.NAMES:
      rows = [x.borders[split] for x in fitted]
    else:
      raise types.InputError(
        f'{split!r} is no split of a series: there are '
        f'{", ".join(splits.NAMES)}, {kept_series.NEW} for rows that came '
        f'since a run was trained, and {FUTURE} for what is not measured yet.'
      )
    return windows.windows(
      series,
      length=data.length,
      horizon=data.horizon,
      stride=data.stride if split == 'train' else data.eval_stride,
      rows=rows,
      name=split,
    )

  train = windows_of('train')
  # By the rows that the run knew: its network was made for those.
  with_gaps = any(
    not x.observed[: known.num_rows].all()
    for x, known in zip(series, fitted, strict=True)
  )
  return Data(
    series=series,
    sources=windows_of,
    train=train,
    steps=wiring.steps_of(config, len(train)),
    inputs=forecasting.past_with_gaps if with_gaps else forecasting.past,
    fitted=fitted,
  )


def load(config: Any) -> list[seriess.Series]:
  """The series that a config names, as they were measured."""
  data = config.data
  columns, covariates = (
    tuple(x.strip() for x in names.split(',') if x.strip())
    for names in (data.columns, data.covariates)
  )
  if twice := [x for x in covariates if x in columns]:
    raise types.InputError(
      f'{twice[0]!r} is among --config.data.columns, which are forecast, and '
      '--config.data.covariates, which are known ahead: name it once.'
    )
  if data.file:
    name, _, key = data.file.partition('.npz:')
    if key:
      found = [reading.read_npz(_place(data.dir, f'{name}.npz'), key)]
    else:
      found = [
        reading.read_csv(
          _place(data.dir, data.file),
          columns=(*columns, *covariates) if columns else (),
          time_column=data.time_column,
          gaps=data.gaps,
        )
      ]
  elif data.name == 'sines':
    found = sines.sines(**data.sines)
  else:
    found = reading.named(
      reading.read_tfds(
        data.name,
        data.train_split,
        data_dir=data.dir,
        value=data.value,
        time=data.time_column,
      ),
      data.channels,
      of=data.name,
    )
    found = [reading.regular(x, gaps=data.gaps) for x in found]
  if covariates:
    found = [x.known_ahead(covariates) for x in found]
  return [x.select(columns) for x in found] if columns else found


def forecaster(
  config: Any,
  data: Data,
  method: types.Method,
  *,
  pyramid: pyramid_graph.Pyramid | None = None,
) -> types.Experiment:
  """An experiment that forecasts series, beside the naive forecasts.

  Those of the last value, of the last season (config.data.period) and of a
  linear map are made and measured in every run.

  Args:
    config: With what `read` and `wiring` read.
    data: `read(config)`.
    method: What is trained, of `methods.forecasting`.
    pyramid: The graph of its model, for a figure.
  """
  columns = data.series[0].columns
  told = [f'{x}{kind}' for x in columns for kind in _KINDS]
  seriess.check_names(columns, [*_PLACE, *told])
  horizon, length = config.data.horizon, config.data.length
  kernel = naive_forecasts.fit_linear(data.train, data.sources('validation'))
  method = naive_forecasts.beside(
    method,
    {
      'last': naive_forecasts.last_value(horizon),
      'seasonal': naive_forecasts.seasonal(horizon, config.data.period, length),
      'linear': naive_forecasts.linear(kernel),
    },
  )
  made = wiring.of_sources(
    config,
    method,
    batches=wiring.shuffled(config, data.train),
    sources=data.sources,
    steps=data.steps,
    measure=lambda outputs, columns: metrics.measure(outputs),
    figures=lambda rows, outputs, columns: {
      **series_figures.forecasts(
        rows, outputs, columns, data.series[0].columns
      ),
      **({} if pyramid is None else {'graph': series_figures.graph(pyramid)}),
    },
  )
  return made._replace(
    companion=kept_series.companion(data.fitted),
    tables=lambda split, outputs, columns: {
      'forecasts': (
        _header(data.series[0], outputs),
        _table(data, split, outputs, columns),
      )
    },
  )


def _place(folder: str, file: str) -> pathlib.Path:
  """A file as it is named, or else in the folder of the data."""
  path = pathlib.Path(file).expanduser()
  inside = pathlib.Path(folder).expanduser() / file
  return inside if folder and not path.exists() else path


def _borders(config, length):
  months = dict(ett_hours=splits.ETT_HOURS, ett_minutes=splits.ETT_MINUTES)
  split = config.data.split
  types.check_choice('config.data.split', split, ('shares', *months))
  if split == 'shares':
    return splits.by_share(length, config.data.shares)
  return splits.by_rows(length, months[split])


def _measured(series):
  """Rows up to the last one measured, where others may be known ahead."""
  if not series.covariates:
    return len(series)
  rows = np.flatnonzero(series.observed.any(1))
  return int(rows[-1]) + 1 if rows.size else len(series)


def _with_future(series, whole, *, known, horizon):
  """The series with rows that were not measured behind its last."""
  if known:
    ahead = len(whole) - len(series)
    if ahead < horizon:
      raise types.InputError(
        f'{series.name}: of the {horizon} rows that are forecast behind the '
        f'last one measured, {", ".join(known)} are known for {ahead}: append '
        'rows with them to the file, whose other cells are empty.'
      )
    return whole.part(0, len(series) + horizon)
  times = None
  if series.times is not None:
    step = series.times[-1] - series.times[-2]
    more = series.times[-1] + step * np.arange(1, horizon + 1)
    times = np.concatenate([series.times, more])
  missing = np.full((horizon, len(series.columns)), np.nan, np.float32)
  longer = seriess.from_arrays(
    series.name,
    np.concatenate([series.values, missing]),
    columns=series.columns,
    times=times,
  )
  return time_features.with_calendar(
    dataclasses.replace(longer, centre=series.centre, scale=series.scale)
  )


# Of a table: columns before those of the series, and what it says of each.
_PLACE = ('series', 'row', 'time', 'ahead')
_KINDS = ('_forecast', '_deviation')


def _header(series, outputs):
  kinds = ['', *(x for x in _KINDS if x[1:] in outputs)]
  names = [f'{x}{kind}' for x in series.columns for kind in kinds]
  return [*_PLACE, *names]


def _table(data: Data, split, outputs, columns) -> Iterator[list[Any]]:
  """One line a row of a series: of the first window that forecasts it."""
  rows = data.sources(split).read(columns['index'])
  horizon, length = outputs['forecast'].shape[1], rows['series'].shape[1]
  behind: dict[int, int] = {}  # Series -> the row behind its last forecast.
  for i, entity in enumerate(rows['entity']):
    first = int(rows['position'][i]) + length
    begin = max(0, behind.get(int(entity), 0) - first)
    behind[int(entity)] = first + max(horizon, begin)
    series = data.series[entity]
    times = None
    if series.times is not None:
      step = series.times[1] - series.times[0]
      times = series.times[0] + step * np.arange(first, first + horizon)
    truth = series.in_units(outputs['target'][i])
    forecast = series.in_units(outputs['forecast'][i])
    for h in range(begin, horizon):
      line = [series.name, first + h, '' if times is None else times[h], h + 1]
      for c in range(len(series.columns)):
        known = outputs['target_observed'][i, h, c] > 0
        line += [truth[h, c] if known else '', forecast[h, c]]
        if 'deviation' in outputs:
          line.append(outputs['deviation'][i, h, c] * series.scale[c])
      yield line
