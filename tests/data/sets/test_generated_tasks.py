"""Generated tasks have the answers that their words ask for."""

import pytest

from repjax import types
from repjax.data.sets import generated_tasks
from repjax.data.sets import listops

SUITE = generated_tasks.suite(told='instruction', num_rows=30, seed=0)
TASKS = {x.name: x for x in SUITE.tasks}


def test_three_clusters_each_told_in_ten_ways():
  assert SUITE.clusters == ('copies', 'lists', 'translation')
  assert len(SUITE.tasks) == 8
  for task in SUITE.tasks:
    assert len({x.source for x in task.templates}) == 10
    assert len(task.examples()) == 30


def test_lists_are_equal_to_their_answers():
  for row in TASKS['list operations'].rows:
    assert str(listops.value(listops.encode(row['text']))) == row['answer']
    assert row['answer'] in row['options']


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('copy', lambda x: x),
    ('backwards', lambda x: list(reversed(x))),
    ('twice', lambda x: 2 * x),
    ('ends', lambda x: [x[0], x[len(x) - 1]]),
  ],
)
def test_copies_are_what_they_say(name, change):
  for row in TASKS[name].rows:
    assert row['answer'].split() == change(row['text'].split())


def test_languages_differ_and_each_says_a_sentence_in_one_way():
  said = {
    name: dict.fromkeys(x['answer'] for x in TASKS[name].rows)
    for name in ('into Ano', 'into Bera', 'into Cilu')
  }
  assert not set(said['into Ano']) & set(said['into Cilu'])
  for name in said:
    pairs = {(x['text'], x['answer']) for x in TASKS[name].rows}
    assert len(pairs) == len({text for text, _ in pairs})
    back = [x for x in TASKS[name].examples() if x.template >= 8]
    row = TASKS[name].rows[back[0].row]
    assert (row['answer'] in back[0].source, back[0].target) == (
      True,
      row['text'],
    )


def test_rows_depend_on_the_seed_and_not_on_how_they_are_told():
  named = generated_tasks.suite(told='name', num_rows=30, seed=0)
  other = generated_tasks.suite(told='instruction', num_rows=30, seed=1)
  for task, plain, new in zip(
    SUITE.tasks, named.tasks, other.tasks, strict=True
  ):
    assert task.rows == plain.rows
    assert task.rows != new.rows
    assert plain.examples()[0].source.startswith(f'[{task.name}] ')


def test_bad_input_is_refused():
  with pytest.raises(types.InputError, match='told must be one of'):
    generated_tasks.suite(told='nothing', num_rows=3, seed=0)
