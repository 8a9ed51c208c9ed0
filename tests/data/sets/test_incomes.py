"""Generated incomes: what is redundant is, and what says nothing does not."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import incomes


@pytest.fixture(scope='module')
def people():
  return incomes.draw(4000, seed=0)


def test_what_is_redundant_follows_from_others(people):
  np.testing.assert_array_equal(
    people.words['education'] + 1, people.numbers['education_num']
  )
  spouse = people.words['relationship'] < 2
  np.testing.assert_array_equal(spouse, people.words['marital_status'] == 1)
  male = people.words['sex'][spouse] == 1
  np.testing.assert_array_equal(people.words['relationship'][spouse] == 0, male)


def test_a_quarter_has_a_large_income(people):
  assert 0.2 < people.label.mean() < 0.3


@pytest.mark.parametrize('name', ['race', 'country'])
def test_groups_say_nothing_of_the_label(people, name):
  place, label = people.words[name], people.label
  rates = np.array([label[place == x].mean() for x in np.unique(place)])
  errors = np.sqrt(label.var() / np.bincount(place))
  assert (abs(rates - label.mean()) < 4 * errors).all()


def test_school_and_marriage_say_much(people):
  years, label = people.numbers['education_num'], people.label
  assert label[years > 11].mean() > label[years < 9].mean() + 0.2
  married = people.words['marital_status'] == 1
  assert label[married].mean() > label[~married].mean() + 0.2


def test_words_have_names_and_seeds_decide(people):
  for name, place in people.words.items():
    assert place.min() >= 0
    assert place.max() < len(people.names[name])
  again = incomes.draw(4000, seed=0)
  np.testing.assert_array_equal(people.label, again.label)
  assert (people.label != incomes.draw(4000, seed=1).label).any()
  with pytest.raises(types.InputError, match='num_rows'):
    incomes.draw(0, seed=0)
