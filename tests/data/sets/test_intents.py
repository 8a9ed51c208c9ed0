"""A few intents, a few rows each: which rows, and which labels."""

import numpy as np
import pytest

from repjax.data.reading import source
from repjax.data.sets import intents
from repjax.types import InputError

SIZES = dict(train=4, test=2)


@pytest.fixture
def every_intent(monkeypatch):
  """`clinc_oos` with texts that say their intent and place."""

  def load(name, split, *, data_dir):
    assert name == 'clinc_oos' and data_dir == 'there'
    of = np.random.default_rng(len(split)).permutation(
      np.repeat(np.arange(intents.NUM_CLASSES), SIZES[split])
    )
    texts = [f'{x} {i}'.encode() for i, x in enumerate(of)]
    return source.from_arrays(
      name,
      {'text': np.array(texts, object), 'intent': of.astype(np.int32)},
      split=split,
    )

  monkeypatch.setattr(intents.sources, 'load', load)


def test_rows_are_those_of_the_drawn_intents(every_intent):
  meant = {}
  for split, rows in (('train', 3), ('test', 0)):
    read = intents.load(
      split, num_classes=7, rows_per_class=rows, data_dir='there'
    )
    labels = read.column('label')
    expected = rows or SIZES[split]
    np.testing.assert_array_equal(np.bincount(labels), [expected] * 7)
    assert read.num_classes == 7
    said = np.array([x.split() for x in read.column('text')]).astype(int)
    # One intent a label, the same one in all splits.
    for label, intent in zip(labels, said[:, 0], strict=True):
      assert meant.setdefault(label, intent) == intent
    assert (np.diff(said[:, 1]) > 0).all()  # In the order of the set.
  assert len(set(meant.values())) == 7


def test_the_first_rows_of_an_intent_are_taken(every_intent):
  few, every = (
    intents.load('train', num_classes=2, rows_per_class=x, data_dir='there')
    for x in (1, 0)
  )
  first = {}
  for label, text in zip(
    every.column('label'), every.column('text'), strict=True
  ):
    first.setdefault(label, text)
  assert set(few.column('text')) == set(first.values())


@pytest.mark.parametrize(
  'fields', [dict(rows_per_class=5), dict(num_classes=151), dict(num_classes=1)]
)
def test_what_is_not_there_is_refused(fields, every_intent):
  settings = {'num_classes': 3, 'rows_per_class': 1, **fields}
  with pytest.raises(InputError, match=next(iter(fields))):
    intents.load('train', data_dir='there', **settings)
