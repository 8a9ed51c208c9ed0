"""Host side: several short texts in one row, which see nothing of each other.

Raffel et al., JMLR 2020 (https://arxiv.org/abs/1910.10683), section 2.1 of
their code: padding costs as much as text.
"""

from collections.abc import Mapping

import numpy as np

from repjax import types
from repjax.data.reading import source as sources


def first_fit(lengths: np.ndarray, room: tuple[int, ...]) -> list[list[int]]:
  """Puts each row into the first place that has room for all of its lengths.

  Args:
    lengths: Of N rows, [N, K], K kinds of length (of sources, of targets).
    room: Of a place, K.

  Returns:
    The rows of each place, in rising order.

  Raises:
    InputError: A row is longer than a place.
  """
  lengths = np.asarray(lengths)
  if lengths.ndim != 2 or lengths.shape[1] != len(room):
    raise types.InputError(
      f'lengths must be [rows, {len(room)}], got {lengths.shape}'
    )
  if len(lengths) and (lengths > room).any():
    raise types.InputError(
      f'a row of {lengths.max(0).tolist()} tokens does not fit into {room}'
    )
  # Places that are still open; the many full ones are not asked again.
  left = np.zeros((0, len(room)), np.int64)
  number: list[int] = []
  made: list[list[int]] = []
  smallest = lengths.min(0) if len(lengths) else np.zeros(len(room))
  for row, length in enumerate(lengths):
    fits = (left >= length).all(1)
    if fits.any():
      at = int(fits.argmax())
      left[at] -= length
      made[number[at]].append(row)
    else:
      made.append([row])
      number.append(len(made) - 1)
      left = np.concatenate([left, [np.asarray(room) - length]])
      at = len(left) - 1
    if (left[at] < smallest).any():
      left = np.delete(left, at, 0)
      del number[at]
  return made


def packed(
  rows: Mapping[str, np.ndarray], *, source_length: int, target_length: int
) -> sources.Source:
  """Rows of an encoder-decoder, packed by `first_fit`.

  Args:
    rows: 'source', 'source_mask', 'tokens' and 'weights' of N rows, as
      `instructions.encoded` makes them: a target is `weights`' last one long.
    source_length: Tokens of a packed source.
    target_length: Tokens of a packed target.

  Returns:
    A source of these columns and of 'segments' and 'source_segments', which
    count texts from 1 and are 0 for padding; `weights` is 0 where a text
    begins, so that nothing is predicted from the text before.
  """
  sizes = np.stack(
    [
      rows['source_mask'].sum(1).astype(np.int64),
      # One more than is written: the token that begins it.
      (rows['weights'] > 0).sum(1) + 1,
    ],
    1,
  )
  places = first_fit(sizes, (source_length, target_length))
  kinds = {
    'source': (source_length, np.int32),
    'source_mask': (source_length, np.float32),
    'source_segments': (source_length, np.int32),
    'tokens': (target_length, np.int32),
    'weights': (target_length, np.float32),
    'segments': (target_length, np.int32),
  }
  made = {
    name: np.zeros((len(places), length), kind)
    for name, (length, kind) in kinds.items()
  }
  for place, members in enumerate(places):
    start = [0, 0]
    for segment, row in enumerate(members, 1):
      read, written = (
        slice(x, x + y) for x, y in zip(start, sizes[row], strict=True)
      )
      for name, at in (
        ('source', read),
        ('source_mask', read),
        ('tokens', written),
        ('weights', written),
      ):
        count = at.stop - at.start
        made[name][place, at] = rows[name][row, :count]
      made['source_segments'][place, read] = segment
      made['segments'][place, written] = segment
      start = [read.stop, written.stop]
  return sources.from_arrays('packed instructions', made)
