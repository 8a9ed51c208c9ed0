"""Host side: two texts in one row with a class, as premise and hypothesis.

A row is what BERT reads of a pair (Devlin et al., 2019, sec. 3 and A.5,
https://arxiv.org/abs/1810.04805): a sign, the first text, a sign between them,
the second text and a sign at the end, each token with the segment that it is
of. RoBERTa has two signs between them and no segments
(https://arxiv.org/abs/1907.11692).
"""

from collections.abc import Collection
from collections.abc import Sequence

from absl import logging
import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import published_tokens
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

# Of models that are trained here.
_OWN = published_tokens.PairFrame(
  [tokenizing.START], [tokenizing.END], [], second_type=1
)


def names(column: str, there: Collection[str]) -> tuple[str, ...]:
  """The columns that 'premise+hypothesis' names, or the only one.

  Args:
    column: One name or two; what a set itself calls a column is one.
    there: Columns of the set.

  Raises:
    InputError: There are more than two, one twice, or one without a name.
  """
  if column in there:
    return (column,)
  found = tuple(x.strip() for x in column.split('+'))
  if len(found) > 1 and (len(found) > 2 or not all(found) or len({*found}) < 2):
    raise types.InputError(
      f'--config.data.column={column}: one column of texts, or two as '
      'premise+hypothesis.'
    )
  return found


def rows(
  firsts: Sequence[str | bytes] | np.ndarray,
  seconds: Sequence[str | bytes] | np.ndarray,
  labels: Sequence[int] | np.ndarray,
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  num_classes: int,
  num_types: int,
  class_names: Sequence[str] | None = None,
  name: str = 'text',
  split: str = 'train',
) -> sources.Source:
  """Pairs of texts with classes as rows of tokens.

  Where both have no room it is the longer one that is cut, token by token, as
  in BERT's own code; the share of such rows is logged.

  Args:
    firsts: One text a row.
    seconds: The other text of each row.
    labels: Class of each row.
    tokenizer: What makes ids of them; a published one knows its signs.
    length: Tokens of a row, signs included.
    num_classes: Number of classes.
    num_types: Segments that the model has embeddings of; with fewer than two
      rows have no segments.
    class_names: One a class.
    name: For messages.
    split: For messages.

  Returns:
    A source of 'tokens' int32 [length], 'token_mask' [length], 'label' and,
    where there are segments, 'token_types' int32 [length], 0 or 1 (of padding
    0).

  Raises:
    InputError: No pair has room.
  """
  frame = _OWN
  if isinstance(tokenizer, published_tokens.Published):
    frame = tokenizer.pair_frame
  room = length - len(frame.before) - len(frame.between) - len(frame.after)
  if room < 2:
    raise types.InputError(
      f'{name}: no pair of texts has room in {length} tokens: raise '
      'config.data.length.'
    )
  made, segments, cut = [], [], 0
  for first, second in zip(firsts, seconds, strict=True):
    a, b = tokenizer.encode(first), tokenizer.encode(second)
    cut += len(a) + len(b) > room
    a, b = _fitted(a, b, room)
    left = [*frame.before, *a, *frame.between]
    right = [*b, *frame.after]
    made.append([*left, *right])
    segments.append([0] * len(left) + [frame.second_type] * len(right))
  if cut:
    logging.warning(
      '%s: %.1f %% of the pairs have no room in %d tokens; the longer text '
      'loses its end.',
      name,
      100 * cut / len(made),
      length,
    )
  ids, mask = running_text.pad(made, length=length)
  columns = {'tokens': ids, 'token_mask': mask, 'label': np.asarray(labels)}
  if num_types > 1 and frame.second_type:
    columns['token_types'], _ = running_text.pad(segments, length=length)
  return sources.from_arrays(
    name,
    columns,
    num_classes=num_classes,
    class_names=class_names,
    split=split,
  )


def _fitted(a, b, room):
  """Both, of which the longer one is cut until they have room."""
  # The second gives way where they are equal.
  kept = min(len(b), max(room - len(a), room // 2))
  return a[: room - kept], b[:kept]
