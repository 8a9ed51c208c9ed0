"""Rows of single options rank them as loops over examples do."""

import numpy as np
import pytest

from repjax import types
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import option_rows
from repjax.data.text import templates
from repjax.data.text import tokens

NAMES = ['films', 'words']
SHAPE = dict(source_length=40, target_length=8, tasks=NAMES)


def tasks(rows=4):
  ask = [templates.Template(f'{x} {{text}}', '{answer}') for x in 'abc']
  turned = templates.Template('{answer}?', '{text}', inverted=True)
  films = [
    dict(text=f't{i}', answer='yn'[i % 2], options=('y', 'n', 'so'))
    for i in range(rows)
  ]
  words = [
    dict(text=f'w{i}', answer='12345'[i], options=tuple('12345'[: i + 1]))
    for i in range(rows)
  ]
  free = [dict(text='w', answer='x')] * rows
  return [
    instructions.Task('films', ('a',), films, [*ask, turned]),
    instructions.Task('words', ('b',), words, ask[:2]),
    instructions.Task('free', ('b',), free, ask),
  ]


def test_each_option_is_a_row_by_all_templates_that_are_not_turned():
  examples = option_rows.by_each_template(tasks())
  asked = [(x.task, x.template, x.row) for x in examples]
  assert asked == [
    (name, template, row)
    for name, count in (('films', 3), ('words', 2))
    for template in range(count)
    for row in range(4)
  ]
  found = option_rows.encoded(examples, tokens.Bytes(), **SHAPE).columns()
  assert len(found['option']) == 3 * 4 * 3 + 2 * (1 + 2 + 3 + 4)
  place = 0
  for example in examples:
    for number, option in enumerate(example.options):
      expected = instruction_rows.target_ids(option, tokens.Bytes())
      real = np.append(0, found['tokens'][place, 1 : len(expected)])
      np.testing.assert_array_equal(real, expected)
      assert found['weights'][place].sum() == len(expected) - 1
      assert found['option'][place] == number
      assert found['right'][place] == (option == example.target)
      assert NAMES[found['task'][place]] == example.task
      place += 1
  assert len(option_rows.by_each_template(tasks(), cap=1)) == 5


@pytest.mark.parametrize('rows', [1, 2, 4, 5])
@pytest.mark.parametrize('shuffled', [False, True])
def test_measures_are_those_of_loops(rows, shuffled):
  examples = option_rows.by_each_template(tasks(rows))
  columns = option_rows.encoded(examples, tokens.Bytes(), **SHAPE).columns()
  rng = np.random.default_rng(rows)
  scores = rng.normal(size=len(columns['option'])).astype(np.float32)
  right, place = {}, 0
  for x in examples:
    mine = scores[place : place + len(x.options)]
    place += len(x.options)
    right[x.task, x.template, x.row] = (
      x.options[int(np.argmax(mine))] == x.target
    )
  if shuffled:  # As files of several processes may give them.
    order = rng.permutation(len(scores))
    scores, columns = scores[order], {k: v[order] for k, v in columns.items()}
  found = option_rows.measure(scores, columns, NAMES)
  table = option_rows.shares(scores, columns, NAMES)
  half = range((rows + 1) // 2), range((rows + 1) // 2, rows)
  if rows % 2:  # Rows below the one in the middle, and the rest.
    half = range(rows // 2), range(rows // 2, rows)
  for name, count in (('films', 3), ('words', 2)):

    def share(template, some, name=name):
      return np.mean([right[name, template, x] for x in some])

    each = [share(x, range(rows)) for x in range(count)]
    for template, value in enumerate(each):
      assert table[name, template] == (rows, pytest.approx(value))
    assert found[f'{name}/accuracy'] == pytest.approx(np.mean(each))
    best = np.mean(each)
    if rows > 1:
      best = 0
      for mine, other in (half, half[::-1]):
        dev = [share(x, other) for x in range(count)]
        best += share(int(np.argmax(dev)), mine) * len(mine) / rows
    assert found[f'{name}/best_on_dev'] == pytest.approx(best)
  for x in ('accuracy', 'best_on_dev'):
    mean = np.mean([found[f'{name}/{x}'] for name in NAMES])
    assert found[x] == pytest.approx(mean)


def test_of_equals_the_first_option_counts():
  examples = option_rows.by_each_template(tasks()[:1])
  columns = option_rows.encoded(examples, tokens.Bytes(), **SHAPE).columns()
  _, right = option_rows.hits(np.zeros(len(columns['option'])), columns)
  assert right.tolist() == [x.target == 'y' for x in examples]


def test_nothing_to_rank_is_refused():
  free = tasks()[2].told_by(0)
  with pytest.raises(types.InputError, match='none of 4 examples has options'):
    option_rows.encoded(free, tokens.Bytes(), **SHAPE)


def test_options_are_ranked_as_they_would_be_written():
  ask = templates.Template('Good? {text} {options_}', 'It is: {answer}')
  rows = [
    dict(text=f't{i}', answer='yn'[i % 2], options='yn') for i in range(4)
  ]
  (task,) = [instructions.Task('films', ('a',), rows, [ask])]
  examples = task.told_by(0)
  assert examples[1].options == ('It is: y', 'It is: n')
  shape = {**SHAPE, 'target_length': 16}
  found = option_rows.encoded(examples, tokens.Bytes(), **shape).columns()
  np.testing.assert_array_equal(found['right'].reshape(4, 2).sum(1), 1)
  blind = templates.Template('{answer}: {text}', 'It is so.')
  with pytest.raises(types.InputError, match='from which its options'):
    instructions.Task('films', ('a',), rows, [blind]).told_by(0)
