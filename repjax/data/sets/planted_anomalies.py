"""Host side: periodic series with anomalies of which all is known.

Point, contextual and collective anomalies, as Lai et al. divide them
('Revisiting Time Series Outlier Detection: Definitions and Benchmarks', NeurIPS
2021, https://openreview.net/forum?id=r8IvOsnHchr); the numbers are our own.
"""

from typing import NamedTuple

import numpy as np

from repjax.data.series import series as seriess
from repjax.types import InputError
from repjax.types import check_range

# Of a point, where 0 is normal.
KINDS = ('normal', 'point', 'contextual', 'collective')

_PERIODS = (25.0, 60.0)
_GAP = 20  # Normal points between two anomalies, at least.


class Planted(NamedTuple):
  """A series and what was planted.

  Attributes:
    series: With labels; normal up to its test rows.
    kinds: Index into `KINDS`, int32 [T].
    rows: Numbers of its training, validation and test rows, in this order.
  """

  series: seriess.Series
  kinds: np.ndarray
  rows: tuple[int, int, int]


def make(
  *,
  num_train: int = 8_000,
  num_validation: int = 2_000,
  num_test: int = 15_000,
  num_channels: int = 4,
  num_points: int = 20,
  num_contextual: int = 20,
  num_collective: int = 4,
  lengths: tuple[int, int] = (300, 450),
  noise: float = 0.1,
  seed: int = 0,
) -> Planted:
  """Draws a series.

  A channel is the sum of two sines, of the same periods of 25 and 60 rows in
  all channels, with amplitudes from [.5, 1] and phases of its own, and white
  noise. An anomaly is in half of the channels, drawn anew:

  point: one row, 1.5 to 2 times as far out as sines ever are.
  contextual: 1 to 3 rows with numbers as others have them, at the wrong time:
    at least as far from what belongs there as the channel's deviation.
  collective: a stretch in which a channel is stuck at its first value, runs at
    twice its frequency, or has square waves.

  Args:
    num_train: Training rows, all normal.
    num_validation: Validation rows behind them, all normal.
    num_test: Test rows behind those.
    num_channels: C.
    num_points: Point anomalies.
    num_contextual: Contextual anomalies.
    num_collective: Collective anomalies.
    lengths: Shortest and longest collective anomaly.
    noise: Deviation of the noise.
    seed: Of all draws.

  Raises:
    InputError: If a number is out of range, or anomalies do not fit.
  """
  check_range(
    '[1, inf)',
    num_train=num_train,
    num_validation=num_validation,
    num_test=num_test,
    num_channels=num_channels,
  )
  check_range(
    '[0, inf)',
    num_points=num_points,
    num_contextual=num_contextual,
    num_collective=num_collective,
    noise=noise,
  )
  if not 1 <= lengths[0] <= lengths[1]:
    raise InputError(
      f'lengths are the shortest and the longest anomaly; got {lengths=}'
    )
  rng = np.random.default_rng([seed, num_channels])
  total = num_train + num_validation + num_test
  heights = rng.uniform(0.5, 1.0, (2, num_channels))
  phases = rng.uniform(0, 2 * np.pi, (2, num_channels))

  def sines(rows, speed=1.0):
    turns = np.asarray(rows, np.float64)[:, None, None] * speed
    angles = 2 * np.pi * turns / np.array(_PERIODS)[:, None] + phases
    return (heights * np.sin(angles)).sum(1)  # [T, C]

  clean = sines(np.arange(total))
  values, kinds = clean.copy(), np.zeros(total, np.int32)
  sizes = [
    *((1, 1) for _ in range(num_points)),
    *((2, int(rng.integers(1, 4))) for _ in range(num_contextual)),
    *(
      (3, int(rng.integers(lengths[0], lengths[1] + 1)))
      for _ in range(num_collective)
    ),
  ]
  places = _places([x for _, x in sizes], num_test, rng)
  for (kind, length), place in zip(sizes, places, strict=True):
    start = num_train + num_validation + place
    rows = np.arange(start, start + length)
    chosen = rng.permutation(num_channels)[: max(1, num_channels // 2)]
    kinds[rows] = kind
    if kind == 1:
      far = rng.uniform(1.5, 2.0) * heights.sum(0)[chosen]
      values[rows[:, None], chosen] = far * rng.choice([-1, 1], len(chosen))
    elif kind == 2:
      for channel in chosen:
        values[rows, channel] = _elsewhere(clean[:, channel], rows, rng)
    else:
      values[rows[:, None], chosen] = _odd(sines, rows, rng)[:, chosen]
  values += noise * rng.normal(size=values.shape)
  made = seriess.from_arrays(
    'planted anomalies',
    values,
    columns=[f'channel_{i}' for i in range(num_channels)],
    labels=kinds > 0,
  )
  return Planted(made, kinds, (num_train, num_validation, num_test))


def _places(lengths, total, rng):
  """Rows at which runs of these lengths begin, none near another."""
  free = total - sum(lengths) - _GAP * (len(lengths) + 1)
  if free < 0:
    raise InputError(
      f'{len(lengths)} anomalies of {sum(lengths)} rows in all, {_GAP} apart, '
      f'do not fit into {total} test rows: raise num_test, or plant fewer.'
    )
  order = rng.permutation(len(lengths))
  cuts = np.sort(rng.integers(0, free + 1, len(lengths)))
  before = np.cumsum([0, *(lengths[i] + _GAP for i in order)])[:-1]
  places = np.empty(len(lengths), np.int64)
  places[order] = cuts + before + _GAP
  return places


def _elsewhere(channel, rows, rng):
  """Consecutive values of another time that are wrong in these rows."""
  last = len(channel) - len(rows) + 1
  for start in rng.permutation(last):
    taken = channel[start : start + len(rows)]
    if (abs(taken - channel[rows]) >= channel.std()).all():
      return taken
  # A series as short as its anomalies has no such time: mirrored values.
  return -channel[rows]


def _odd(sines, rows, rng):
  """A stretch of all channels [L, C] in one of three wrong shapes."""
  shape = rng.integers(3)
  if shape == 0:
    return np.repeat(sines(rows[:1]), len(rows), 0)
  if shape == 1:
    return sines(rows, speed=2.0)
  return np.sign(sines(rows)) * abs(sines(rows)).mean(0)
