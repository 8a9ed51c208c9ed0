"""Tables: what columns are, which rows are a test's."""

import numpy as np
import pytest
from sklearn import datasets

from repjax import types
from repjax.data.sets import tables


def test_rows_of_scikit_learn():
  table = tables.load('breast_cancer')
  read = datasets.load_breast_cancer()
  np.testing.assert_array_equal(table.features, read.data.astype(np.float32))
  np.testing.assert_array_equal(table.label, read.target)
  assert table.names[0] == 'mean radius'
  assert len(table.names) == 30 == len(set(table.owner))


def test_splits_share_nothing_and_have_all_classes_alike():
  table = tables.load('wine')
  train, test = (tables.split(table, x) for x in ('train', 'test'))
  assert len(train.label) + len(test.label) == len(table.label)
  for label, count in enumerate(np.bincount(table.label)):
    assert (test.label == label).sum() == count // 4
  rows = {tuple(x) for x in train.features}
  assert not rows & {tuple(x) for x in test.features}


def test_columns_are_brought_to_the_scale_of_training_rows():
  table = tables.load('wine')
  table.features[:, 3] = 0.1  # Whose mean is another number in float32.
  train = tables.split(table, 'train')
  scaled = tables.scale(train)(train.features)
  np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(np.delete(scaled.std(0), 3), 1, atol=1e-5)
  np.testing.assert_array_equal(scaled[:, 3], 0)


def test_planted_bits_follow_their_formula():
  table = tables.load('planted')
  assert len({tuple(x) for x in table.features}) == 1024
  for row, label in zip(table.features, table.label, strict=True):
    a1, a2, b1, b2, b3, c1, c2, c3 = row[:8] > 0
    said = (a1 or a2) and (b1 or b2 or b3) and (c1 or (c2 and c3))
    assert label == said


def test_prepared_tables(real_data):
  compas = tables.load('compas', data_dir=real_data)
  assert compas.features.shape == (7214, 7 + 19)
  assert len(compas.names) == 13
  # Each row has one word a column of words.
  for player in range(7, 13):
    words = compas.features[:, compas.owner == player]
    np.testing.assert_array_equal(words.sum(1), 1)
  # Three words repeat ten scores.
  decile = compas.features[:, compas.names.index('decile_score')]
  words = compas.features[
    :, compas.owner == compas.names.index('score_text')
  ].argmax(1)
  np.testing.assert_array_equal(
    words[decile > 0], np.digitize(decile[decile > 0], [5, 8])
  )
  divorce = tables.load('divorce', data_dir=real_data)
  assert divorce.features.shape == (170, 54)
  assert np.bincount(divorce.label).tolist() == [86, 84]


def test_what_is_no_table_is_refused(tmp_path):
  with pytest.raises(types.InputError, match=r'config\.data\.name must be one'):
    tables.load('mnist')
  with pytest.raises(types.InputError, match=r'launch\.prepare'):
    tables.load('divorce', data_dir=str(tmp_path))
  with pytest.raises(types.InputError, match='must be one of'):
    tables.split(tables.load('wine'), 'validation')


def test_words_of_generated_people_are_one_player_each():
  table = tables.load('incomes')
  assert len(table.names) == 14
  for player in range(6, 14):
    words = table.features[:, table.owner == player]
    np.testing.assert_array_equal(words.sum(1), 1)


@pytest.fixture
def adult(tmp_path):
  path = tmp_path / 'adult.csv'
  lines = ['age,work,gain,income']
  lines += [
    f'{20 + i}, {("Private", "State")[i % 3 == 0]},{i % 5},'
    f'{("<=50K", ">50K")[i % 4 == 0]}'
    for i in range(40)
  ]
  path.write_text('\n'.join(lines), 'utf-8')
  return path


def test_a_table_of_ones_own_has_numbers_and_words(adult):
  table = tables.load('csv:label=income', data_dir=str(adult))
  assert set(table.names) == {'age', 'work', 'gain'}
  assert len(table.label) == 40
  column = {x: table.owner == i for i, x in enumerate(table.names)}
  row = table.features[:, column['age']][:, 0].astype(int) - 20
  np.testing.assert_array_equal(np.sort(row), np.arange(40))
  np.testing.assert_array_equal(
    table.features[:, column['gain']][:, 0], row % 5
  )
  np.testing.assert_array_equal(
    table.features[:, column['work']], np.eye(2)[(row % 3 == 0).astype(int)]
  )
  np.testing.assert_array_equal(table.label, row % 4 == 0)


def test_columns_that_are_named_are_all_that_is_read(adult):
  table = tables.load('csv:label=income,features=gain+age', data_dir=str(adult))
  assert table.names == ('gain', 'age')
  assert sorted(table.features[:, 1]) == [*range(20, 60)]
  with pytest.raises(types.InputError, match='csv:label=COLUMN'):
    tables.load('csv', data_dir=str(adult))


def test_columns_that_are_no_table_are_refused(adult):
  text = adult.read_text('utf-8')
  adult.write_text(text.replace('\n21,', '\n,'), 'utf-8')
  with pytest.raises(types.InputError, match="'age' has no finite number"):
    tables.load('csv:label=income', data_dir=str(adult))
  for gap in ('NA', '?', 'null'):
    adult.write_text(text.replace('\n21,', f'\n{gap},'), 'utf-8')
    with pytest.raises(types.InputError, match="'age' holds numbers, and"):
      tables.load('csv:label=income', data_dir=str(adult))
  names = '\n'.join(f'{i},n{i},1,{i % 2}' for i in range(101))
  adult.write_text(f'age,work,gain,income\n{names}', 'utf-8')
  with pytest.raises(types.InputError, match="'work' has 101 words"):
    tables.load('csv:label=income', data_dir=str(adult))
  with pytest.raises(types.InputError, match='name'):
    tables.load('npz', data_dir=str(adult))


def test_a_table_of_ones_own_keeps_its_splits(tmp_path):
  for name, rows in (('train', 20), ('validation', 5), ('test', 8)):
    start = dict(train=0, validation=100, test=200)[name]
    lines = ['age,income', *(f'{start + i},{i % 2}' for i in range(rows))]
    (tmp_path / f'{name}.csv').write_text('\n'.join(lines), 'utf-8')
  table = tables.load('csv:label=income', data_dir=str(tmp_path))
  ages = {
    split: sorted(tables.split(table, split).features[:, 0])
    for split in ('train', 'test')
  }
  assert ages['train'] == [*range(20)]
  assert ages['test'] == [*range(200, 208)]


def test_columns_and_classes_are_those_of_training_rows(tmp_path):
  train = ['work,age,income', 'b,1,no', 'c,2,yes', 'b,3,no', 'c,4,yes']
  (tmp_path / 'train.csv').write_text('\n'.join(train))
  found = []
  for text in (
    'work,age,income\na,5,no\nb,6,yes',
    'age,work,income\n6,b,yes\n5,d,no',
  ):
    (tmp_path / 'test.csv').write_text(text)
    table = tables.load('csv:label=income', data_dir=str(tmp_path))
    found.append(tables.split(table, 'train'))
    test = tables.split(table, 'test')
    words = test.features[:, test.owner == test.names.index('work')]
    assert sorted(words.tolist()) == [[0, 0], [1, 0]]
  np.testing.assert_array_equal(found[0].features, found[1].features)
  source = tables.as_source(found[0], tables.Scale(0.0, 1.0), name='a')
  assert source.class_names == ('no', 'yes')


def test_numbers_that_float32_makes_one_are_refused_beside_words(tmp_path):
  lines = [f'{1_700_000_000 + i},{"ab"[i % 2]},{i % 2}' for i in range(100)]
  path = tmp_path / 'a.csv'
  path.write_text('\n'.join(['time,work,income', *lines]))
  with pytest.raises(types.InputError, match=r"float32 .* 'time' apart"):
    tables.load('csv:label=income', data_dir=str(path))
