"""Host side: series with normal parts to learn from, and a part to judge."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source
from repjax.data.series import reading
from repjax.data.series import series as seriess
from repjax.data.series import splits
from repjax.data.series import windows
from repjax.data.sets import planted_anomalies
from repjax.experiments import kept_series

NAMES = ('planted', 'smap_msl', 'nab')
_SHARES = (0.6, 0.1, 0.3)  # The default, which some have no use for.


class Data(NamedTuple):
  """Series of a config, in units of their training rows.

  Attributes:
    parts: 'train', 'validation' and 'test' -> series, those of one entity at
      the same place of each; and 'new' where rows came since a run was trained.
    begin: The row of its series at which each of `everything` begins.
    kinds: Index into `planted_anomalies.KINDS` of the points of the only test
      series, or None where anomalies were not planted.
    fitted: Scales and splits; of spacecraft, whose files do not grow, none.
  """

  parts: Mapping[str, list[seriess.Series]]
  begin: tuple[int, ...]
  kinds: np.ndarray | None
  fitted: Sequence[kept_series.Fitted] = ()

  def everything(self) -> list[tuple[str, seriess.Series]]:
    """(name of its part, series) of all parts, one after the other."""
    return [(name, x) for name, part in self.parts.items() for x in part]


def read(config: Any) -> Data:
  """Reads, divides and scales the series that a config names.

  Args:
    config: With the groups `data` (file, columns, time_column, label_column,
      gaps and shares of a CSV file; or name, dir, channels and shares) and
      `planted` (arguments of `planted_anomalies.make`), and with run.fitted,
      the `series.json` of a run whose scales and splits count, or ''.

  Raises:
    InputError: If something is not there, or is no series.
  """
  data = config.data
  by_share = functools.partial(splits.by_share, shares=data.shares)
  if data.file:
    file = pathlib.Path(data.file).expanduser()
    series = reading.read_csv(
      file if file.exists() else pathlib.Path(data.dir).expanduser() / file,
      columns=tuple(x.strip() for x in data.columns.split(',') if x.strip()),
      time_column=data.time_column,
      label_column=data.label_column,
      gaps=data.gaps,
    )
    return _divided([series], by_share, config.run.fitted)
  types.check_choice('config.data.name', data.name, NAMES)
  if data.name != 'nab' and tuple(data.shares) != _SHARES:
    raise types.InputError(
      f'config.data.shares={tuple(data.shares)}: {data.name} has parts of its '
      f'own; leave the default {_SHARES}.'
    )
  if data.name == 'planted':
    made = planted_anomalies.make(**config.planted, seed=config.seed)
    by_rows = functools.partial(splits.by_rows, counts=made.rows)
    divided = _divided([made.series], by_rows, config.run.fitted)
    rows = divided.fitted[0].borders['test']
    return divided._replace(kinds=made.kinds[slice(*rows)])
  if not data.channels:
    raise types.InputError("config.data.channels names none: try ('A-1',).")
  if data.name == 'nab':
    return _divided(
      _numenta(data), by_share, config.run.fitted, constant='keep'
    )
  return _spacecraft(data)


def _divided(
  series: Sequence[seriess.Series],
  divide: Callable[[int], splits.Borders],
  kept: str,
  *,
  constant: str = 'refuse',
):
  """Series in units of their own training rows, part by part."""
  fitted = kept_series.fit(series, divide, kept=kept, constant=constant)
  rows = {name: [x.borders[name] for x in fitted] for name in splits.NAMES}
  if any(len(x) > y.num_rows for x, y in zip(series, fitted, strict=True)):
    rows[kept_series.NEW] = kept_series.new_rows(series, fitted)
  scaled = [
    x.scaled(y.centre, y.scale) for x, y in zip(series, fitted, strict=True)
  ]
  parts = {
    name: [x.part(*y) for x, y in zip(scaled, of, strict=True)]
    for name, of in rows.items()
  }
  begin = tuple(start for of in rows.values() for start, _ in of)
  return Data(parts, begin, None, fitted)


def _numenta(data):
  """Series of the Numenta Anomaly Benchmark, by name or by folder.

  Lavin and Ahmad, 2015, https://arxiv.org/abs/1510.03336. Some have anomalies
  among their first rows, too, which nobody may take out: labels are not known
  when a detector learns.
  """
  there = reading.read_tfds('nab', 'train', data_dir=data.dir, label='label')
  return reading.named(there, data.channels, of='nab')


def _spacecraft(data):
  """Channels of SMAP or MSL (Hundman et al., KDD 2018).

  https://arxiv.org/abs/1802.04431. The last fifth of the rows that the authors
  train on is for validation.
  """
  parts: dict[str, list] = {name: [] for name in splits.NAMES}
  begin: dict[str, list[int]] = {name: [] for name in splits.NAMES}
  for channel in data.channels:
    file = pathlib.Path(data.dir).expanduser() / f'{channel}.npz'
    if not file.is_file():
      raise types.InputError(
        f'There is no {file}: give --data_dir, the folder of <channel>.npz '
        'with arrays train, test and test_label, or other '
        '--config.data.channels.'
      )
    known = reading.read_npz(file, 'train')
    test = reading.read_npz(file, 'test', label_key='test_label')
    rows = (0, round(0.8 * len(known)))
    # Commands are rare: some come in the test rows alone.
    scale = splits.fit_scale(known, rows, constant='keep')
    known, test = known.scaled(*scale), test.scaled(*scale)
    parts['train'].append(known.part(*rows))
    parts['validation'].append(known.part(rows[1], len(known)))
    parts['test'].append(test)
    for name, row in zip(splits.NAMES, (0, rows[1], 0), strict=True):
      begin[name].append(row)
  return Data(parts, tuple(itertools.chain(*begin.values())), None)


def training_windows(
  data: Data, *, length: int, stride: int, eval_stride: int
) -> source.Source:
  """Windows of the training rows; arguments are the group `window`."""
  del eval_stride  # That of other parts.
  return windows.windows(
    data.parts['train'], length=length, stride=stride, name='train'
  )


def eval_windows(
  data: Data, split: str, *, length: int, stride: int, eval_stride: int
) -> source.Source:
  """Windows that cover each point of a split, the last ones to the very end.

  Those of 'test' and 'new' have the validation rows' before them, since what is
  an alarm is decided there.

  Args:
    data: From `read`.
    split: 'train', 'validation', 'test', or 'new' where it is a part.
    length: Points of a window.
    stride: That of training windows.
    eval_stride: From one window to the next, at most `length`.

  Returns:
    A source as `windows.windows` gives it, in which 'entity' counts all series
    of all parts; `points` knows that.
  """
  if split == kept_series.NEW and data.fitted and split not in data.parts:
    raise kept_series.nothing_new(data.fitted[0].num_rows)
  types.check_choice('split', split, tuple(data.parts))
  del stride
  types.check_range(
    f'[1, {length}]', **{'config.window.eval_stride': eval_stride}
  )
  judged = split in ('test', kept_series.NEW)
  wanted = (split, 'validation') if judged else (split,)
  rows, begin = [], 0
  for name, one in data.everything():
    last = len(one) - length
    if name in wanted and last < 0:
      raise types.InputError(
        f'{one.name}: its {name} split of {len(one)} rows is shorter than a '
        f'window: give more, or lower --config.window.length={length}.'
      )
    if name in wanted:
      rows.append(begin + np.append(np.arange(0, last, eval_stride), last))
    begin += max(last + 1, 0)
  everything = [x for _, x in data.everything()]
  dense = windows.windows(everything, length=length, name=split)
  return dense.select(np.concatenate(rows))
