"""Host side: how many places a learnt stride keeps, and within what limits.

A crop is static in a compiled step, so it is chosen here, of strides that are
numbers, and before the step is traced.
"""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Generic
from typing import Literal
from typing import TypeVar

from repjax import types
from repjax.types import InputError

Sizes = tuple[int, ...]

_T = TypeVar('_T')

_LAYOUTS = ('centred', 'public_code')


def crop_size(
  length: int,
  stride: float,
  smoothness: float,
  *,
  multiple: int = 1,
  layout: Literal['centred', 'public_code'] = 'centred',
  axis: int = 0,
) -> int:
  """Places that hold all frequencies with a weight: N / S + 2 R, rounded up.

  With a smoothness of 4 maps hardly shrink: 32 places become 24, 20 and 18 by
  three strides of 2, where a strided convolution leaves 16, 8 and 4.

  Args:
    length: N.
    stride: S.
    smoothness: R.
    multiple: The size is rounded up to a multiple of it, if the map has that
      many places.
    layout: 'centred', or 'public_code', whose odd heights and widths come out
      otherwise.
    axis: Of the map, 0 for rows; of 'public_code'.

  Raises:
    InputError: If `multiple` is out of range, or there is no such layout.
  """
  types.check_choice('layout', layout, _LAYOUTS)
  types.check_range('[1, inf)', multiple=multiple)
  kept = math.ceil(max(length / stride, 2.0) / 2 + smoothness)
  odd = layout == 'public_code' and length % 2
  size = 2 * kept - (1 if odd and axis == 0 else 0)
  size = -(-size // multiple) * multiple
  return min(length - (1 if odd and axis == 1 else 0), size)


def resolve(
  sizes: Sequence[int] | Literal['initial', 'full'],
  shape: Sequence[int],
  strides: Sequence[float],
  smoothness: float,
  *,
  room: float = 1.0,
  layout: Literal['centred', 'public_code'] = 'centred',
) -> Sizes:
  """What `DiffStride.sizes` are on a map of some shape."""
  types.check_range('[1, inf)', room=room)
  if isinstance(sizes, str):
    types.check_choice('sizes', sizes, ('initial', 'full'))
    if sizes == 'full':
      strides = [1.0] * len(strides)
    strides = [max(1.0, stride / room) for stride in strides]
    return tuple(
      crop_size(length, stride, smoothness, layout=layout, axis=axis)
      for axis, (length, stride) in enumerate(zip(shape, strides, strict=True))
    )
  return tuple(sizes)


def limits(
  shape: Sequence[int],
  sizes: Sequence[int],
  smoothness: float,
  *,
  layout: Literal['centred', 'public_code'] = 'centred',
) -> tuple[tuple[float, float], ...]:
  """Smallest and largest stride of each axis of a map and its crop.

  The smallest has some frequency on its ramp (else no gradient would ever come
  back), and its ramp fits into the crop. The largest leaves two places.

  Args:
    shape: N of each axis.
    sizes: Places that are kept.
    smoothness: R.
    layout: 'centred': the highest frequency is half a step down the ramp.
      'public_code': N / (N - R), the middle of the ramp.

  Raises:
    InputError: If a crop is too small for any stride, or there is no such
      layout.
  """
  types.check_choice('layout', layout, _LAYOUTS)
  found = []
  for length, size in zip(shape, sizes, strict=True):
    if layout == 'public_code':
      low = length / (length - smoothness)
    else:
      low = length / max(2 * (length // 2) - 1, 1)
    high = max(length / 2, 1.0)
    if size < length - length % 2:
      room = size + size % 2 - 2 * smoothness  # N / S, at most.
      if room < 2:
        raise InputError(
          f'A crop of {size} places holds no stride with '
          f'smoothness={smoothness}: give sizes of at least '
          f'{math.ceil(2 + 2 * smoothness)}, or a smaller smoothness.'
        )
      low = max(low, length / room)
    found.append((min(low, high), high))
  return tuple(found)


def check_smoothness(shape: Sequence[int], smoothness: float) -> None:
  """Raises InputError unless 0 < smoothness < each axis of the map."""
  types.check_range('(0, inf)', smoothness=smoothness)
  if min(shape) <= smoothness:
    raise InputError(
      f'A map of {"x".join(map(str, shape))} places is not larger than '
      f'smoothness={smoothness}: give a smaller smoothness, or pool less '
      'before it.'
    )


def chain(
  shape: Sequence[int],
  strides: Sequence[Sequence[float]],
  smoothness: float,
  *,
  multiple: int = 1,
) -> tuple[Sizes, ...]:
  """Crops of layers one behind the other, of which each sees what was left.

  Args:
    shape: Places of the map that the first one sees.
    strides: Of each layer in order, one an axis, or one for all.
    smoothness: R.
    multiple: Sizes are rounded up to multiples of it.
  """
  found = []
  shape = tuple(shape)
  for own in strides:
    every = tuple(own) * (len(shape) if len(own) == 1 else 1)
    shape = tuple(
      crop_size(length, float(stride), smoothness, multiple=multiple)
      for length, stride in zip(shape, every, strict=True)
    )
    found.append(shape)
  return tuple(found)


class Compiled(Generic[_T]):
  """What is made for some crops, kept for a bounded number of them.

  `made = compiled(sizes)` gives what `make` made of these sizes, such as a
  compiled step. Where the number is reached, it gives what the smallest larger
  crops have, which hold the strides as well; only where there are none, the
  one that has not been used for longest makes room.

  Attributes:
    num_made: How often `make` was called.
  """

  def __init__(
    self, make: Callable[[tuple[Sizes, ...]], _T], *, max_kept: int = 8
  ):
    types.check_range('[1, inf)', max_kept=max_kept)
    self._make, self._max = make, max_kept
    self._kept: collections.OrderedDict[tuple[Sizes, ...], _T] = (
      collections.OrderedDict()
    )
    self.num_made = 0

  def __call__(self, sizes: Sequence[Sequence[int]]) -> _T:
    """What was made for these crops, one a layer, or for larger ones."""
    key = tuple(tuple(map(int, size)) for size in sizes)
    if key not in self._kept and len(self._kept) >= self._max:
      larger = [kept for kept in self._kept if _holds(kept, key)]
      if larger:
        key = min(larger, key=_places)
      else:
        self._kept.popitem(last=False)
    if key not in self._kept:
      self._kept[key] = self._make(key)
      self.num_made += 1
    self._kept.move_to_end(key)
    return self._kept[key]


def _holds(kept, wanted):
  """Whether the strides of wanted crops fit into those that are kept.

  Behind a larger crop the next layer sees a larger map, of which its own is to
  leave as large a part.
  """
  before = [None, *zip(kept, wanted, strict=True)]
  for last, own, other in zip(before, kept, wanted, strict=False):
    for axis, (x, y) in enumerate(zip(own, other, strict=True)):
      if x < y or (last and x * last[1][axis] < y * last[0][axis]):
        return False
  return True


def _places(sizes):
  return sum(map(math.prod, sizes))
