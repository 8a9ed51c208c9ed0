"""The synthetic language pair, sentence by sentence and as a set."""

import random

import numpy as np
import pytest

from repjax.data.sets import grammar
from repjax.types import InputError

PAIR = grammar.Grammar()


@pytest.mark.parametrize(
  ('source', 'target'),
  [
    ('a n0 v2', 'nn0 indet.a vv2'),
    ('a+ n0 v2', 'nn0 indet.a+ vv2+'),
    ('the j1 j2 n1 v0', 'nn1 jj2.o jj1.o det.o vv0'),
    # The object's number does not reach the verb.
    ('the+ n2 v1 a n0', 'nn2 det.e+ nn0 indet.a vv1+'),
    (
      'the+ n3 that v1 a n0 v2',
      'nn3 det.a+ rel nn0 indet.a vv1+ vv2+',
    ),
    (
      'a n4 v5 the+ j0 n5 that v3 a j1 n2',
      'nn4 indet.o nn5 jj0.e+ det.e+ rel nn2 jj1.e indet.e vv3+ vv5',
    ),
  ],
)
def test_translations_by_hand(source, target):
  assert PAIR.translate(source) == target
  assert PAIR.decode(PAIR.encode(target)) == target


@pytest.mark.parametrize(
  'sentence', ['', 'a n0', 'n0 v1', 'a v1 n0', 'a n0 v1 v2']
)
def test_what_is_no_sentence_is_refused(sentence):
  with pytest.raises(InputError, match='no sentence'):
    PAIR.translate(sentence)


def test_drawn_sentences_translate_within_the_longest():
  generator = random.Random(0)
  used, lengths = set(), set()
  for _ in range(2000):
    sentence = PAIR.draw(generator)
    translation = PAIR.translate(sentence)
    used |= {*sentence.split(), *translation.split()}
    lengths |= {len(sentence.split()), len(translation.split())}
  assert max(lengths) <= PAIR.max_words == 21
  assert len(used) == PAIR.vocab_size - 3 == len(set(PAIR.words)) - 3


def test_test_sentences_are_never_trained_on():
  train = PAIR.load(1500, seed=0)
  test = PAIR.load(150, seed=0, split='test')
  sentences = {}
  for name, rows in (('train', train), ('test', test)):
    columns = rows.read(np.arange(len(rows)))
    sentences[name] = [PAIR.decode(ids) for ids in columns['source']]
    assert len(set(sentences[name])) == len(rows)
    for ids, source in zip(columns['tokens'], sentences[name], strict=True):
      assert PAIR.decode(ids) == PAIR.translate(source)
  assert not set(sentences['train']) & set(sentences['test'])


def test_rows_have_their_marks_and_masks():
  columns = PAIR.load(50, seed=1).read(np.arange(50))
  for ids, mask in zip(columns['source'], columns['source_mask'], strict=True):
    length = int(mask.sum())
    assert ids[length - 1] == 2 and not ids[length:].any() and ids[0] > 2
  for ids, weights in zip(columns['tokens'], columns['weights'], strict=True):
    length = int(weights.sum()) + 1
    assert ids[0] == 1 and weights[0] == 0
    assert ids[length - 1] == 2 and not ids[length:].any()
    assert weights[1:length].all()
  again = PAIR.load(50, seed=1).read(np.arange(50))
  np.testing.assert_array_equal(again['tokens'], columns['tokens'])
  other = PAIR.load(50, seed=2).read(np.arange(50))
  assert (other['tokens'] != columns['tokens']).any()


def test_settings_out_of_range_are_refused():
  with pytest.raises(InputError, match='num_nouns=0'):
    grammar.Grammar(num_nouns=0)
  tiny = grammar.Grammar(
    num_nouns=1,
    num_verbs=1,
    num_adjectives=1,
    max_adjectives=0,
    clause_rate=0.0,
  )
  with pytest.raises(InputError, match='hardly more than'):
    tiny.load(1000, seed=0)
  with pytest.raises(InputError, match="split='dev'"):
    PAIR.load(1, seed=0, split='dev')
