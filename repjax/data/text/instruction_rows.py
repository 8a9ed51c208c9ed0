"""Host side: examples of instructions as rows of ids.

Of an encoder-decoder (`encoded`), and of a language model (`encoded_texts`).
"""

from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import instructions
from repjax.data.text import published_tokens
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

# What T5 begins a target with, which is no word.
START = tokenizing.PAD


def encoded(
  examples: Sequence[instructions.Example],
  tokenizer: tokenizing.Tokenizer,
  *,
  source_length: int,
  target_length: int,
  tasks: Sequence[str],
) -> sources.Source:
  """Examples as rows of an encoder-decoder, one each.

  Args:
    examples: N of them.
    tokenizer: What makes ids of them.
    source_length: Tokens of a source; longer ones are cut, as published.
    target_length: Tokens of a target, `START` and the end among them.
    tasks: Names of all tasks, whose numbers are the column 'task'.

  Returns:
    A source of 'source', 'source_mask', 'tokens', 'weights' (1 for what is to
    be written), 'task', 'template' and 'row'.

  Raises:
    InputError: A source is empty, or a target is longer.
  """
  for example in examples:
    _check_source(example)
  ids, mask = running_text.pad(
    [source_ids(x.source, tokenizer, length=source_length) for x in examples],
    length=source_length,
    truncate=True,
  )
  tokens, weights = running_text.pad(
    [target_ids(x.target, tokenizer) for x in examples], length=target_length
  )
  weights[:, 0] = 0.0
  return sources.from_arrays(
    'instructions',
    {
      'source': ids,
      'source_mask': mask,
      'tokens': tokens,
      'weights': weights,
      **_origin(examples, tasks),
    },
  )


def encoded_texts(
  examples: Sequence[instructions.Example],
  tokenizer: tokenizing.Tokenizer,
  *,
  length: int,
  tasks: Sequence[str],
) -> sources.Source:
  """Examples as rows of a language model: source, end, target, end.

  An end stands between the two as in the paper's section 2.4.

  Args:
    examples: N of them.
    tokenizer: What makes ids of them.
    length: Tokens of a row; a source is cut at its end to make room.
    tasks: Names of all tasks, whose numbers are the column 'task'.

  Returns:
    A source of 'tokens', 'token_mask' (1 for real ones), 'weights' (1 for what
    is to be written), 'task', 'template' and 'row'.

  Raises:
    InputError: A source is empty, or a target leaves no room for one.
  """
  texts, written = [], []
  for example in examples:
    _check_source(example)
    target = target_ids(example.target, tokenizer)[1:]
    room = length - len(target) - 1
    if room < 1:
      raise types.InputError(
        f'the target of row {example.row} of the task {example.task!r} has '
        f'{len(target)} tokens, which leave no room for a source in {length}'
      )
    source = [*tokenizer.encode(example.source)[:room], _end(tokenizer)]
    texts.append(np.array([*source, *target], np.int32))
    written.append(len(target))
  tokens, mask = running_text.pad(texts, length=length)
  begins = mask.sum(1, keepdims=True) - np.array(written)[:, None]
  weights = mask * (np.arange(length) >= begins)
  columns = {'tokens': tokens, 'token_mask': mask, 'weights': weights}
  return sources.from_arrays(
    'instructions', {**columns, **_origin(examples, tasks)}
  )


def _check_source(example):
  if not example.source:
    raise types.InputError(
      f'row {example.row} of the task {example.task!r} has an empty source: '
      'there is nothing to look at'
    )


def _origin(examples, tasks):
  """Columns that say where rows come from."""
  number = {name: i for i, name in enumerate(tasks)}
  return {
    'task': np.array([number[x.task] for x in examples], np.int32),
    'template': np.array([x.template for x in examples], np.int32),
    'row': np.array([x.row for x in examples], np.int32),
  }


def target_ids(text: str, tokenizer: tokenizing.Tokenizer) -> np.ndarray:
  """What a decoder is trained on: `START`, the text, the end, int32 [n]."""
  return np.array([START, *tokenizer.encode(text), _end(tokenizer)], np.int32)


def source_ids(
  text: str, tokenizer: tokenizing.Tokenizer, *, length: int
) -> np.ndarray:
  """What an encoder reads of a text, int32 [n], n <= `length`.

  Published models were trained with an end behind it.
  """
  ids = tokenizer.encode(text)
  if isinstance(tokenizer, published_tokens.Published):
    return np.append(ids[: length - 1], np.int32(_end(tokenizer)))
  return ids[:length]


def _end(tokenizer):
  if isinstance(tokenizer, published_tokens.Published):
    return tokenizer.frame[1]
  return tokenizing.END
