"""Tasks of real text say what is so, and what is alike is held out together."""

import collections

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import text_tasks
from repjax.data.sets import text_templates
from repjax.data.text import instructions


def made(real_data, **fields):
  settings = dict(told='instruction', num_rows=120, seed=0)
  return text_tasks.suite(
    'validation', data_dir=real_data, **{**settings, **fields}
  )


def test_facts_are_read_from_data():
  assert text_tasks.facts_of(
    'name[The Mill, Inn], eatType[pub], customer rating[5 out of 5]'
  ) == {
    'name': 'The Mill, Inn',
    'eatType': 'pub',
    'customer rating': '5 out of 5',
  }


def test_each_task_has_ten_templates_of_its_own_fields():
  assert set(text_templates.INSTRUCTIONS) == set(text_templates.NAMES)
  for name, ways in text_templates.INSTRUCTIONS.items():
    assert len({x.source for x in ways}) == len(ways) == 10
    (plain,) = text_templates.NAMES[name]
    # A name is told the same inputs, and options where there are some.
    assert plain.fields == frozenset().union(
      *(x.fields for x in ways if not x.inverted)
    )


def test_rows_are_right(real_data):
  tasks = {x.name: x for x in made(real_data).tasks}
  assert len(tasks) == 7
  for task in tasks.values():
    assert len(task.examples()) == len(task.rows) // 10 * 10
  for row in tasks['statement'].rows:
    assert row['statement'].startswith('the ')
  answers = collections.Counter(x['answer'] for x in tasks['statement'].rows)
  assert 40 < answers['yes'] < 80
  for row in tasks['reading'].rows:
    assert row['answer'] in row['options']
  for row in tasks['intent'].rows:
    assert len(set(row['options'])) == 5
  pairs = tasks['same wish'].rows
  assert {x['answer'] for x in pairs} == {'yes', 'no'}
  assert all(x['text'] != x['other'] for x in pairs)


def test_rows_are_those_of_the_seed_and_the_same_by_name(real_data):
  first, again = made(real_data), made(real_data, told='name')
  other = made(real_data, seed=1)
  for x, y, z in zip(first.tasks, again.tasks, other.tasks, strict=True):
    assert x.rows == y.rows
    assert x.rows != z.rows
    assert y.examples()[0].source.startswith(f'[{x.name}] ')


def slips(right, wrong):
  """Places where a letter stands for a new line; nothing else differs."""
  assert len(right) == len(wrong)
  found = [(x, y) for x, y in zip(right, wrong, strict=True) if x != y]
  assert set(found) <= {('\n', 'n')}
  return len(found)


def test_the_published_slip_is_behind_statements_alone():
  for name, ways in text_templates.INSTRUCTIONS.items():
    other = text_templates.WITH_STRAY[name]
    counts = [
      slips(x.source, y.source) for x, y in zip(ways, other, strict=True)
    ]
    expected = ['{statement}\n' in x.source for x in ways]
    assert counts == expected
    assert sum(counts) == (2 if name == 'statement' else 0)
    assert [(x.target, x.inverted) for x in ways] == [
      (x.target, x.inverted) for x in other
    ]


def test_a_task_with_the_slip_has_the_same_rows(real_data):
  right, wrong = made(real_data), made(real_data, told='instruction_with_stray')
  for x, y in zip(right.tasks, wrong.tasks, strict=True):
    for one, other in zip(x.examples(), y.examples(), strict=True):
      spoilt = x.name == 'statement' and one.template in (1, 7)
      assert slips(one.source, other.source) == spoilt
      assert one._replace(source='') == other._replace(source='')


def test_what_is_alike_is_not_trained_on(real_data):
  found = made(real_data)
  assert len(found.clusters) == 6
  names = {x.name for x in found.training('entailment')}
  assert names == {'sentiment', 'intent', 'domain', 'same wish', 'description'}
  names = {x.name for x in found.training('intent')}
  assert names == {'sentiment', 'statement', 'reading', 'description'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(num_rows=10**6), 'fewer than 1000000'),
    (dict(num_rows=0), 'num_rows must be'),
    (dict(told='song'), 'told'),
  ],
)
def test_what_cannot_be_is_refused(real_data, fields, message):
  with pytest.raises(types.InputError, match=message):
    made(real_data, **fields)


def test_answers_are_right():
  foods, rng = ['Thai', 'Indian'] * 20, np.random.default_rng(0)
  columns = dict(
    human_reference=[f'{x} food' for x in foods],
    meaning_representation=[f'name[A], food[{x}]' for x in foods],
  )
  rows = text_tasks._statement(columns, rng)
  assert {x['answer'] for x in rows} == {'yes', 'no'}
  for row, food in zip(rows, foods, strict=True):
    assert (row['answer'] == 'yes') == row['statement'].endswith(food)
  wishes = dict(text=[*'01234567'], intent=[0, 0, 1, 1, 2, 2, 3, 3])
  for row in text_tasks._same_wish(wishes, rng):
    same = int(row['text']) // 2 == int(row['other']) // 2
    assert (row['answer'] == 'yes') == same


def test_no_template_tells_whether_wishes_are_the_same():
  wishes = dict(
    text=[f'wish {i}' for i in range(400)], intent=[i // 20 for i in range(400)]
  )
  rows = text_tasks._same_wish(wishes, np.random.default_rng(0))
  assert 150 < sum(x['answer'] == 'yes' for x in rows) < 250
  ways = text_templates.INSTRUCTIONS['same wish']
  task = instructions.Task('same wish', ('paraphrase',), rows, ways)
  answers = collections.defaultdict(set)
  for example in task.examples():
    answers[example.template].add(example.target)
  assert len(answers) == 10
  assert all(x == {'yes', 'no'} for x in answers.values())
