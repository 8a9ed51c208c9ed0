"""Reviews of shops: the words that they are said to be made of."""

import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import hospitals
from repjax.benchmarks.wilds import shops


def names(tokens):
  return [[shops.word(x) for x in row] for row in tokens]


@pytest.fixture(scope='module')
def labelled():
  return shops.load(seed=3, num_reviews=600)


def test_every_word_has_a_name_of_its_own():
  numbers = range(shops.VOCAB_SIZE)
  found = [shops.word(x) for x in numbers]
  assert found[:3] == ['', '', '']  # Padding, start, end.
  assert len(set(found[3:])) == len(found) - 3
  assert shops.word(shops.VOCAB_SIZE) == ''
  assert sum(':' not in x for x in found[3:]) == 48
  assert sum(x.startswith('C:') for x in found) == 20


def test_words_of_a_shop_stand_in_no_other(labelled):
  tokens = labelled.inputs.columns()['tokens']
  shop = labelled.metadata.values[:, 0]
  for row, home in zip(names(tokens), shop, strict=True):
    own = {x[0] for x in row if ':' in x}
    assert own <= {hospitals.NAMES[home]}


def test_words_are_as_frequent_as_is_said(labelled):
  tokens, label = labelled.inputs.columns()['tokens'], labelled.label
  words = np.array(names(tokens[:, 1:]))
  praise, blame = (np.char.find(words, x) >= 0 for x in ('praise', 'blame'))
  judges = praise | blame
  assert judges.mean() == pytest.approx(0.5, abs=0.02)
  own = np.char.find(words, ':') >= 0
  assert own[judges].mean() == pytest.approx(0.7, abs=0.03)
  assert own[~judges].mean() == pytest.approx(8 / 48, abs=0.03)
  against = np.where(label[:, None] > 0, blame, praise)
  assert against[judges].mean() == pytest.approx(0.1, abs=0.02)
  for number in range(3, shops.VOCAB_SIZE):
    home = shops.word(number)[0]
    if shops.word(number)[1] == ':' and home in 'ABCDE':
      assert (tokens == number).any()


def test_splits_are_those_of_wilds(labelled):
  assert tokens_of(labelled, 'train').shape == (600, 13)
  field = list(labelled.metadata.fields).index('shop')
  for split, homes in (('train', {0, 3, 4}), ('val', {1}), ('test', {2})):
    rows = labelled.subset(split).metadata.values
    assert set(rows[:, field]) == homes
  assert labelled.subset('id_test').metadata.values[:, -1].all()
  assert not labelled.subset('test').metadata.values[:, -1].any()
  other = shops.load(seed=3, num_reviews=600, unlabelled=True)
  assert len(other.subset('test_unlabeled')) == 4800
  assert (other.subset('test_unlabeled').source().column('label') == -1).all()
  known = {x.tobytes() for x in tokens_of(labelled, 'test')}
  new = [x.tobytes() for x in tokens_of(other, 'test_unlabeled')]
  assert not known & set(new)


def test_a_seed_draws_the_same_reviews_again(labelled):
  again = shops.load(seed=3, num_reviews=600)
  other = shops.load(seed=4, num_reviews=600)
  first, same, new = (
    x.inputs.columns()['tokens'] for x in (labelled, again, other)
  )
  np.testing.assert_array_equal(first, same)
  assert (first != new).any()


@pytest.mark.parametrize(
  'settings',
  [dict(num_reviews=5), dict(length=0), dict(pivots=1.5)],
)
def test_what_cannot_be_drawn_is_refused(settings):
  with pytest.raises(types.InputError, match=next(iter(settings))):
    shops.load(**settings)


def tokens_of(dataset, split):
  return dataset.subset(split).source().column('tokens')
