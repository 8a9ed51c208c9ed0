"""Public and private chapters: what their rows and their tokens come from."""

import numpy as np
import pytest

from repjax.data.sets import topic_tasks
from repjax.data.text import labelled_text
from repjax.data.text import tokens

SIZES = dict(num_classes=4, size=48)


@pytest.fixture(scope='module')
def task():
  return topic_tasks.read(length=16, vocab_size=400, **SIZES)


def test_rows_are_the_pieces_in_tokens_of_the_public_text_alone(task):
  pieces = labelled_text.topic_pieces(**SIZES)
  learned = tokens.Subwords.train(pieces.public, vocab_size=400)
  assert task.vocab_size == learned.vocab_size + 1
  assert task.num_classes == 4
  for rows, words, labels in (
    (task.train, pieces.train, pieces.train_labels),
    (task.test, pieces.test, pieces.test_labels),
  ):
    np.testing.assert_array_equal(rows['label'], labels)
    assert rows['tokens'].shape == (len(words), 16)
    for i in (0, len(words) // 2):
      ids = learned.encode(words[i])
      real = rows['tokens'][i][rows['token_mask'][i] > 0]
      inside = [x for x in real if x not in (tokens.START, tokens.END)]
      np.testing.assert_array_equal(inside, ids[: len(inside)])
      assert len(inside) > 8
  # No row has the id that hides others in pretraining.
  assert max(x['tokens'].max() for x in (task.train, task.public)) < (
    task.vocab_size - 1
  )


def test_the_largest_chapter_or_any_other(task):
  merged = topic_tasks.largest_or_not(task)
  assert merged.num_classes == 2
  for old, new in ((task.train, merged.train), (task.test, merged.test)):
    np.testing.assert_array_equal(new['label'], old['label'] > 0)
    np.testing.assert_array_equal(new['tokens'], old['tokens'])
  # About half of the rows: the others cannot outvote them, nor they the others.
  assert 0.35 < merged.train['label'].mean() < 0.65
  assert set(np.unique(task.train['label'])) == {0, 1, 2, 3}
