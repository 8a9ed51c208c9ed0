"""Templates say what they are told to; nothing held out is trained on."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from repjax import types
from repjax.data.batches import mixtures
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import packing
from repjax.data.text import published_tokens
from repjax.data.text import templates
from repjax.data.text import tokens

ASK = templates.Template('Is this good? {text}\n{options_}', '{answer}')
WRITE = templates.Template('Write a {answer} text.', '{text}', inverted=True)


def task(name, *clusters, rows=5, made=(ASK, WRITE)):
  return instructions.Task(
    name,
    clusters,
    [
      dict(text=f'text {i}', answer=('no', 'yes')[i % 2], options=('yes', 'no'))
      for i in range(rows)
    ],
    made,
  )


def test_a_template_writes_fields_and_options():
  row = dict(text='Fine {x}.', answer='yes', options=('yes', 'no'))
  assert ASK.write(row) == (
    'Is this good? Fine {x}.\nOPTIONS:\n- yes\n- no',
    'yes',
  )
  assert WRITE.write(row) == ('Write a yes text.', 'Fine {x}.')


def test_the_published_slip_is_a_character_in_the_place_of_a_line():
  found = templates.with_stray(ASK, 'text')
  assert found.source == 'Is this good? {text}n{options_}'


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: templates.Template('a', 'b'), 'no {field}'),
    (lambda: templates.Template('{0} a', '{b}'), 'names of'),
    (lambda: templates.Template('{a!r}', '{b}'), 'names of'),
    (lambda: templates.Template('{a', 'b'), 'template'),
    (lambda: templates.Template('{a}', '{options_}'), 'in the target'),
    (lambda: ASK.write(dict(text='x')), r"\['answer', 'options'\]"),
    (lambda: templates.listed(()), 'options'),
    (lambda: templates.listed(('a', 'a')), 'options'),
    (lambda: task('t', rows=3), 'clusters'),
    (lambda: task('t', 'c', made=()), 'templates'),
    (
      lambda: instructions.Task(
        't', ('c',), [dict(text='x', answer='so', options=('a', 'b'))], [ASK]
      ),
      "row 0 of the task 't' has the answer 'so'",
    ),
    (
      # A text is no list of options, though it holds the answer.
      lambda: instructions.Task(
        't', ('c',), [dict(text='x', answer='ab', options='abc')], [ASK]
      ),
      "'ab', which is none of its options",
    ),
    (
      lambda: instructions.Task('t', ('c',), [dict(options=('a',))], [ASK]),
      "no column 'answer'",
    ),
    (lambda: task('t', 'c').examples(cap=-1), 'cap must be'),
    (
      lambda: task('t', 'c').examples(cap=1),
      r"'t' has 1 row\(s\) for 2 templates",
    ),
    (lambda: task('t', 'c').told_by(2), 'template must be'),
    (
      lambda: instruction_rows.encoded(
        [instructions.Example('', 'b', (), 't', 0, 4)],
        tokens.Bytes(),
        source_length=4,
        target_length=4,
        tasks=['t'],
      ),
      "row 4 of the task 't' has an empty source",
    ),
    (lambda: instructions.mixing_rates([3, 0]), 'needs rows'),
    (
      lambda: instructions.Suite([task('a', 'c'), task('a', 'd')]),
      'one name',
    ),
    (
      lambda: instructions.Suite([task('a', 'c')], [('c', 'x')]),
      "no cluster 'x'",
    ),
    (
      lambda: instructions.Suite([task('a', 'c')]).training('c'),
      'nothing is left',
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(types.InputError, match=message):
    make()


@pytest.mark.parametrize(('rows', 'number'), [(23, 10), (9, 10), (30, 10)])
def test_templates_are_used_equally_often(rows, number):
  which = templates.in_turn(rows, number)
  counts = np.bincount(which[which >= 0], minlength=number)
  assert (counts == rows // number).all()
  assert (which == -1).sum() == rows % number


def test_examples_know_where_they_come_from():
  found = task('films', 'sentiment').examples()
  assert [x.template for x in found] == [0, 1, 0, 1]
  assert [x.row for x in found] == [0, 1, 2, 3]
  assert found[0].options == ('yes', 'no')
  assert found[1].options == ()  # Turned around.
  assert {x.task for x in found} == {'films'}
  assert len(task('films', 'sentiment').examples(cap=2)) == 2
  assert len(task('films', 'sentiment').told_by(0)) == 5


def test_what_a_held_out_task_is_besides_is_not_trained_on():
  suite = instructions.Suite(
    [
      *(task(x, x) for x in 'abcde'),
      task('both', 'a', 'b'),
    ],
    alike=[('b', 'c'), ('d', 'c')],
  )
  for cluster, expected in (
    ('a', ['d', 'e']),  # 'both' is of 'b', which is like 'c'.
    ('b', ['d', 'e']),
    ('c', ['a', 'e']),
    ('d', ['a', 'b', 'e', 'both']),  # Like 'c', and not what that is like.
    ('e', ['a', 'b', 'c', 'd', 'both']),
  ):
    assert [x.name for x in suite.training(cluster)] == expected


def drawn_suite(seed):
  rng = np.random.default_rng(seed)
  clusters = [*'abcdefgh'][: rng.integers(3, 9)]
  tasks = [
    task(f't{i}', *rng.choice(clusters, rng.integers(1, 4), replace=False))
    for i in range(rng.integers(5, 13))
  ]
  used = sorted({x for one in tasks for x in one.clusters})
  pairs = [*itertools.combinations(used, 2)]
  alike = rng.choice(pairs, rng.integers(0, 4)) if pairs else []
  # In either order.
  return instructions.Suite(tasks, [tuple(rng.permutation(x)) for x in alike])


def test_nothing_held_out_is_ever_trained_on():
  trained = refused = 0
  for seed in range(50):
    suite = drawn_suite(seed)
    alike = {*suite.alike, *(x[::-1] for x in suite.alike)}
    for cluster in suite.clusters:
      held_out = suite.held_out(cluster)
      assert held_out == [x for x in suite.tasks if cluster in x.clusters]

      def apart(one, held_out=held_out, alike=alike):
        return not any(
          x == y or (x, y) in alike
          for other in held_out
          for x in one.clusters
          for y in other.clusters
        )

      expected = [x for x in suite.tasks if apart(x)]
      if not expected:
        refused += 1
        with pytest.raises(types.InputError, match='nothing is left'):
          suite.training(cluster)
        continue
      trained += 1
      # No less is left out, and no more.
      assert suite.training(cluster) == expected
      mixture = {y.task for x in suite.training(cluster) for y in x.examples()}
      assert not mixture & {x.name for x in held_out}
  assert trained > 50 and refused > 50


def test_rates_are_capped():
  np.testing.assert_allclose(
    instructions.mixing_rates([100, 2000, 50_000]),
    np.array([100, 2000, 3000]) / 5100,
  )


@pytest.mark.parametrize('cap', [500, 3000, 100_000])
def test_tasks_are_drawn_at_their_capped_rates(cap):
  sizes = np.array([100, 2000, 50_000])
  rows = mixtures.drawn_rows(
    np.random.default_rng(0).random((100_000, 2)),
    rates=instructions.mixing_rates(sizes, cap=cap),
    sizes=sizes,
  )
  ends = np.cumsum(sizes)
  task = np.searchsorted(ends, rows, side='right')
  found = np.bincount(task, minlength=3) / len(rows)
  capped = np.minimum(sizes, cap)
  np.testing.assert_allclose(found, capped / capped.sum(), rtol=0, atol=0.01)
  # A cap says how often a task is drawn, not which of its rows.
  assert rows[task == 2].max() - ends[1] > 0.99 * sizes[2]


def test_lines_of_a_file_are_examples_by_task(tmp_path):
  path = tmp_path / 'flan.jsonl'
  rows = [
    dict(inputs='a?', targets='b', task='x', options=['b', 'c']),
    dict(inputs='d', targets='e'),
  ]
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  found = instructions.read_jsonl(path)
  assert set(found) == {'x', ''}
  assert found['x'][0].options == ('b', 'c')
  for line, message in (
    ('{', 'line 1'),
    ('{"inputs": "a"}', 'targets'),
    ('{"inputs": "a", "targets": 3}', 'targets'),
    ('{"inputs": "a", "targets": "b", "more": 1}', 'targets'),
    ('{"inputs": "a", "targets": "b", "options": ["c"]}', 'none of its'),
    # Letters of a text are no options.
    ('{"inputs": "a", "targets": "b", "options": "ab"}', 'list of texts'),
    ('{"inputs": "a", "targets": "1", "options": [1]}', 'list of texts'),
    ('{"inputs": "a", "targets": "b", "task": ["x"]}', "text 'task'"),
    ('', 'no example'),
  ):
    path.write_text(line)
    with pytest.raises(types.InputError, match=message):
      instructions.read_jsonl(path)


def test_a_line_ends_where_json_lines_end(tmp_path):
  path = tmp_path / 'flan.jsonl'
  path.write_text('{"inputs": "a\u2028b", "targets": "c"}\r\n', 'utf-8-sig')
  (found,) = instructions.read_jsonl(path)['']
  assert found.source == 'a\u2028b'


def encoded(count=60):
  rng = np.random.default_rng(0)
  examples = [
    instructions.Example(
      'q' * int(rng.integers(1, 12)),
      'a' * int(rng.integers(1, 5)),
      (),
      't',
      0,
      i,
    )
    for i in range(count)
  ]
  return instruction_rows.encoded(
    examples, tokens.Bytes(), source_length=12, target_length=7, tasks=['t']
  )


def test_targets_begin_end_and_count_but_for_their_beginning():
  rows = encoded(1).columns()
  length = int(rows['weights'].sum())
  assert rows['tokens'][0, 0] == instruction_rows.START
  assert rows['tokens'][0, length] == tokens.END
  assert rows['weights'][0].tolist() == [0] + [1] * length + [0] * (6 - length)


def test_sources_are_cut_at_their_ends_to_make_room():
  examples, letters = [instructions.Example('abcd', 'xy', (), 't', 0, 0)], {}
  read = tokens.Bytes()
  for length in (8, 6, 5):
    made = instruction_rows.encoded_texts(
      examples, read, length=length, tasks=['t']
    )
    rows = made.columns()
    is_end = rows['tokens'][0] == tokens.END
    assert is_end.tolist() == [
      *[False] * (length - 4),
      True,
      False,
      False,
      True,
    ]
    np.testing.assert_array_equal(rows['weights'][0, -4:], [0, 1, 1, 1])
    letters[length] = read.decode(rows['tokens'][0])
  assert letters == {8: 'abcdxy', 6: 'abxy', 5: 'axy'}
  with pytest.raises(types.InputError, match='no room for a source in 4'):
    instruction_rows.encoded_texts(examples, read, length=4, tasks=['t'])
  found = instruction_rows.source_ids('abcd', read, length=3)
  assert read.decode(found) == 'abc'


def test_a_source_of_a_published_model_is_cut_before_its_end():
  vocabulary = {'</s>': 0, **{x: i for i, x in enumerate('abcd', 1)}}
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='a'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', 0)]
  )
  read = published_tokens.Published(made.to_str())
  for length, expected in ((9, [1, 2, 3, 4, 0]), (3, [1, 2, 0])):
    found = instruction_rows.source_ids('a b c d', read, length=length)
    np.testing.assert_array_equal(found, expected)


def test_every_row_is_in_one_place_and_places_are_full():
  rows = encoded(400).columns()
  made = packing.packed(rows, source_length=64, target_length=64)
  found = made.columns()
  assert found['source_mask'].mean() > 0.95  # The side that is short.
  texts = []
  for place in range(len(made)):
    for segment in range(1, found['segments'][place].max() + 1):
      read = found['source_segments'][place] == segment
      written = found['segments'][place] == segment
      texts.append(
        (
          tuple(found['source'][place, read]),
          tuple(found['tokens'][place, written]),
        )
      )
      # The token that begins a text is not to be written.
      assert found['weights'][place, written].tolist() == [0] + [1] * (
        written.sum() - 1
      )
  expected = [
    (
      tuple(rows['source'][i, : int(rows['source_mask'][i].sum())]),
      tuple(rows['tokens'][i, : int(rows['weights'][i].sum()) + 1]),
    )
    for i in range(400)
  ]
  assert sorted(texts) == sorted(expected)


def test_a_packed_target_ends_with_the_last_token_that_counts():
  rows = encoded(1).columns()
  last = np.flatnonzero(rows['weights'][0])[-1]
  rows['weights'][0, 1] = 0.0  # A token within that is not to be written.
  found = packing.packed(rows, source_length=12, target_length=9).columns()
  for name in ('tokens', 'weights'):
    np.testing.assert_array_equal(
      found[name][0, : last + 1], rows[name][0, : last + 1]
    )
  assert found['segments'].sum() == last + 1


def test_first_fit_is_a_loop_over_places():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 9, (80, 2))
  room = (16, 12)
  places, left = [], []
  for row, length in enumerate(lengths):
    for members, rest in zip(places, left, strict=True):
      if (rest >= length).all():
        members.append(row)
        rest -= length
        break
    else:
      places.append([row])
      left.append(np.array(room) - length)
  assert packing.first_fit(lengths, room) == places
  assert list(itertools.chain(*packing.first_fit(lengths, (99_999,) * 2))) == [
    *range(80)
  ]
  with pytest.raises(types.InputError, match='does not fit'):
    packing.first_fit(lengths, (4, 4))


def test_options_have_one_name_in_templates():
  with pytest.raises(types.InputError, match=r'write \{options_\}'):
    templates.Template('Is it good? {text} {options}', '{answer}')
  with pytest.raises(types.InputError, match=r'write \{options_\}'):
    templates.Template('Is it good? {text}', '{options}')


def test_half_a_character_in_a_file_is_named_by_its_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  good = json.dumps({'inputs': 'hi \U0001f600', 'targets': 'x'})
  path.write_text(good + '\n' + r'{"inputs": "hi \ud83d", "targets": "x"}')
  with pytest.raises(types.InputError, match='line 2'):
    instructions.read_jsonl(path)


def test_a_column_of_numbers_is_no_text_for_bytes_either():
  with pytest.raises(types.InputError, match=r'config\.data\.column'):
    tokens.Bytes().encode(np.int32(3))
