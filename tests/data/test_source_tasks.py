"""A task of any source is the one that is made of its rows by hand."""

import json

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import text_tasks
from repjax.data.sets import text_templates
from repjax.data.text import instructions
from repjax.data.text import source_tasks
from repjax.data.text import templates

ASK = templates.Template('Is this good? {text}\n{options_}', '{answer}')
WRITE = templates.Template('Write a {answer} text.', '{text}', inverted=True)
TEXTS = ['  Fine.', b'D\xc3\xbcll. ', 'So so.', 'Bad.']


def films(**columns):
  columns = {'text': TEXTS, 'label': [1, 0, 1, 0], **columns}
  texts = np.array(columns['text'], object)
  return sources.from_arrays('films', {**columns, 'text': texts})


def made(source, **settings):
  settings = dict(clusters=['mood'], templates=[ASK, WRITE], **settings)
  return source_tasks.of_source(source, 'films', **settings)


def test_classes_become_their_names():
  found = made(films(), options=['no', 'yes'])
  rows = [
    dict(text=text, answer=answer, options=('no', 'yes'))
    for text, answer in (
      *(('Fine.', 'yes'), ('Düll.', 'no')),
      *(('So so.', 'yes'), ('Bad.', 'no')),
    )
  ]
  expected = instructions.Task('films', ('mood',), rows, [ASK, WRITE])
  assert found.examples() == expected.examples()
  assert found.told_by(0) == expected.told_by(0)
  suite = instructions.Suite(
    [found, instructions.Task('other', ('b',), rows, [ASK])]
  )
  assert [x.name for x in suite.training('mood')] == ['other']


def test_answers_may_be_texts_with_options_and_without():
  source = films(mood=['no', 'yes', 'no', 'no'])
  found = made(source, answer='mood', options=['yes', 'no'])
  assert found.told_by(0)[0].options == ('yes', 'no')
  assert [x.target for x in found.told_by(0)] == ['no', 'yes', 'no', 'no']
  ask = templates.Template('{words}', '{answer}')
  free = source_tasks.of_source(
    source,
    'free',
    clusters=['mood'],
    templates=[ask],
    answer='mood',
    fields={'words': 'text'},
  )
  assert free.told_by(0)[1] == instructions.Example(
    'Düll.', 'yes', (), 'free', 0, 1
  )


def test_a_file_of_ones_own_gives_its_names_of_classes(tmp_path):
  path = tmp_path / 'films.jsonl'
  rows = [dict(text=f'film {i}', label='bg'[i % 2]) for i in range(4)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  found = made(sources.load('jsonl', 'train', data_dir=str(path)))
  assert {x.options for x in found.told_by(0)} == {('b', 'g')}
  by_text = {x['text']: x['label'] for x in rows}
  assert all(x['answer'] == by_text[x['text']] for x in found.rows)


def test_a_prepared_set_is_told_as_in_the_suite(real_data):
  suite = text_tasks.suite(
    'validation', told='instruction', num_rows=40, seed=3, data_dir=real_data
  )
  (expected,) = suite.held_out('sentiment')
  whole = sources.load('glue/sst2', 'validation', data_dir=real_data)
  rows = np.random.default_rng([3, len(whole)]).permutation(len(whole))[:40]
  settings = dict(
    clusters=('sentiment',),
    templates=text_templates.INSTRUCTIONS['sentiment'],
    fields={'text': 'sentence'},
  )
  found = source_tasks.of_source(whole.select(rows), 'sentiment', **settings)
  assert found.examples() == expected.examples()
  other = [x for x in suite.tasks if x is not expected]
  mixed = instructions.Suite([found, *other], alike=suite.alike)
  names = [x.name for x in suite.training('reading')]
  assert [x.name for x in mixed.training('reading')] == names


@pytest.mark.parametrize(
  ('columns', 'settings', 'message'),
  [
    (
      {},
      dict(fields={'text': 'words'}, options='ny'),
      r"'films': the template 'Is this good.* needs \['text'\], and films has "
      r"\['label', 'text'\]",
    ),
    ({}, dict(answer='mood'), "no column 'mood' of answers"),
    (
      dict(label=[0, 1, 2, 0]),
      dict(options='ny'),
      "row 2 of the task 'films' has the class 2, and options name 2",
    ),
    (dict(label=[0, -1, 1, 0]), dict(options='ny'), 'row 1 .* class -1'),
    (
      dict(mood=['no', 'yes', 'so', 'no']),
      dict(answer='mood', options=['yes', 'no']),
      "row 2 of the task 'films' has the answer 'so', which is none of",
    ),
    (
      dict(text=np.zeros((4, 2))),
      dict(options='ny'),
      r"shape \(2,\) in the column 'text'",
    ),
    (
      dict(text=[3.5, np.nan, 1.0, 2.0]),
      dict(options='ny'),
      "row 1 of the task 'films' has no number in the column 'text'",
    ),
    ({}, {}, 'lists options, and there are none'),
  ],
)
def test_what_cannot_be_is_refused(columns, settings, message):
  with pytest.raises(types.InputError, match=message):
    made(films(**columns), **settings).examples()
