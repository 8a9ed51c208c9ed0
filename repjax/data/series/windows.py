"""Host side: windows of series as the rows of a source."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.series import series as seriess


def windows(
  series: seriess.Series | Sequence[seriess.Series],
  *,
  length: int,
  horizon: int = 0,
  stride: int = 1,
  rows: Sequence[tuple[int, int]] | tuple[int, int] | None = None,
  name: str = '',
) -> sources.Source:
  """All windows of some rows; numbers are cut out when a window is read.

  Args:
    series: One or several, with equal columns and covariates.
    length: L, rows that a model reads.
    horizon: H, the rows behind them that it forecasts; 0 for none.
    stride: Rows from one window to the next.
    rows: (start, stop) of all series, or one pair each. What is forecast lies
      in them; what is read may begin up to L rows before, since it is known by
      then. Without forecasts all of a window lies in them. All rows if None.
    name: For messages, such as that of the split.

  Returns:
    A source of 'series' float32 [L, C] and 'observed' [L, C] (0 where a number
    is the last one measured, in place of a missing one), 'covariates' [L + H,
    F], 'entity' (which series) and 'position' (its row at which the window
    begins) int32, 'centre' and 'scale' [C] of its units; with H, 'target' and
    'target_observed' [H, C]; where all series have labels, 'labels' [L + H].

  Raises:
    InputError: If no window fits, rows begin before 0, or series differ in
      their columns.
  """
  several = [series] if isinstance(series, seriess.Series) else list(series)
  if length < 1 or horizon < 0 or stride < 1:
    raise types.InputError(
      f'Need length, stride >= 1 and horizon >= 0; got {length=}, {stride=}, '
      f'{horizon=}'
    )
  _check_alike(several)
  if rows is None:
    pairs = [(0, len(x)) for x in several]
  else:
    pairs = np.broadcast_to(rows, (len(several), 2)).tolist()
    if min(first for first, _ in pairs) < 0:
      raise types.InputError(f'rows count from 0 on; got {rows=}')
  starts, entities = [], []
  for entity, one in enumerate(several):
    first, stop = pairs[entity]
    if horizon:
      first = max(0, first - length)
    fitting = np.arange(first, min(stop, len(one)) - length - horizon + 1)
    starts.append(fitting[::stride])
    entities.append(np.full(len(starts[-1]), entity))
  title = name or several[0].name
  if not sum(map(len, starts)):
    longest = max(map(len, several))
    part = '' if rows is None else f'rows {pairs[0][0]} to {pairs[0][1]} of '
    raise types.InputError(
      f'{title}: no window of length={length} and horizon={horizon} fits into '
      f'{part}a series of {longest} rows: lower them, or give a longer series.'
    )
  ends = np.cumsum([0, *map(len, several)])
  reader = _Windows(
    values=np.concatenate([x.filled() for x in several]),
    observed=np.concatenate([x.observed for x in several]),
    covariates=np.concatenate([_covariates(x) for x in several]),
    labels=None
    if any(x.labels is None for x in several)
    else np.concatenate([x.labels for x in several]),
    centre=np.stack([x.centre for x in several]),
    scale=np.stack([x.scale for x in several]),
    offsets=ends[:-1],
    starts=np.concatenate(starts),
    entities=np.concatenate(entities),
    length=length,
    horizon=horizon,
  )
  return sources.Source(
    name=several[0].name,
    version='',
    split=name,
    num_rows=len(reader.starts),
    num_classes=None,
    class_names=None,
    image_shape=None,
    reader=reader,
    encoded={},
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Windows:
  """The reader; series lie one behind the other."""

  values: np.ndarray
  observed: np.ndarray
  covariates: np.ndarray
  labels: np.ndarray | None
  centre: np.ndarray
  scale: np.ndarray
  offsets: np.ndarray
  starts: np.ndarray
  entities: np.ndarray
  length: int
  horizon: int

  def __call__(self, indices):
    entities, starts = self.entities[indices], self.starts[indices]
    begin = (self.offsets[entities] + starts)[:, None]
    places = begin + np.arange(self.length + self.horizon)
    past, future = places[:, : self.length], places[:, self.length :]
    columns = {
      'series': self.values[past],
      'observed': self.observed[past].astype(np.float32),
      'covariates': self.covariates[places],
      'entity': entities.astype(np.int32),
      'position': starts.astype(np.int32),
      'centre': self.centre[entities],
      'scale': self.scale[entities],
    }
    if self.horizon:
      columns['target'] = self.values[future]
      columns['target_observed'] = self.observed[future].astype(np.float32)
    if self.labels is not None:
      columns['labels'] = self.labels[places]
    return columns


def _covariates(series):
  """float32 [T, F]."""
  if not series.covariates:
    return np.zeros((len(series), 0), np.float32)
  return np.stack(list(series.covariates.values()), -1)


def _check_alike(several):
  if not several:
    raise types.InputError('There is no series.')
  first = several[0]
  for one in several[1:]:
    if one.columns != first.columns or (
      list(one.covariates) != list(first.covariates)
    ):
      raise types.InputError(
        f'{one.name} has columns {list(one.columns)} and covariates '
        f'{list(one.covariates)}, {first.name} has {list(first.columns)} and '
        f'{list(first.covariates)}: series of one set need the same.'
      )
