"""Host side: some chapters of `python_topics` are public, others private.

The public part are chapters without labels, on which an encoder can learn to
fill gaps; the private part are pieces of the other chapters, whose chapter it
learns to tell (`topic_pieces`). Nothing of the private part, the
vocabulary included, is seen in the public one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import labelled_text
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing


class Pieces(NamedTuple):
  """Pieces of chapters, and text of other chapters.

  Attributes:
    train: Pieces.
    train_labels: The chapter of each piece of `train`.
    test: Pieces.
    test_labels: The chapter of each piece of `test`.
    public: Whole texts of the remaining chapters.
  """

  train: list[str]
  train_labels: np.ndarray
  test: list[str]
  test_labels: np.ndarray
  public: list[str]


def topic_pieces(
  *, num_classes: int, size: int, skip: int = 0, seed: int = 0
) -> Pieces:
  """Which chapter of `python_topics` is a piece from?

  Topics that share paragraphs make one chapter (`topics.blocks`). The largest
  `num_classes` chapters are cut into pieces; a piece that occurs twice is left
  out. A fifth of the pieces, drawn at random, are for testing.

  Args:
    num_classes: Number of chapters that are cut.
    size: Characters of a piece, with every run of spaces as one.
    skip: Number of larger chapters that are not cut and count as remaining. The
      largest has five times the text of the second, and makes half of the
      pieces where it is cut.
    seed: Decides which pieces are for testing.
  """
  from repjax.data.sets import topics  # Imports TFDS.

  texts = {}
  for split in ('train', 'validation', 'test'):
    read = sources.load('python_topics', split)
    columns = read.read(np.arange(len(read)))
    for topic, body in zip(columns['topic'], columns['text'], strict=True):
      texts[tokenizing.as_text(topic)] = tokenizing.as_text(body)
  chapters = topics.blocks(texts)
  if not 2 <= num_classes < len(chapters) - skip or skip < 0:
    raise types.InputError(
      f'python_topics has {len(chapters)} chapters; got {num_classes=}, {skip=}'
    )
  cut_chapters = chapters[skip : skip + num_classes]
  found: dict[str, list[int]] = {}
  for label, chapter in enumerate(cut_chapters):
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
    [
      texts[topic]
      for chapter in chapters
      if chapter not in cut_chapters
      for topic in chapter
    ],
  )


class Task(NamedTuple):
  """Public and private text.

  Attributes:
    vocab_size: Number of tokens; the last one hides others in pretraining.
    num_classes: Number of private chapters.
    public: 'tokens' [N, L], windows of the public chapters.
    train: 'tokens', 'token_mask' [n, L] and 'label' [n].
    test: Rows of the same columns, of other pieces.
  """

  vocab_size: int
  num_classes: int
  public: Mapping[str, np.ndarray]
  train: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]


def read(
  *,
  num_classes: int,
  size: int,
  length: int,
  vocab_size: int,
  skip: int = 0,
  tokenizer: tokenizing.Tokenizer | None = None,
  frame: labelled_text.Frame = None,
) -> Task:
  """Reads the task.

  Args:
    num_classes: Number of private chapters, the largest ones.
    size: Characters of a piece, with every run of spaces as one.
    length: L, tokens of a row; longer pieces are cut.
    vocab_size: Subwords that are learned from the public chapters.
    skip: Number of larger chapters that are public nevertheless.
    tokenizer: Takes the place of what would be learned.
    frame: What stands around each piece; windows of the public chapters are for
      models that are trained here, and do not have it.
  """
  pieces = topic_pieces(num_classes=num_classes, size=size, skip=skip)
  if tokenizer is None:
    tokenizer = tokenizing.Subwords.train(pieces.public, vocab_size=vocab_size)
  train, test = (
    labelled_text.rows(
      words,
      labels,
      tokenizer=tokenizer,
      length=length,
      num_classes=num_classes,
      frame=frame,
    ).columns()
    for words, labels in (
      (pieces.train, pieces.train_labels),
      (pieces.test, pieces.test_labels),
    )
  )
  windows = running_text.train_windows(
    running_text.stream(pieces.public, tokenizer),
    length=length - 1,
    stride=max(1, length // 3),
  )
  return Task(
    tokenizer.vocab_size + 1,
    num_classes,
    windows.columns(),
    train,
    test,
  )


def largest_or_not(task: Task) -> Task:
  """The task to tell the largest chapter, about half of all rows, from others.

  With a class for each chapter private training learns nothing but the largest:
  clipped gradients give every row the same say, and half of the rows outvote
  the others.
  """

  def merge(columns):
    return {**columns, 'label': np.minimum(columns['label'], 1)}

  return task._replace(
    num_classes=2, train=merge(task.train), test=merge(task.test)
  )
