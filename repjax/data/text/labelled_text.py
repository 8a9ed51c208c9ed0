"""Host side: texts with a class, with a completion, or with another text."""

from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import paired_text
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

# (id before, id after) each text, as published models were trained with them
# (`published_tokens`); None is the way of models that are trained here.
Frame = tuple[int, int] | None


def rows(
  texts: Sequence[str | bytes] | np.ndarray,
  labels: Sequence[int] | np.ndarray,
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  num_classes: int,
  class_names: Sequence[str] | None = None,
  name: str = 'text',
  split: str = 'train',
  frame: Frame = None,
) -> sources.Source:
  """Texts with classes as rows of tokens, each begun by `START`.

  Args:
    texts: One a row.
    labels: Class of each.
    tokenizer: What makes ids of them.
    length: Tokens of a row; longer texts are cut.
    num_classes: Number of classes.
    class_names: One a class.
    name: For messages.
    split: For messages.
    frame: What stands around each text, also around one that is cut.

  Returns:
    A source of 'tokens' int32 [length], 'token_mask' [length] and 'label'.
  """
  ids, mask = running_text.pad(
    _between(map(tokenizer.encode, texts), _ends(frame), length, name),
    length=length,
  )
  return sources.from_arrays(
    name,
    {'tokens': ids, 'token_mask': mask, 'label': np.asarray(labels)},
    num_classes=num_classes,
    class_names=class_names,
    split=split,
  )


def load(
  name: str,
  split: str,
  *,
  column: str,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  data_dir: str = '',
  frame: Frame = None,
  num_types: int = 0,
) -> sources.Source:
  """Rows of a set with a text, or two, and a class: `glue/sst2`, `glue/mnli`.

  Args:
    name: Of the set, as `source.load` takes it.
    split: Of the set.
    column: Of the texts; 'premise+hypothesis' makes rows of two
      (`paired_text.rows`).
    tokenizer: What makes ids of them.
    length: Tokens of a row.
    data_dir: Where the set is.
    frame: What stands around a single text.
    num_types: Segments that the model tells two texts apart by.

  Raises:
    InputError: The set has no class labels, or no such column.
  """
  read = sources.load(name, split, data_dir=data_dir)
  if read.num_classes is None:
    raise types.InputError(
      f'{name} has no column of class labels; a file of your own says which '
      'it is by --config.data.name=csv:label=COLUMN.'
    )
  shared: dict[str, Any] = dict(
    tokenizer=tokenizer,
    length=length,
    num_classes=read.num_classes,
    class_names=read.class_names,
    name=name,
    split=split,
  )
  first, *second = paired_text.names(column, read.read([0]))
  texts, labels = read.column(first), read.column('label')
  if second:
    other = read.column(second[0])
    return paired_text.rows(texts, other, labels, num_types=num_types, **shared)
  return rows(texts, labels, frame=frame, **shared)


def completions(
  prompts: Sequence[str | bytes],
  targets: Sequence[str | bytes],
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  separator: str = ' | ',
  name: str = 'text',
  split: str = 'train',
  frame: Frame = None,
) -> sources.Source:
  """Prompts with what follows them, for a language model; targets alone count.

  Where both have no room, it is the prompt that is cut, at its beginning. A
  target that would not even fit alone is cut, too, and has no end; its prompt
  then keeps up to half of the row. Shares are logged.

  Args:
    prompts: One a row.
    targets: One a row.
    tokenizer: What makes ids of them.
    length: Tokens of prompt and target together, and targets of a row at most.
    separator: Text between prompt and target.
    name: For messages.
    split: For messages.
    frame: What stands before the prompt and after the target.

  Returns:
    A source of 'tokens' int32 [length + 1] and 'weights' [length + 1].

  Raises:
    InputError: No target has room in rows of `length`.
  """
  if length < 1:
    raise types.InputError(f'{name}: no target has room in {length} tokens')
  start, end = frame or (tokenizing.START, tokenizing.END)
  ids, begins, sizes = [], [], []
  for prompt, target in zip(prompts, targets, strict=True):
    first = tokenizer.encode(tokenizing.as_text(prompt) + separator)
    then = np.append(tokenizer.encode(target), end)
    sizes.append((len(first), len(then)))
    room = length - len(then) if len(then) <= length else length // 2
    first = first[max(0, len(first) - room) :]
    ids.append(np.concatenate([[start], first, then]).astype(np.int32))
    begins.append(1 + len(first))
  padded, mask = running_text.pad(ids, length=length + 1, truncate=True)
  mask = mask * (np.arange(length + 1) >= np.array(begins)[:, None])
  both = np.array(sizes).sum(1)
  if (both > length).any():
    logging.warning(
      '%s: %.1f %% of the rows have no room in %d tokens (the longest needs %d)'
      '. Their prompts lose the beginning; and %.1f %% of the targets, which '
      'have no room alone, the end.',
      name,
      100 * np.mean(both > length),
      length,
      both.max(),
      100 * np.mean(np.array(sizes)[:, 1] > length),
    )
  return sources.from_arrays(
    name,
    {'tokens': padded, 'weights': mask.astype(np.float32)},
    split=split,
  )


def pairs(
  texts: Sequence[str | bytes],
  targets: Sequence[str | bytes],
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  target_length: int,
  name: str = 'text',
  split: str = 'train',
  frame: Frame = None,
) -> sources.Source:
  """Texts with what an encoder-decoder is to make of them, as summaries.

  Args:
    texts: One a row.
    targets: One a row.
    tokenizer: What makes ids of both.
    length: Tokens of a text with its end; longer texts are cut before it.
    target_length: Tokens of a target with its start and end; longer targets are
      cut before the end.
    name: For messages.
    split: For messages.
    frame: What stands around texts and targets. A target then begins with the
      id `after` once more, from which published BART models begin to write.

  Returns:
    A source of 'source' int32 [length], 'source_mask', 'tokens' int32
    [target_length] and 'weights', as `translations.from_pivot` gives them.
  """
  around: tuple[list[int], list[int]]
  if frame is None:
    around = ([], [tokenizing.END])
    around_target = ([tokenizing.START], [tokenizing.END])
  else:
    before, after = _ends(frame)
    around, around_target = (before, after), (after + before, after)
  ids = list(map(tokenizer.encode, targets))
  needs = sum(map(len, around_target)) + np.array([len(x) for x in ids])
  if (needs > target_length).any():
    logging.warning(
      '%s: %.1f %% of the targets have no room in %d tokens (the longest needs '
      '%d) and lose the end, in BLEU and ROUGE, too: raise '
      'config.data.target_length.',
      name,
      100 * np.mean(needs > target_length),
      target_length,
      needs.max(),
    )
  columns = running_text.pairs(
    _between(map(tokenizer.encode, texts), around, length, name),
    _between(ids, around_target, target_length, name),
    length=length,
    target_length=target_length,
  )
  return sources.from_arrays(name, columns, split=split)


def _ends(frame):
  """Ids before and after a text."""
  return ([tokenizing.START], []) if frame is None else ([frame[0]], [frame[1]])


def _between(ids, around, length, name):
  """Ids of texts, cut to have room between those before and after."""
  before, after = around
  room = length - len(before) - len(after)
  if room < 1:
    raise types.InputError(f'{name}: no text has room in {length} tokens')
  return [[*before, *x[:room], *after] for x in ids]
