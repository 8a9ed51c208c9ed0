"""Host side: windows of a series that arrives row by row."""

import numpy as np

from repjax import types


class Stream:
  """The latest window of a series, for forecasts and scores as it arrives.

  Rows are scaled and filled as those of `windows` are, so that a window that
  arrives is that of the file. (Scores of a file's points are means over all
  windows that hold them: alarms of a stream need a threshold of their own, of
  windows with stride 1 and their last rows.)
  """

  def __init__(self, *, length: int, centre: np.ndarray, scale: np.ndarray):
    """Makes an empty one.

    Args:
      length: L, rows of a window.
      centre: Of the training rows, [C]; see `splits.fit_scale`.
      scale: Of the training rows, [C].
    """
    if length < 1:
      raise types.InputError(f'length must be at least 1; got {length}')
    self._centre = np.asarray(centre, np.float32)
    self._scale = np.asarray(scale, np.float32)
    self._length = length
    # Each row stands twice, L apart, so that every window is one slice.
    shape = (2 * length, len(self._centre))
    self._values = np.zeros(shape, np.float32)
    self._observed = np.zeros(shape, np.float32)
    self._last = np.zeros(shape[1], np.float32)
    self._count = 0

  def __len__(self) -> int:
    """Rows that have arrived."""
    return self._count

  def push(self, row: np.ndarray) -> dict[str, np.ndarray] | None:
    """Takes the next row.

    Args:
      row: [C] in units of the source, NaN where nothing was measured.

    Returns:
      The window that ends with it, 'series' and 'observed' [L, C], which the
      next `push` overwrites; None while fewer than L rows have arrived.

    Raises:
      InputError: If the row has another size or an infinite number.
    """
    row = np.asarray(row, np.float32)
    if row.shape != self._last.shape or np.isinf(row).any():
      raise types.InputError(
        f'A row is {len(self._last)} finite numbers or NaN; got {row}'
      )
    observed = ~np.isnan(row)
    scaled = (row - self._centre) / self._scale
    self._last = np.where(observed, scaled, self._last)
    place = self._count % self._length
    for at in (place, place + self._length):
      self._values[at] = self._last
      self._observed[at] = observed
    self._count += 1
    if self._count < self._length:
      return None
    window = slice(place + 1, place + 1 + self._length)
    return {'series': self._values[window], 'observed': self._observed[window]}
