"""Host side: texts to rows of tokens: windows over a stream, padded texts.

What comes out are sources, so that batches of text are made, shuffled and
resumed as those of images are. A row has 'tokens' [T]; in evaluation, and where
texts are padded, also 'weights' [T], 1 for a token that counts as a target.
"""

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import tokens as tokenizing


def load(
  name: str, split: str, *, data_dir: str = '', column: str = 'text'
) -> list[bytes]:
  """Texts of a prepared or embedded set, one a row; see `source.load`."""
  return list(sources.load(name, split, data_dir=data_dir).column(column))


def stream(
  texts: Iterable[str | bytes], tokenizer: tokenizing.Tokenizer
) -> np.ndarray:
  """All texts as one row of ids, each begun by `START`.

  Args:
    texts: For example what `load` gives.
    tokenizer: What makes ids of them.

  Returns:
    int32 [n].

  Raises:
    InputError: There is no text.
  """
  parts = []
  for text in texts:
    parts.append(np.array([tokenizing.START], np.int32))
    parts.append(tokenizer.encode(text))
  ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
  if len(ids) == len(parts) // 2:
    raise types.InputError('there is no text: all rows are empty')
  return ids


def train_windows(
  ids: np.ndarray,
  *,
  length: int,
  stride: int | None = None,
  name: str = 'text',
) -> sources.Source:
  """Windows of `length` predictions, for shuffled training.

  Args:
    ids: A stream, int32 [n].
    length: L. A row has L + 1 tokens: L that the model reads and the L that
      follow them.
    stride: Tokens from one window to the next. None means L: each token is a
      target once an epoch, but for the last few that fill no window. 1 makes
      every offset a row; windows are cut when they are read, so it takes no
      memory (without worker processes).
    name: For messages.

  Returns:
    A source of 'tokens' int32 [L + 1].

  Raises:
    InputError: The stream is shorter than one window, or a number is < 1.
  """
  stride = _check(length, stride)
  if len(ids) < length + 1:
    raise types.InputError(
      f'{name} has {len(ids)} tokens, fewer than one window of '
      f'{length + 1}: lower length'
    )
  windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)
  return sources.from_arrays(name, {'tokens': windows[::stride]})


def eval_windows(
  ids: np.ndarray,
  *,
  length: int,
  stride: int | None = None,
  name: str = 'text',
) -> sources.Source:
  """Windows in which every token but the first is a target exactly once.

  Args:
    ids: A stream, int32 [n]; its first token (`START`) is read only.
    length: L, predictions of a window. Rows have L + 1 tokens, the last is
      padded.
    stride: Targets of each window but the first. None means L. A smaller one
      gives them at least L - stride tokens of context, and costs L / stride
      times as much.
    name: For messages.

  Returns:
    A source of 'tokens' int32 [L + 1] and 'weights' float32 [L + 1].

  Raises:
    InputError: There are fewer than two tokens, `stride` is more than L, or a
      number is < 1.
  """
  stride = _check(length, stride)
  if stride > length:
    raise types.InputError(
      f'{stride=} must be at most {length=}, or tokens are left out'
    )
  if len(ids) < 2:
    raise types.InputError(f'{name} has {len(ids)} token(s): none to predict')
  num_windows = 1 + max(0, -(-(len(ids) - 1 - length) // stride))
  places = np.arange(num_windows)[:, None] * stride + np.arange(length + 1)
  inside = places < len(ids)
  counts = inside.copy()
  counts[0, 0] = False
  counts[1:, : length + 1 - stride] = False  # The window before has them.
  padded = np.where(
    inside, ids[np.minimum(places, len(ids) - 1)], tokenizing.PAD
  )
  return sources.from_arrays(
    name,
    {
      'tokens': padded.astype(np.int32),
      'weights': counts.astype(np.float32),
    },
  )


def pad(
  rows: Sequence[np.ndarray | Sequence[int]],
  *,
  length: int,
  truncate: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of different length as one array.

  Args:
    rows: N arrays of ids.
    length: Tokens of a row of the result.
    truncate: Whether longer rows are cut; otherwise they are an error.

  Returns:
    (ids int32 [N, length] with `PAD` after each row, mask float32 of the same
    shape, 1 for real ids).

  Raises:
    InputError: A row is longer than `length`; the message says how long.
  """
  longest = max((len(row) for row in rows), default=0)
  if longest > length and not truncate:
    raise types.InputError(
      f'the longest row has {longest} tokens, more than {length=}: raise '
      'length, or cut rows with truncate=True'
    )
  ids = np.full((len(rows), length), tokenizing.PAD, np.int32)
  mask = np.zeros((len(rows), length), np.float32)
  for i, row in enumerate(rows):
    row = row[:length]
    ids[i, : len(row)] = row
    mask[i, : len(row)] = 1
  return ids, mask


def pairs(
  texts: Sequence[np.ndarray | Sequence[int]],
  targets: Sequence[np.ndarray | Sequence[int]],
  *,
  length: int,
  target_length: int,
  truncate: bool = False,
) -> dict[str, np.ndarray]:
  """Columns of texts and what an encoder-decoder is to make of them.

  Args:
    texts: N arrays of ids, with those that end them.
    targets: N arrays of ids, with those that begin and end them.
    length: Tokens of a text.
    target_length: Tokens of a target.
    truncate: Whether longer ones are cut; otherwise they are an error.

  Returns:
    'source' int32 [N, length] and 'source_mask', 'tokens' int32 [N,
    target_length] and 'weights', 1 where a token is to be predicted.
  """
  source, source_mask = pad(texts, length=length, truncate=truncate)
  tokens, weights = pad(targets, length=target_length, truncate=truncate)
  weights[:, 0] = 0
  return {
    'source': source,
    'source_mask': source_mask,
    'tokens': tokens,
    'weights': weights,
  }


def num_bytes(texts: Iterable[str | bytes]) -> int:
  """Bytes of UTF-8, what bits per byte are counted by."""
  return sum(len(tokenizing.as_bytes(text)) for text in texts)


def _check(length, stride):
  stride = length if stride is None else stride
  if length < 1 or stride < 1:
    raise types.InputError(
      f'Need length, stride >= 1; got {length=}, {stride=}'
    )
  return stride
