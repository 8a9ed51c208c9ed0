"""Tasks are what their instructions say; clusters have all words."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import digit_maps


@pytest.mark.parametrize('told', ['instruction', 'name', 'nothing'])
def test_rows_are_right_and_do_not_depend_on_how_they_are_told(told):
  suite = digit_maps.suite(told=told, num_rows=6, seed=3)
  plain = digit_maps.suite(told='instruction', num_rows=6, seed=3)
  assert len(suite.tasks) == 30
  for task, other in zip(suite.tasks, plain.tasks, strict=True):
    assert task.rows == other.rows
    change, place = task.name.split(', ')
    for row in task.rows:
      digits = [int(x) for x in row['digits'].split()]
      digit = digits[digit_maps.PLACES.index(place)]
      expected = {
        'value': digit,
        'mirror': 9 - digit,
        'next': (digit + 1) % 10,
        'previous': (digit + 9) % 10,
        'triple': digit * 3 % 10,
        'opposite': (digit + 5) % 10,
      }[change]
      assert row['answer'] == str(expected)
      assert row['answer'] in row['options']


def test_every_cluster_has_all_words():
  suite = digit_maps.suite(told='instruction', num_rows=10, seed=0)
  assert suite.clusters == ('0', '1', '2', '3', '4')
  for cluster in suite.clusters:
    tasks = suite.held_out(cluster)
    changes, places = zip(*(x.name.split(', ') for x in tasks), strict=True)
    assert sorted(changes) == sorted(digit_maps.CHANGES)
    assert set(places) == set(digit_maps.PLACES)
    # So have the first six that are trained on.
    first = [x.name.split(', ') for x in suite.training(cluster)[:6]]
    assert {x for x, _ in first} == set(digit_maps.CHANGES)


def test_a_template_says_all_that_is_told():
  suite = digit_maps.suite(told='instruction', num_rows=10, seed=0)
  for example in suite.tasks[7].examples():
    change, place = suite.tasks[7].name.split(', ')
    assert change in example.source
    assert place in example.source
  named = digit_maps.suite(told='name', num_rows=3, seed=0)
  sources = [x.examples()[0].source for x in named.tasks]
  words = {y for x in sources for y in x.split() if y.startswith('task')}
  assert len(words) == 30
  assert not np.any(['digit' in x for x in sources])


def test_another_way_of_telling_is_refused():
  with pytest.raises(types.InputError, match='told'):
    digit_maps.suite(told='song', num_rows=3, seed=0)
