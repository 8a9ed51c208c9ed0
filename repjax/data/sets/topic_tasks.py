"""Host side: some chapters of `python_topics` are public, others private.

The public part are chapters without labels, on which an encoder can learn to
fill gaps; the private part are pieces of the other chapters, whose chapter it
learns to tell (`labelled_text.topic_pieces`). Nothing of the private part, the
vocabulary included, is seen in the public one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repjax.data.text import labelled_text
from repjax.data.text import running_text
from repjax.data.text import tokens


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
  tokenizer: tokens.Tokenizer | None = None,
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
  pieces = labelled_text.topic_pieces(
    num_classes=num_classes, size=size, skip=skip
  )
  if tokenizer is None:
    tokenizer = tokens.Subwords.train(pieces.public, vocab_size=vocab_size)
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
