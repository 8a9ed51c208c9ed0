"""Files of predictions: written, read again, scored; what is wrong is named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import hospitals
from repjax.benchmarks.wilds import leaderboard


@pytest.fixture(scope='module')
def data():
  return hospitals.load(num_digits=200)


def guesses(part, replicate):
  rng = np.random.default_rng(int(replicate[-1]))
  return np.where(rng.random(len(part)) < 0.8, part.label, 1 - part.label)


@pytest.fixture
def folder(data, tmp_path):
  for split in leaderboard.splits(data):
    for replicate in leaderboard.replicates(data.name):
      part = data.subset(split)
      leaderboard.write(tmp_path, part, replicate, guesses(part, replicate))
  return tmp_path


def test_what_is_written_scores_as_it_was(data, folder):
  score = leaderboard.score(folder, data)
  result = score.result()
  assert set(result) == {'id_val', 'test', 'val', 'id_test'}
  for split, numbers in result.items():
    part, values = data.subset(split), []
    for replicate in ('seed:0', 'seed:1', 'seed:2'):
      values.append((guesses(part, replicate) == part.label).mean())
    assert numbers['acc_avg'] == pytest.approx(np.mean(values))
    spread = np.sqrt(np.square(values - np.mean(values)).sum() / 2)  # n - 1.
    assert numbers['acc_avg_std'] == pytest.approx(spread)
    assert set(numbers) == {
      'acc_avg', 'acc_avg_std', 'acc_wg', 'acc_wg_std',
    }  # fmt: skip
  table = score.markdown().splitlines()
  assert table[0] == '| split | acc_avg | acc_wg |'
  assert len(table) == 2 + len(result)
  path = folder / 'results.json'
  leaderboard.write_results(path, score)
  assert json.loads(path.read_text()) == result
  leaderboard.write_results(path, {'hospitals': score})
  assert json.loads(path.read_text())['hospitals'] == result


def test_a_scheme_with_other_measures_has_no_score(data, folder):
  def other(*args):
    results = data.evaluate_fn(*args).results
    return evaluation.Evaluation({'acc_avg': results['acc_avg']}, {})

  by_time = dataclasses.replace(data, evaluate_fn=other)
  with pytest.raises(types.InputError, match=r'gives no acc_wg: .* official'):
    leaderboard.score(folder, by_time)


def test_file_names_and_lines_are_those_of_the_leaderboard(data, tmp_path):
  part = data.subset('test')
  path = leaderboard.write(tmp_path, part, 'seed:2', part.label)
  assert path.name == 'hospitals_split:test_seed:2_pred.csv'
  lines = path.read_text().splitlines()
  assert lines == [str(x) for x in part.label]
  np.testing.assert_array_equal(leaderboard.read(path), part.label)
  path.write_text('0.25\n\n1e-3\n  \n')
  assert leaderboard.read(path).tolist() == [0.25, 0.001]


@pytest.mark.parametrize(
  'form',
  [
    lambda x: x > 0,
    lambda x: x.astype(np.float32),
    lambda x: x.astype(ml_dtypes.bfloat16),
    lambda x: x[:, None],
    lambda x: x[:, None] > 0,
    lambda x: x.astype(np.uint8),
    list,
  ],
)
def test_classes_are_written_as_integers_whatever_their_type(
  data, tmp_path, form
):
  part = data.subset('test')
  path = leaderboard.write(tmp_path, part, 'seed:0', form(part.label))
  assert path.read_text().splitlines() == [str(x) for x in part.label]
  found = leaderboard.read(path)
  assert found.dtype == np.int64
  np.testing.assert_array_equal(found, part.label)
  assert part.evaluate(found).results['acc_avg'] == 1


@pytest.mark.parametrize(
  ('form', 'message'),
  [
    (lambda x: 0.7 * x, r'is 0.7, no class in \[0, 2\)'),
    (lambda x: 1e300 * x, r'is 1e\+300, no class'),
    (lambda x: x + 1, r'is 2, no class in \[0, 2\)'),
    (lambda x: x - 1, r'is -1, no class in \[0, 2\)'),
    (lambda x: x.astype(str), 'real numbers'),
    (lambda x: x.astype(object), 'real numbers'),
    (lambda x: x + 0j, 'real numbers'),
  ],
)
def test_what_is_no_class_is_not_written(data, tmp_path, form, message):
  part = data.subset('test')
  with pytest.raises(types.InputError, match=message) as error:
    leaderboard.write(tmp_path, part, 'seed:0', form(part.label))
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_replicates_are_those_of_the_leaderboard():
  assert len(leaderboard.replicates('camelyon17')) == 10
  assert len(leaderboard.replicates('civilcomments')) == 5
  assert leaderboard.replicates('poverty')[-1] == 'fold:E'
  assert len(leaderboard.replicates('fmow')) == 3


def test_a_seed_is_not_taken_for_another(data, folder):
  long = folder / 'hospitals_split:test_seed:10_pred.csv'
  long.write_text('nonsense')
  leaderboard.score(folder, data)
  (folder / 'hospitals_split:test_seed:1_epoch:best_pred.csv').write_text('0')
  with pytest.raises(types.InputError, match='there is 2 of them'):
    leaderboard.score(folder, data)


def test_a_missing_or_wrong_file_is_named(data, folder):
  path = folder / 'hospitals_split:val_seed:1_pred.csv'
  text = path.read_text()
  rows = len(text.splitlines())
  for content, message in (
    (text + '0\n', f'has {rows + 1} predictions, but hospitals val has {rows}'),
    ('prediction\n' + text, "Line 1 of .* is 'prediction': write one"),
    ('{[]: 1}\n' + text, 'Line 1 of .* write one prediction a line'),
    ("'a'\n" * rows, 'predictions that are no numbers'),
    ('[1, 2]\n' + text, 'predictions that are no numbers'),
  ):
    path.write_text(content)
    with pytest.raises(types.InputError, match=message) as error:
      leaderboard.score(folder, data)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
  path.unlink()
  with pytest.raises(types.InputError, match=r'val_seed:1 .* there is none'):
    leaderboard.score(folder, data)
  assert leaderboard.score(folder, data, only=('seed:0', 'seed:2'))
  with pytest.raises(types.InputError, match='needs two replicates'):
    leaderboard.score(folder, data, only=('seed:0',))
  with pytest.raises(types.InputError, match='is no folder'):
    leaderboard.score(folder / 'other', data)
  with pytest.raises(types.InputError, match='cannot be read'):
    leaderboard.read(folder / 'other.csv')


def test_only_whole_splits_are_written(data, tmp_path):
  part = data.subset('test', fraction=0.5)
  with pytest.raises(types.InputError, match='takes whole splits'):
    leaderboard.write(tmp_path, part, 'seed:0', part.label)
  whole = data.subset('test')
  with pytest.raises(types.InputError, match='1 predictions of the'):
    leaderboard.write(tmp_path, whole, 'seed:0', whole.label[:1])
  with pytest.raises(types.InputError, match='replicate must be one of'):
    leaderboard.write(tmp_path, whole, 'seed:3', whole.label)
