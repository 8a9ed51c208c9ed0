"""Host side: rows of text with a class, and prompts with their completions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data import source as sources
from repjax.data import text
from repjax.data import tokens as tokenizing


def rows(
  texts: Sequence[str | bytes],
  labels: Sequence[int],
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  num_classes: int,
  name: str = 'text',
  split: str = 'train',
) -> sources.Source:
  """Texts with classes as rows of tokens, each begun by `START`.

  Args:
    texts: One a row.
    labels: Class of each.
    tokenizer: What makes ids of them.
    length: Tokens of a row; longer texts are cut.
    num_classes: Number of classes.
    name: For messages.
    split: For messages.

  Returns:
    A source of 'tokens' int32 [length], 'token_mask' [length] and 'label'.
  """
  start = np.array([tokenizing.START], np.int32)
  ids, mask = text.pad(
    [np.concatenate([start, tokenizer.encode(x)]) for x in texts],
    length=length,
    truncate=True,
  )
  return sources.from_arrays(
    name,
    {'tokens': ids, 'token_mask': mask, 'label': np.asarray(labels)},
    num_classes=num_classes,
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
) -> sources.Source:
  """Rows of a prepared TFDS set with a text and a class, as `glue/sst2`.

  Raises:
    InputError: If the set has no class labels.
  """
  read = sources.load(name, split, data_dir=data_dir)
  if read.num_classes is None:
    raise types.InputError(f'{name} has no column of class labels.')
  return rows(
    read.column(column),
    read.column('label'),
    tokenizer=tokenizer,
    length=length,
    num_classes=read.num_classes,
    name=name,
    split=split,
  )


def completions(
  prompts: Sequence[str | bytes],
  targets: Sequence[str | bytes],
  *,
  tokenizer: tokenizing.Tokenizer,
  length: int,
  separator: str = ' | ',
  name: str = 'text',
) -> sources.Source:
  """Prompts with what follows them, for a language model; targets alone count.

  Args:
    prompts: One a row.
    targets: One a row.
    tokenizer: What makes ids of them.
    length: Targets of a row; what is longer is cut.
    separator: Between the two.
    name: For messages.

  Returns:
    A source of 'tokens' int32 [length + 1] and 'weights' [length + 1].
  """
  ids, weights = [], []
  for prompt, target in zip(prompts, targets, strict=True):
    first = np.concatenate(
      [
        [tokenizing.START],
        tokenizer.encode(tokenizing.as_text(prompt) + separator),
      ]
    )
    then = np.concatenate([tokenizer.encode(target), [tokenizing.END]])
    ids.append(np.concatenate([first, then]).astype(np.int32))
    weights.append(len(first))
  padded, mask = text.pad(ids, length=length + 1, truncate=True)
  places = np.arange(length + 1)
  mask = mask * (places >= np.asarray(weights)[:, None])
  return sources.from_arrays(
    name, {'tokens': padded, 'weights': mask.astype(np.float32)}
  )


class Pieces(NamedTuple):
  """Pieces of chapters, and text of other chapters.

  Attributes:
    train: Pieces.
    train_labels: The chapter of each.
    test: Pieces.
    test_labels: Likewise.
    public: Whole texts of the remaining chapters.
  """

  train: list[str]
  train_labels: np.ndarray
  test: list[str]
  test_labels: np.ndarray
  public: list[str]


def topic_pieces(*, num_classes: int, size: int, seed: int = 0) -> Pieces:
  """Which chapter of `python_topics` is a piece from?

  Topics that share paragraphs make one chapter (`topics.blocks`). The largest
  `num_classes` chapters are cut into pieces; a piece that occurs twice is left
  out. A fifth of the pieces, drawn at random, are for testing.

  Args:
    num_classes: Number of chapters that are cut.
    size: Characters of a piece, with every run of spaces as one.
    seed: Of the division.
  """
  from repjax.data import topics  # Imports TFDS.

  texts = {}
  for split in ('train', 'validation', 'test'):
    read = sources.load('python_topics', split)
    columns = read.read(np.arange(len(read)))
    for topic, body in zip(columns['topic'], columns['text'], strict=True):
      texts[tokenizing.as_text(topic)] = tokenizing.as_text(body)
  chapters = topics.blocks(texts)
  if not 2 <= num_classes < len(chapters):
    raise types.InputError(
      f'python_topics has {len(chapters)} chapters; got {num_classes=}'
    )
  found: dict[str, list[int]] = {}
  for label, chapter in enumerate(chapters[:num_classes]):
    for topic in chapter:
      body = ' '.join(texts[topic].split())
      for start in range(0, len(body) - size + 1, size):
        found.setdefault(body[start : start + size], []).append(label)
  pieces = [(piece, x[0]) for piece, x in found.items() if len(x) == 1]
  order = np.random.default_rng(seed).permutation(len(pieces))
  pieces = [pieces[i] for i in order]
  cut = len(pieces) * 4 // 5
  words, labels = [x for x, _ in pieces], np.array([x for _, x in pieces])
  return Pieces(
    words[:cut],
    labels[:cut],
    words[cut:],
    labels[cut:],
    [texts[topic] for chapter in chapters[num_classes:] for topic in chapter],
  )
