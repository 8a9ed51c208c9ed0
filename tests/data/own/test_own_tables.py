"""Tables: types of columns, labels, splits, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from repjax import types
from repjax.data.own import rows
from repjax.data.own import sets
from repjax.data.own import tables as own_tables
from repjax.data.reading import source

ROWS = [
  ('A quiet, "clever" film', 'good', 3, 0.5),
  ('Dull', 'bad', 1, 1.5),
  ('Two\nlines', 'good', 2, 2.5),
  ('Ünicode \u2028 text', 'bad', 7, -1.0),
]
NAMES = ('text', 'stars', 'user', 'score')


def _csv(path, rows=ROWS, names=NAMES):
  import csv

  with path.open('w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([names, *rows])
  return path


def _jsonl(path, rows=ROWS, names=NAMES):
  lines = [json.dumps(dict(zip(names, x, strict=True))) for x in rows]
  path.write_text('\n'.join([*lines, '']), 'utf-8')
  return path


def _load(path, split='train+test', name='csv:label=stars'):
  return source.load(name, split, data_dir=str(path))


@pytest.mark.parametrize(('write', 'kind'), [(_csv, 'csv'), (_jsonl, 'jsonl')])
def test_cells_come_back_as_they_were_written(tmp_path, write, kind):
  rows = _load(write(tmp_path / f'a.{kind}'), name=f'{kind}:label=stars')
  assert rows.class_names == ('bad', 'good')
  read = rows.read(np.arange(4))
  found = {
    (x.decode(), rows.class_names[y], int(u), float(s))
    for x, y, u, s in zip(
      *(read[k] for k in ('text', 'label', 'user', 'score')), strict=True
    )
  }
  assert found == set(ROWS)
  assert read['user'].dtype == np.int32 and read['score'].dtype == np.float32


def test_tabs(tmp_path):
  (tmp_path / 'a.tsv').write_text('text\tlabel\na, b\tx\nc\ty\nd\tx\ne\ty\n')
  rows = _load(tmp_path / 'a.tsv', name='csv')
  assert b'a, b' in rows.column('text')


def test_the_split_does_not_depend_on_the_order_of_lines(tmp_path):
  rows = [(f'text {i}', 'ab'[i % 2]) for i in range(40)]
  names = ('text', 'label')
  first = _csv(tmp_path / 'a.csv', rows, names)
  second = _csv(tmp_path / 'b.csv', rows[::-1], names)
  texts = [set(_load(x, 'test', 'csv').column('text')) for x in (first, second)]
  assert texts[0] == texts[1] and len(texts[0]) == 8


def test_lines_of_json_stay_where_they_are_when_one_has_another_key(tmp_path):
  rows = [{'text': f'text {i}', 'label': 'ab'[i % 2]} for i in range(60)]
  for row in rows[::3]:
    row['user'] = len(row['text'])
  more = {'source': 'shop', 'label': 'a', 'text': 'one more'}
  backwards = [dict(reversed(x.items())) for x in rows[::-1]]
  found = []
  for name, kept in (('a', rows), ('b', backwards), ('c', [*rows, more])):
    path = tmp_path / f'{name}.jsonl'
    path.write_text('\n'.join(map(json.dumps, kept)))
    found.append(set(_load(path, 'test', 'jsonl').column('text')))
  assert found[0] == found[1] and len(found[0]) == 12
  assert len(found[0] & found[2]) >= 11


def test_equal_rows_are_on_one_side(tmp_path):
  rows = [(f'text {i // 4}', 'ab'[i // 4 % 2]) for i in range(80)]
  path = _csv(tmp_path / 'a.csv', rows, ('text', 'label'))
  train, test = (set(_load(path, x, 'csv').column('text')) for x in SPLITS)
  assert test and not train & test


@pytest.mark.parametrize('first', [True, False])
def test_ties_are_parted_where_a_share_is_nearest(first):
  # One row beside nine equal ones, before or behind them.
  order = np.array([0, *[1] * 9] if first else [*[0] * 9, 1], np.uint64)
  chosen = rows.stratified(order, None, share=0.2)
  assert chosen.tolist() == (order == 0).tolist()
  # Many equal ones do not make the test split a half.
  order = np.sort(np.r_[np.arange(750), [150] * 250]).astype(np.uint64)
  chosen = rows.stratified(order, None, share=0.2)
  assert chosen.sum() == 150
  equal = rows.stratified(np.zeros(10, np.uint64), None, share=0.2)
  assert equal.sum() == 2


def test_a_column_of_two_roles_is_refused(tmp_path):
  path = _csv(tmp_path / 'a.csv', [('x', 'a'), ('y', 'b')], ('text', 'site'))
  with pytest.raises(types.InputError, match="'site' for label and for user"):
    _load(path, name='csv:label=site,user=site')


def test_features_that_float32_makes_one_are_refused(tmp_path):
  for start in (1_700_000_000, 1_700_000_000_000):
    lines = [(start + i, i, 'ab'[i % 2]) for i in range(100)]
    path = _csv(tmp_path / f'{start}.csv', lines, ('time', 'load', 'label'))
    with pytest.raises(
      types.InputError, match=r"float32 does not tell .* 'time' apart"
    ):
      _load(path, name='csv')
    one = _load(path, name='csv:features=load').columns()
    assert one['features'].shape[1:] == (1,)


SPLITS = ('train', 'test')


def test_files_of_splits(tmp_path):
  names = ('text', 'label')
  _csv(tmp_path / 'train.csv', [('a', '10'), ('b', '9')], names)
  _csv(tmp_path / 'dev.csv', [('c', '9')], names)
  train = _load(tmp_path, 'train', 'csv')
  assert train.class_names == ('9', '10')  # By size.
  assert _load(tmp_path, 'validation', 'csv').column('label').tolist() == [0]


def test_numbers_side_by_side_are_features(tmp_path):
  rows = [(i, i / 2, 'ab'[i % 2]) for i in range(10)]
  path = _csv(tmp_path / 'a.csv', rows, ('height', 'weight', 'label'))
  read = _load(path, name='csv').columns()
  np.testing.assert_array_equal(
    read['features'], np.stack([read['height'], read['weight']], -1)
  )
  one = _load(path, name='csv:features=weight').columns()
  np.testing.assert_array_equal(one['features'][:, 0], one['weight'])


def _written(text):
  def write(path):
    path.write_text(text)
    return path

  return write


@pytest.mark.parametrize(
  ('text', 'name', 'match'),
  [
    ('text,stars\na,1\nb,2\n', 'csv:label=start', r"no column 'start'.*stars"),
    ('text,label\na,1\nb\n', 'csv', r'line 3 has 1 cells, the header 2'),
    ('text,label\na,1\nb,\n', 'csv', r'1 row\(s\) have no label.*a\.csv:3'),
    ('text,label\n', 'csv', 'header line and rows'),
    ('text;label\na;1\nb;2\n', 'csv', 'semicolons'),
    ('text,text\na,b\n', 'csv', 'name of its own'),
    ('a,label\n1,x\n,y\n', 'csv', "'a' has no finite number in 1 row.*csv:3"),
    ('t,a,label\nx,1,p\ny,2,q\n', 'csv:features=t', "'t' is none of numbers"),
    ('label\na\nb\n', 'csv', 'no column besides the label'),
    ('text,label\na,1\nb,1\n', 'csv', "one class alone, '1'"),
    ('text,label\n"a,1\n', 'csv', 'cannot be read as a CSV file'),
    ('{"text": 1}\nno\n', 'jsonl', 'line 2 is no JSON'),
    ('[1]\n', 'jsonl', 'line 1 is no object'),
    ('{"text": "\\ud800"}\n', 'jsonl', 'line 1 is no JSON'),
    ('[' * 100_000, 'jsonl', 'line 1 is no JSON'),
    ('text,label\na,1\nb,2\nc,NaN\n', 'csv', 'no label, the first is a.csv:4'),
    ('{"a": 1, "label": NaN}\n', 'jsonl', 'no label, the first is a.csv:1'),
    ('text,label\na,1\nb,2\n', 'csv:label', "'label' is no option"),
  ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text, name, match):
  path = _written(text)(tmp_path / 'a.csv')
  with pytest.raises(types.InputError, match=match) as error:
    _load(path, 'train', name)
  assert '\n' not in str(error.value)


def test_a_number_for_each_row_is_no_class(tmp_path):
  rows = [(f'text {i}', i / 7) for i in range(60)]
  path = _csv(tmp_path / 'a.csv', rows, ('text', 'label'))
  with pytest.raises(types.InputError, match='60 different labels in 60 rows'):
    _load(path, 'train', 'csv')


@pytest.mark.parametrize('names', [('7', '007'), ('10', '1_0')])
def test_names_of_digits_stay_apart(tmp_path, names):
  rows = [(f't{i}', 'ab'[i % 2], names[i // 2], i) for i in range(4)]
  read = _load(_csv(tmp_path / 'a.csv', rows)).read(np.arange(4))
  assert {x.decode() for x in read['user']} == set(names)
  # And months are numbers.
  rows = [(*x[:2], f'0{1 + x[3]}', x[3]) for x in rows]
  read = _load(_csv(tmp_path / 'a.csv', rows)).read(np.arange(4))
  assert sorted(read['user'].tolist()) == [1, 2, 3, 4]


def test_whole_numbers_beyond_all_others_are_texts(tmp_path):
  rows = [(int('9' * n), 'xy'[n % 2]) for n in range(400, 404)]
  path = _jsonl(tmp_path / 'a.jsonl', rows, ('text', 'label'))
  read = _load(path, 'train+test', 'jsonl').column('text')
  assert sorted(map(len, read)) == [400, 401, 402, 403]


def test_files_of_no_split_are_named(tmp_path, caplog):
  rows = [('a', 'x'), ('b', 'y')]
  for name in ('train', 'test', 'train2'):
    _csv(tmp_path / f'{name}.csv', rows, ('text', 'label'))
  assert len(_load(tmp_path, 'train', 'csv')) == 2
  assert '1 file(s) of no split are left out, such as train2.csv' in caplog.text


def test_a_split_of_tests_alone_is_not_trained_on(tmp_path):
  _csv(tmp_path / 'test.csv', [('a', 'x'), ('b', 'y')] * 5, ('text', 'label'))
  with pytest.raises(types.InputError, match='test alone, and none to train'):
    _load(tmp_path, 'train', 'csv')


def test_two_files_of_one_split_and_files_of_none(tmp_path):
  names = ('text', 'label')
  rows = [('a', 'x'), ('b', 'y')]
  _csv(tmp_path / 'train.csv', rows, names)
  _csv(tmp_path / 'training.csv', rows, names)
  with pytest.raises(types.InputError, match='two files of the split train'):
    _load(tmp_path, 'train', 'csv')
  for name in ('train.csv', 'training.csv'):
    (tmp_path / name).rename(tmp_path / f'my-{name}')
  with pytest.raises(types.InputError, match='none is called train'):
    _load(tmp_path, 'train', 'csv')


def test_labels_of_tests_alone(tmp_path):
  names = ('text', 'label')
  _csv(tmp_path / 'train.csv', [('a', 'x'), ('b', 'y')], names)
  _csv(tmp_path / 'test.csv', [('a', 'z')], names)
  with pytest.raises(types.InputError, match=r"no training row has: 'z' \(1\)"):
    _load(tmp_path, 'train', 'csv')


def test_in_python(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', ROWS * 5)
  rows = sets.from_table(path, 'train+test', label='stars')
  assert len(rows) == 20 and rows.num_classes == 2
  folder = tmp_path / 'folder'
  folder.mkdir()
  for split in ('train', 'test'):
    shutil.copy(path, folder / f'{split}.jsonl')
  assert len(sets.from_table(folder, 'test', label='stars')) == 20


def test_lines_end_where_files_say_so(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes('one\u2028still one\r\n\ntwo\x0cpage\nthree\n'.encode())
  read = own_tables.lines(path, ['text'])
  assert read.names == ['a.txt:1', 'a.txt:3', 'a.txt:4']


def test_features_stand_in_the_order_of_the_training_file(tmp_path):
  rows, names = [(1, 10, 'x'), (2, 20, 'y')], ('low', 'high', 'label')
  _csv(tmp_path / 'train.csv', rows, names)
  _csv(tmp_path / 'test.csv', [(50, 5, 'x')], ('high', 'low', 'label'))
  test = _load(tmp_path, 'test', 'csv')
  assert test.column('features').tolist() == [[5, 50]]


def test_many_numbers_are_not_lost_because_they_are_many():
  assert not own_tables.are_lost(np.random.default_rng(0).random(4_000_000))
  assert own_tables.are_lost(1.7e9 + np.arange(4_000_000.0))
