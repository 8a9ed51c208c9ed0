"""Public and private chapters: what their rows and their tokens come from."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import topic_tasks
from repjax.data.text import tokens

SIZES = dict(num_classes=4, size=48)


@pytest.fixture(scope='module')
def task():
  return topic_tasks.read(length=16, vocab_size=400, **SIZES)


def test_rows_are_the_pieces_in_tokens_of_the_public_text_alone(task):
  pieces = topic_tasks.topic_pieces(**SIZES)
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
  # A third to two thirds of the rows, by the manual of this Python (.32 in
  # 3.11.2): the others cannot outvote them, nor they the others.
  assert 0.3 < merged.train['label'].mean() < 0.7
  assert set(np.unique(task.train['label'])) == {0, 1, 2, 3}


def test_pieces_are_of_one_chapter_and_public_text_is_of_others():
  pieces = topic_tasks.topic_pieces(num_classes=4, size=48)
  both = pieces.train + pieces.test
  assert len(set(both)) == len(both) > 3000
  assert {len(x) for x in both} == {48}
  assert abs(len(pieces.test) / len(both) - 0.2) < 0.01
  assert set(pieces.test_labels) == set(range(4)) == set(pieces.train_labels)
  public = ' '.join(' '.join(x.split()) for x in pieces.public)
  seen = sum(x in public for x in both)
  assert seen < 0.01 * len(both)
  again = topic_tasks.topic_pieces(num_classes=4, size=48)
  assert again.test == pieces.test
  for fields in (dict(num_classes=1), dict(num_classes=54, skip=1)):
    with pytest.raises(types.InputError, match='chapters'):
      topic_tasks.topic_pieces(size=48, **fields)


def test_the_largest_chapters_can_be_public():
  pieces = topic_tasks.topic_pieces(num_classes=4, size=48)
  skipped = topic_tasks.topic_pieces(num_classes=3, size=48, skip=1)
  chapter = dict(zip(pieces.train, pieces.train_labels, strict=True))
  both = dict(zip(skipped.train, skipped.train_labels, strict=True))
  shared = chapter.keys() & both.keys()
  assert len(shared) > 0.5 * len(both)
  assert all(chapter[x] == both[x] + 1 for x in shared)
  public = ' '.join(' '.join(x.split()) for x in skipped.public)
  largest = [x for x, label in chapter.items() if label == 0]
  assert sum(x in public for x in largest) > 0.98 * len(largest)
  # What two chapters say alike; 1.06 % in the manual of 3.11.2.
  assert sum(x in public for x in both) < 0.02 * len(both)
