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
      `instruction_rows.encoded` makes them: a target is as long as its weights'
      last one.
    source_length: Tokens of a packed source.
    target_length: Tokens of a packed target.

  Returns:
    A source of these columns and of 'segments' and 'source_segments', which
    count texts from 1 and are 0 for padding; `weights` is 0 where a text
    begins, so that nothing is predicted from the text before.
  """
  place = np.arange(rows['weights'].shape[1])
  sizes = np.stack(
    [
      rows['source_mask'].sum(1).astype(np.int64),
      # Of one that counts nowhere: the token that begins it.
      1 + np.where(rows['weights'] > 0, place, 0).max(1),
    ],
    1,
  )
  room = source_length, target_length
  columns = _filled(
    rows,
    sizes,
    room,
    {
      'source_segments': ('source', 'source_mask'),
      'segments': ('tokens', 'weights'),
    },
  )
  return sources.from_arrays('packed instructions', columns)


def packed_texts(
  rows: Mapping[str, np.ndarray], *, length: int
) -> sources.Source:
  """Rows of a language model, packed by `first_fit`.

  Args:
    rows: 'tokens', 'token_mask' and 'weights' of N rows, as
      `instruction_rows.encoded_texts` makes them.
    length: Tokens of a packed row.

  Returns:
    A source of these columns and of 'segments', as `packed` has it.
  """
  sizes = rows['token_mask'].sum(1).astype(np.int64)[:, None]
  kinds = {'segments': ('tokens', 'token_mask', 'weights')}
  return sources.from_arrays(
    'packed texts', _filled(rows, sizes, (length,), kinds)
  )


def _filled(rows, sizes, room, kinds):
  """Columns of packed rows.

  Args:
    rows: Columns of N rows.
    sizes: Of each of the K kinds of length, [N, K].
    room: Of a place, K.
    kinds: Name of the segments -> columns that are so long; K of them.
  """
  places = first_fit(sizes, room)
  made = {}
  for (segments, names), length in zip(kinds.items(), room, strict=True):
    shape = len(places), length
    made[segments] = np.zeros(shape, np.int32)
    made |= {x: np.zeros(shape, rows[x].dtype) for x in names}
  for place, members in enumerate(places):
    start = np.zeros(len(room), np.int64)
    for segment, row in enumerate(members, 1):
      for kind, (segments, names) in enumerate(kinds.items()):
        size = sizes[row, kind]
        at = slice(start[kind], start[kind] + size)
        made[segments][place, at] = segment
        for name in names:
          made[name][place, at] = rows[name][row, :size]
      start += sizes[row]
  return made
