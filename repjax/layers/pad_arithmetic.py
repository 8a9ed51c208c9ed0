"""Host side: what a sliding window reads, along one dimension of a map.

The arithmetic of Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind
Spots', ICLR 2021 (https://openreview.net/forum?id=m1CD7tPubNy): how much of the
padding a window with a stride reaches on each side, and how often it reads each
place of the map.
"""

from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types

Mode = Literal[
  'zero',
  'circular',
  'symmetric',
  'reflect',
  'replicate',
  'partial',
  'balanced',
]
MODES: tuple[Mode, ...] = (
  'zero',
  'circular',
  'symmetric',
  'reflect',
  'replicate',
  'partial',
  'balanced',
)

# Modes that fill the padding from the map, and what NumPy calls them.
FILLED: dict[str, Literal['wrap', 'symmetric', 'reflect', 'edge']] = {
  'circular': 'wrap',
  'symmetric': 'symmetric',
  'reflect': 'reflect',
  'replicate': 'edge',
}


class Window(NamedTuple):
  """A window that slides over a map along one dimension.

  Attributes:
    size: Places of the map, h.
    kernel: Places that the window reads, k.
    stride: Step between windows, s.
    dilation: Step between the places of a window.
    before: Padding at the top or left, p.
    after: Padding at the bottom or right.
  """

  size: int
  kernel: int
  stride: int = 1
  dilation: int = 1
  before: int = 0
  after: int = 0

  @property
  def extent(self) -> int:
    """Places from the first to the last one that the window reads."""
    return (self.kernel - 1) * self.dilation + 1

  @property
  def out(self) -> int:
    """Number of windows, places of the next map; 0 where none fits."""
    room = self.size + self.before + self.after - self.extent
    return max(0, room // self.stride + 1)

  @property
  def consumed(self) -> tuple[int, int]:
    """Padding that windows reach, (before, after).

    Where h + 2 p - k is no multiple of s, the last window ends before the
    padding does, and less is consumed on that side (section 4).
    """
    beyond = self._end - self.size
    return self.before, min(max(0, beyond), self.after)

  @property
  def unread(self) -> int:
    """Places of the map itself behind the last window."""
    return max(0, self.size - self._end)

  @property
  def is_even(self) -> bool:
    """Whether both ends of the map are treated alike."""
    before, after = self.consumed
    return before == after and not self.unread

  @property
  def _end(self):
    """Place of the map behind the last one that is read."""
    return (self.out - 1) * self.stride + self.extent - self.before


def balanced(window: Window) -> int | None:
  """Padding of each side that makes as many windows and is all consumed.

  Args:
    window: With its own padding, which says how many windows there are.

  Returns:
    (s (h_out - 1) + k - h) / 2, or None where that is no whole number >= 0.
  """
  total = (window.out - 1) * window.stride + window.extent - window.size
  return None if total < 0 or total % 2 else total // 2


def check_reach(window: Window, mode: Mode, where: str) -> None:
  """Refuses padding that is wider than what a mode can take from the map.

  Args:
    window: With its padding.
    mode: One of `MODES`.
    where: What is padded, for the message.

  Raises:
    InputError: If it is.
  """
  if mode not in ('circular', 'symmetric', 'reflect'):
    return
  widest = window.size - 1 if mode == 'reflect' else window.size
  if max(window.before, window.after) > widest:
    raise types.InputError(
      f'{where}: {mode} padding takes at most {widest} places of a map of '
      f"{window.size}, not {max(window.before, window.after)}: use 'replicate' "
      "or 'zero', a smaller kernel or larger images."
    )


def uses(window: Window, mode: Mode = 'zero') -> np.ndarray:
  """How often each window reads each place, as cells of its kernel do.

  Args:
    window: With its padding; it is balanced here for that mode.
    mode: One of `MODES`. Reads of a 'partial' convolution weigh more where
      windows reach into the padding.

  Returns:
    float64 [out, size]; sums over windows are the counts of the authors'
    interactive article (https://mind-the-pad.github.io).

  Raises:
    InputError: If there is no such mode or it cannot pad this map.
  """
  types.check_choice('padding mode', mode, MODES)
  check_reach(window, mode, 'this map')
  if mode == 'balanced':
    own = balanced(window)
    if own is None:
      raise types.InputError(unbalanced(window, 'this map'))
    window = window._replace(before=own, after=own)
  sides = (window.before, window.after)
  places = np.arange(window.size)
  if mode in FILLED:
    source = np.pad(places, sides, mode=FILLED[mode])
  else:
    source = np.pad(places, sides, constant_values=-1)
  counts = np.zeros((window.out, window.size))
  for number in range(window.out):
    first = number * window.stride
    read = source[first : first + window.extent : window.dilation]
    np.add.at(counts[number], read[read >= 0], 1)
  return counts * scales(window)[:, None] if mode == 'partial' else counts


def scales(window: Window) -> np.ndarray:
  """Places of a window over those inside of the map, [out]; 0 if there is none.

  What a partial convolution multiplies its sums with.
  """
  starts = np.arange(window.out) * window.stride - window.before
  read = starts[:, None] + np.arange(window.kernel) * window.dilation
  inside = ((read >= 0) & (read < window.size)).sum(1)
  return np.where(inside > 0, window.kernel / np.maximum(inside, 1), 0.0)


def unbalanced(window: Window, where: str) -> str:
  """Why a window cannot be balanced, and what can be, in one line."""
  kind = 'even' if window.extent % 2 else 'odd'
  # Without a stride the padding is what the kernel needs, whatever the size.
  sizes = (
    '; or maps of another size, as repjax.analysis.padding.even_sizes finds'
    if window.stride > 1
    else ''
  )
  return (
    f'{where}: a kernel of extent {window.extent} with stride {window.stride} '
    f'cannot pad {window.size} places alike on both sides: take an {kind} '
    f'kernel{sizes}'
  )
