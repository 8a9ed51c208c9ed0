"""A file that has grown is what a run saw, and what came since is apart."""

import json

import numpy as np
import pytest

from configs import anomaly_transformer
from configs import pyraformer
from repjax import types
from repjax.data.series import series as seriess
from repjax.data.series import splits
from repjax.experiments import anomaly_data
from repjax.experiments import kept_series
from repjax.experiments import of_series
from repjax.methods import forecasting


def written(path, count, *, columns=('a', 'b'), jump=0.0):
  """A file of so many rows; those behind row 300 are higher by `jump`."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(1000, len(columns))).cumsum(0)
  values[300:] += jump
  times = np.datetime64('2021-03-01T00:00:00') + 3600 * np.arange(count)
  lines = [
    ','.join([str(t), *(f'{x:.4f}' for x in row)])
    for t, row in zip(times, values, strict=False)
  ]
  path.write_text('\n'.join([','.join(['time', *columns]), *lines]) + '\n')
  return path


def config_of(recipe, path):
  config = recipe.get_config('smoke')
  config.data.file = str(path)
  if recipe is anomaly_transformer:
    config.window.update(length=20, eval_stride=10)
  return config


def kept(recipe, path, folder):
  """What a run of a recipe on a file leaves in its folder."""
  made = recipe.build(config_of(recipe, path))
  made.companion.begin(folder, 0)
  return str(folder / kept_series.FILE)


def test_series_of_a_run_come_back_to_the_last_bit(tmp_path):
  rng = np.random.default_rng(1)
  series = seriess.from_arrays('it', rng.normal(size=(50, 3)) * 7 + 1e3)
  (made,) = kept_series.fit([series], splits.by_share)
  kept_series.companion([made]).begin(tmp_path, 0)
  longer = seriess.from_arrays(
    'it', np.concatenate([series.values, 1e6 * np.ones((30, 3))])
  )
  (back,) = kept_series.fit(
    [longer], splits.by_share, kept=tmp_path / kept_series.FILE
  )
  np.testing.assert_array_equal(back.centre, made.centre)
  np.testing.assert_array_equal(back.scale, made.scale)
  assert back.borders == made.borders == splits.by_share(50)
  assert kept_series.new_rows([longer], [back]) == [(50, 80)]
  assert kept_series.fit([longer], splits.by_share)[0].borders != made.borders


def test_a_file_that_lost_its_first_rows_is_refused(tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(pyraformer, path)
  config.run.fitted = kept(pyraformer, path, tmp_path)
  header, *lines = written(path, 400).read_text().splitlines()
  path.write_text('\n'.join([header, *lines[24:]]) + '\n')
  with pytest.raises(types.InputError, match='from its beginning'):
    of_series.read(config)
  # Runs of before kept no time, and go on.
  file = tmp_path / kept_series.FILE
  said = json.loads(file.read_text())
  for one in said['series']:
    del one['begins']
  file.write_text(json.dumps(said))
  of_series.read(config)
  written(path, 300)
  pyraformer.build(config_of(pyraformer, path)).companion.begin(tmp_path, 1)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_forecasts_of_a_grown_file_are_judged_by_the_same_windows(
  split, tmp_path
):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(pyraformer, path)
  before = of_series.read(config).sources(split)
  config.run.fitted = kept(pyraformer, path, tmp_path)
  written(path, 400, jump=50.0)
  after = of_series.read(config).sources(split)
  assert len(after) == len(before)
  rows = np.arange(len(before))
  for name, x in before.read(rows).items():
    np.testing.assert_array_equal(after.read(rows)[name], x, err_msg=name)
  config.run.fitted = ''
  assert len(of_series.read(config).sources(split)) != len(before)


def test_rows_that_came_since_are_forecast_as_a_split_of_their_own(tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(pyraformer, path)
  config.run.fitted = kept(pyraformer, path, tmp_path)
  with pytest.raises(types.InputError, match='none behind the 300 that it'):
    of_series.read(config).sources('new')
  written(path, 400)
  source = of_series.read(config).sources('new')
  found = source.read(np.arange(len(source)))
  length, horizon = config.data.length, config.data.horizon
  # What is read may be known rows, what is forecast is none of them.
  assert found['position'].min() == 300 - length
  assert 376 <= found['position'].max() + length + horizon <= 400
  future = of_series.read(config).sources('future')
  assert future.read(np.array([0]))['position'] == 400 - length


def test_anomalies_of_a_grown_file_are_judged_by_the_same_points(tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(anomaly_transformer, path)
  before = anomaly_data.read(config)
  config.run.fitted = kept(anomaly_transformer, path, tmp_path)
  written(path, 400, jump=50.0)
  after = anomaly_data.read(config)
  assert set(after.parts) == {*before.parts, 'new'}
  for name, (series,) in before.parts.items():
    np.testing.assert_array_equal(after.parts[name][0].values, series.values)
  assert len(after.parts['new'][0]) == 100
  assert after.begin == (*before.begin, 300)
  made = anomaly_transformer.build(config)
  batches = list(made.evals('new'))
  columns = {
    name: np.concatenate([x[name] for x in batches])[
      np.concatenate([x['mask'] for x in batches]) > 0
    ]
    for name in ('entity', 'position')
  }
  norm = np.ones((len(columns['entity']), 20))
  outputs = {'score': norm, 'error': norm}
  _, lines = made.tables('new', outputs, columns)['scores']
  assert [x[1] for x in lines] == list(range(300, 400))
  config.run.fitted = ''
  assert set(anomaly_data.read(config).parts) == set(before.parts)


@pytest.mark.parametrize('recipe', [pyraformer, anomaly_transformer])
@pytest.mark.parametrize(
  ('count', 'columns', 'says'),
  [
    (300, ('a', 'c'), 'has the columns a, c, the run was trained on a, b'),
    (300, ('b', 'a'), 'has the columns b, a, the run was trained on a, b'),
    (300, ('a', 'b', 'c'), 'has the columns a, b, c, the run'),
    (299, ('a', 'b'), '299 rows, fewer than the 300 that the run knew'),
  ],
)
def test_another_file_is_refused_in_one_line(
  recipe, count, columns, says, tmp_path
):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(recipe, path)
  config.run.fitted = kept(recipe, path, tmp_path)
  written(path, count, columns=columns)
  with pytest.raises(types.InputError, match=says) as error:
    recipe.build(config)
  assert '\n' not in str(error.value)


def test_a_run_does_not_go_on_with_a_file_that_has_grown(tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  file = kept(pyraformer, path, tmp_path)
  made = pyraformer.build(config_of(pyraformer, path))
  made.companion.begin(tmp_path, 4)  # Nothing has changed.
  written(path, 400)
  made = pyraformer.build(config_of(pyraformer, path))
  with pytest.raises(types.InputError, match='was begun with other series'):
    made.companion.begin(tmp_path, 4)
  with open(file) as kept_file:
    (one,) = json.load(kept_file)['series']
  assert one['num_rows'] == 300
  made.companion.begin(tmp_path, 0)  # A new run, in a folder that was left.
  made.companion.begin(None, 0)


@pytest.mark.parametrize(
  'content',
  ['{', '{}', '{"series": [{"columns": ["a", "b"]}]}', '{"series": 3}'],
)
def test_a_damaged_file_is_refused_in_one_line(content, tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  config = config_of(pyraformer, path)
  config.run.fitted = str(tmp_path / kept_series.FILE)
  (tmp_path / kept_series.FILE).write_text(content)
  with pytest.raises(types.InputError, match=r'series\.json') as error:
    of_series.read(config)
  assert '\n' not in str(error.value)


def test_a_gap_that_came_later_changes_no_network(tmp_path):
  path = written(tmp_path / 'my.csv', 300)
  fitted = kept(pyraformer, path, tmp_path)
  lines = written(path, 320).read_text().splitlines()
  time, _, other = lines[310].split(',')
  lines[310] = f'{time},,{other}'
  path.write_text('\n'.join(lines) + '\n')
  config = config_of(pyraformer, path)
  anew = of_series.read(config)
  config.run.fitted = fitted
  data = of_series.read(config)
  assert data.inputs is forecasting.past
  assert anew.inputs is forecasting.past_with_gaps


def test_all_processes_refuse_a_file_that_has_grown(tmp_path, monkeypatch):
  path = written(tmp_path / 'my.csv', 300)
  file = kept(pyraformer, path, tmp_path)
  made = pyraformer.build(config_of(pyraformer, written(path, 400)))
  monkeypatch.setattr(kept_series.jax, 'process_index', lambda: 1)
  with pytest.raises(types.InputError, match='was begun with other series'):
    made.companion.begin(tmp_path, 4)
  made.companion.begin(tmp_path, 0)  # Process 0 writes.
  with open(file) as kept_file:
    assert json.load(kept_file)['series'][0]['num_rows'] == 300
