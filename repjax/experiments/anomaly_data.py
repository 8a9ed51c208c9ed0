"""Host side: series with normal parts to learn from, and a part to judge."""

from collections.abc import Mapping
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

NAMES = ('planted', 'smap_msl', 'nab')


class Data(NamedTuple):
  """Series of a config, in units of their training rows.

  Attributes:
    parts: 'train', 'validation' and 'test' -> series, those of one entity at
      the same place of each.
    begin: The row of its series at which each of `everything` begins.
    kinds: Index into `planted_anomalies.KINDS` of the points of the only test
      series, or None where anomalies were not planted.
  """

  parts: Mapping[str, list[seriess.Series]]
  begin: tuple[int, ...]
  kinds: np.ndarray | None

  def everything(self) -> list[tuple[str, seriess.Series]]:
    """(name of its part, series) of all parts, one after the other."""
    return [(name, x) for name, part in self.parts.items() for x in part]


def read(config: Any) -> Data:
  """Reads, divides and scales the series that a config names.

  Args:
    config: With the groups `data` (file, columns, time_column, label_column,
      gaps and shares of a CSV file; or name, dir, channels and shares) and
      `planted` (arguments of `planted_anomalies.make`).

  Raises:
    InputError: If something is not there, or is no series.
  """
  data = config.data
  if data.file:
    file = pathlib.Path(data.file).expanduser()
    series = reading.read_csv(
      file if file.exists() else pathlib.Path(data.dir).expanduser() / file,
      columns=tuple(x.strip() for x in data.columns.split(',') if x.strip()),
      time_column=data.time_column,
      label_column=data.label_column,
      gaps=data.gaps,
    )
    return _divided([series], [splits.by_share(len(series), data.shares)])
  types.check_choice('config.data.name', data.name, NAMES)
  if data.name == 'planted':
    made = planted_anomalies.make(**config.planted, seed=config.seed)
    borders = splits.by_rows(len(made.series), made.rows)
    kinds = made.kinds[slice(*borders['test'])]
    return _divided([made.series], [borders])._replace(kinds=kinds)
  if not data.channels:
    raise types.InputError("config.data.channels names none: try ('A-1',).")
  if data.name == 'nab':
    found = _numenta(data)
    rows = [splits.by_share(len(x), data.shares) for x in found]
    return _divided(found, rows, constant='keep')
  return _spacecraft(data)


def _divided(series, borders, *, constant='refuse'):
  """Series in units of their own training rows, part by part."""
  scaled = [
    splits.scaled(x, rows['train'], constant=constant)
    for x, rows in zip(series, borders, strict=True)
  ]
  parts = {
    name: [x.part(*y[name]) for x, y in zip(scaled, borders, strict=True)]
    for name in splits.NAMES
  }
  begin = tuple(y[name][0] for name in splits.NAMES for y in borders)
  return Data(parts, begin, None)


def _numenta(data):
  """Series of the Numenta Anomaly Benchmark, by name or by folder.

  Lavin and Ahmad, 2015, https://arxiv.org/abs/1510.03336. Some have anomalies
  among their first rows, too, which nobody may take out: labels are not known
  when a detector learns.
  """
  there = reading.read_tfds('nab', 'train', data_dir=data.dir, label='label')
  found = []
  for channel in data.channels:
    named = [x for x in there if channel in (x.name, x.name.split('/')[0])]
    if not named:
      folders = sorted({x.name.split('/')[0] for x in there})
      raise types.InputError(
        f'config.data.channels: nab has no series or folder {channel!r}; its '
        f'folders are {", ".join(folders)}.'
      )
    found += named
  return found


def _spacecraft(data):
  """Channels of SMAP or MSL (Hundman et al., KDD 2018).

  https://arxiv.org/abs/1802.04431. The last fifth of the rows that the authors
  train on is for validation.
  """
  parts: dict[str, list] = {name: [] for name in splits.NAMES}
  begin: dict[str, list[int]] = {name: [] for name in splits.NAMES}
  for channel in data.channels:
    file = pathlib.Path(data.dir) / f'{channel}.npz'
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

  Those of 'test' have the validation rows' before them, since what is an alarm
  is decided there.

  Args:
    data: From `read`.
    split: 'train', 'validation' or 'test'.
    length: Points of a window.
    stride: That of training windows.
    eval_stride: From one window to the next, at most `length`.

  Returns:
    A source as `windows.windows` gives it, in which 'entity' counts all series
    of all parts; `points` knows that.
  """
  types.check_choice('split', split, splits.NAMES)
  del stride
  types.check_range(
    f'[1, {length}]', **{'config.window.eval_stride': eval_stride}
  )
  wanted = (split, 'validation') if split == 'test' else (split,)
  rows, begin = [], 0
  for name, one in data.everything():
    last = len(one) - length
    if name in wanted and last < 0:
      raise types.InputError(
        f'{one.name}: its {name} split of {len(one)} rows is shorter than a '
        f'window: lower --config.window.length={length}.'
      )
    if name in wanted:
      rows.append(begin + np.append(np.arange(0, last, eval_stride), last))
    begin += max(last + 1, 0)
  everything = [x for _, x in data.everything()]
  dense = windows.windows(everything, length=length, name=split)
  return dense.select(np.concatenate(rows))
