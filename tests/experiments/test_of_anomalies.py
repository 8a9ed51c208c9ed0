"""Windows cover all points, and a run judges them without a look ahead."""

from matplotlib import figure
import numpy as np
import pytest

from configs import anomaly_transformer as recipe
from repjax import types
from repjax.data.series import series as seriess
from repjax.experiments import anomaly_data
from repjax.experiments import anomaly_figures
from repjax.experiments import of_anomalies
from repjax.metrics import anomaly


def of_lengths(train, validation, test, labels=True):
  """Series whose values are their row numbers."""

  def one(length, part):
    return seriess.from_arrays(
      part,
      np.arange(float(length)),
      labels=(np.arange(length) % 10 == 3) if labels else None,
    )

  return anomaly_data.Data(
    {
      'train': [one(x, 'train') for x in train],
      'validation': [one(x, 'validation') for x in validation],
      'test': [one(x, 'test') for x in test],
    },
    {'train': 0, 'validation': 0, 'test': 0},
    None,
  )


def test_windows_of_a_test_split_cover_it_and_the_validation_rows():
  data = of_lengths((30, 40), (12, 11), (23, 31))
  windows = anomaly_data.eval_windows(
    data, 'test', length=8, stride=1, eval_stride=5
  )
  columns = windows.read(np.arange(len(windows)))
  for entity, length in ((2, 12), (3, 11), (4, 23), (5, 31)):
    starts = columns['position'][columns['entity'] == entity]
    expected = [*range(0, length - 8, 5), length - 8]
    assert starts.tolist() == expected
    for start, values in zip(
      starts, columns['series'][columns['entity'] == entity], strict=True
    ):
      np.testing.assert_array_equal(values[:, 0], np.arange(start, start + 8))
  assert set(columns['entity']) == {2, 3, 4, 5}


def test_points_are_means_over_windows_of_their_own_series():
  data = of_lengths((30,), (12,), (23, 31))
  windows = anomaly_data.eval_windows(
    data, 'test', length=8, stride=1, eval_stride=5
  )
  columns = windows.read(np.arange(len(windows)))
  # A score that tells series and row: all windows of a point agree.
  own = 100 * columns['entity'][:, None] + columns['series'][..., 0]
  found = of_anomalies.points(data, {'score': own}, columns, 'test')
  entity = np.repeat([2, 3], [23, 31])
  position = np.concatenate([np.arange(23), np.arange(31)])
  np.testing.assert_array_equal(found.entity, entity)
  np.testing.assert_array_equal(found.position, position)
  np.testing.assert_allclose(found.scores['score'], 100 * entity + position)
  np.testing.assert_array_equal(found.labels, position % 10 == 3)
  np.testing.assert_array_equal(found.scores['input_norm'], position)
  assert 0.3 < found.scores['random'].mean() < 0.7
  known = of_anomalies.points(data, {'score': own}, columns, 'validation')
  np.testing.assert_allclose(known.scores['score'], 100 + np.arange(12))


def test_thresholds_are_those_of_known_points():
  data = of_lengths((30,), (100,), (100,))
  windows = anomaly_data.eval_windows(
    data, 'test', length=10, stride=1, eval_stride=10
  )
  columns = windows.read(np.arange(len(windows)))
  own = columns['series'][..., 0] + 50 * (columns['entity'] == 2)[:, None]
  known, test = (
    of_anomalies.points(data, {'score': own}, columns, part)
    for part in ('validation', 'test')
  )
  table = of_anomalies.table(known, test, rate=0.1)
  # Validation scores are 0 to 99, test scores 50 to 149: 60 are above 89.
  assert table['score']['alarms'] == 0.6
  assert set(table) == {'score', 'input_norm', 'random'}
  assert table['score'] == anomaly.measure(
    50 + np.arange(100), np.arange(100) % 10 == 3, threshold=89
  )


@pytest.fixture(scope='module')
def experiment():
  return recipe.build(recipe.get_config('smoke'))


def outputs_of(experiment, split):
  """Columns of a split, and outputs that are the norm of each position."""
  batches = list(experiment.evals(split))
  columns = {
    name: np.concatenate([x[name] for x in batches]) for name in batches[0]
  }
  real = columns['mask'] > 0
  columns = {name: x[real] for name, x in columns.items()}
  norm = np.linalg.norm(columns['series'], axis=-1)
  return {'score': norm, 'error': norm, 'discrepancy': norm}, {
    name: x for name, x in columns.items() if x.ndim == 1
  }


def test_baselines_come_with_every_measurement(experiment):
  found = experiment.measure(*outputs_of(experiment, 'test'))
  for name in ('error', 'input_norm', 'random'):
    for measure in ('auroc', 'f1', 'f1_adjusted'):
      assert np.isfinite(found[f'{name}_{measure}'])
  # These outputs are the norm of the input.
  assert found['auroc'] == found['input_norm_auroc'] == found['error_auroc']
  assert found['random_auroc'] == pytest.approx(0.5, abs=0.1)
  assert {'auprc', 'f1_pa20', 'f1_pa_mean', 'f1_events', 'alarms'} <= set(found)


def test_some_windows_have_the_same_measures(experiment):
  outputs, columns = outputs_of(experiment, 'test')
  whole = experiment.measure(outputs, columns)
  first = [{k: x[:5] for k, x in part.items()} for part in (outputs, columns)]
  assert list(experiment.measure(*first)) == list(whole)


def test_a_figure_shows_scores(experiment):
  drawn = experiment.figures('test', *outputs_of(experiment, 'test'))
  assert isinstance(drawn['scores'], figure.Figure)


def write_csv(path, rows, header='time,a,b,wrong'):
  path.write_text('\n'.join([header, *rows]) + '\n')
  return str(path)


def csv_rows(count=300):
  values = np.random.default_rng(0).normal(size=(count, 2))
  start = np.datetime64('2020-01-01', 'h')
  return [
    f'{start + i},{a:.3f},{b:.3f},{int(i == count - 5)}'
    for i, (a, b) in enumerate(values)
  ]


def csv_config(file):
  config = recipe.get_config('smoke')
  config.data.file = file
  config.data.label_column = 'wrong'
  config.window.length = 20
  config.window.eval_stride = 10
  return config


def test_a_table_of_ones_own_is_scored(tmp_path):
  config = csv_config(write_csv(tmp_path / 'own.csv', csv_rows()))
  made = recipe.build(config)
  found = made.measure(*outputs_of(made, 'test'))
  assert 0 <= found['auroc'] <= 1
  config.data.label_column = ''
  config.data.columns = 'a, b'
  made = recipe.build(config)
  assert set(made.measure(*outputs_of(made, 'test'))) == {'error', 'alarms'}


def test_scales_are_those_of_training_rows(tmp_path):
  config = csv_config(write_csv(tmp_path / 'own.csv', csv_rows()))
  parts = anomaly_data.read(config).parts
  values = parts['train'][0].values
  assert len(values) == 180
  np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(values.std(0), 1, atol=1e-5)
  assert abs(parts['test'][0].values.mean(0)).max() > 1e-3


def test_the_table_of_scores_has_a_line_a_point(tmp_path):
  rows = with_cell(csv_rows(), 250, 2, '')
  made = recipe.build(csv_config(write_csv(tmp_path / 'own.csv', rows)))
  outputs, columns = outputs_of(made, 'test')
  header, lines = made.tables('test', outputs, columns)['scores']
  lines = [dict(zip(header, x, strict=True)) for x in lines]
  assert [x['row'] for x in lines] == list(range(210, 300))
  for line in lines:
    time, a, b, label = rows[line['row']].split(',')
    assert str(line['time'])[:13] == time
    assert line['label'] == int(label)
    np.testing.assert_allclose(line['a'], float(a), atol=1e-5)
    assert (line['b'] == '') == (b == '')
    assert np.isfinite([line['score'], line['error'], line['input_norm']]).all()
  found = made.measure(outputs, columns)
  assert np.mean([x['score_alarm'] for x in lines]) == found['alarms']


def with_cell(rows, line, column, text):
  cells = rows[line].split(',')
  cells[column] = text
  return [*rows[:line], ','.join(cells), *rows[line + 1 :]]


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda x: with_cell(x, 7, 1, 'high'), "'high'.*column 'a'|column 'a'"),
    (lambda x: with_cell(x, 7, 1, 'inf'), "column 'a' is infinite in row 7"),
    (lambda x: [x[1], x[0], *x[2:]], 'must rise'),
    (lambda x: [*x[:5], *x[9:]], 'gaps'),
    (
      lambda x: [','.join([*y.split(',')[:2], '1.0', '0']) for y in x],
      "column 'b' is constant",
    ),
    (lambda x: with_cell(x, 7, 3, '2'), 'labels must be 0 or 1'),
    (lambda x: x[:40], 'shorter than a window|no window'),
  ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, change, match):
  config = csv_config(write_csv(tmp_path / 'own.csv', change(csv_rows())))
  with pytest.raises(types.InputError, match=match) as error:
    recipe.build(config)
  assert '\n' not in str(error.value)


def test_missing_cells_are_marked(tmp_path):
  rows = with_cell(csv_rows(), 7, 1, '')
  config = csv_config(write_csv(tmp_path / 'own.csv', rows))
  batch = recipe.build(config).train.batch(0)
  assert {'series', 'observed'} <= set(batch)
  data = anomaly_data.read(config)
  windows = anomaly_data.training_windows(
    data, length=20, stride=1, eval_stride=1
  )
  assert windows.read([0])['observed'][0, 7].tolist() == [0, 1]


def write_channel(folder, name, columns, length=120, num_labels=None):
  rng = np.random.default_rng(len(name))
  labels = np.zeros(num_labels or length, np.uint8)
  labels[50:60] = 1
  np.savez(
    folder / f'{name}.npz',
    train=rng.normal(size=(length, columns)).astype(np.float32),
    test=rng.normal(size=(length, columns)).astype(np.float32),
    test_label=labels,
  )


def channels_config(folder, *channels):
  config = recipe.get_config('smoke')
  config.data.update(name='smap_msl', dir=str(folder), channels=channels)
  config.window.update(length=20, stride=10, eval_stride=10)
  return config


def test_channels_are_series_of_one_set(tmp_path):
  for name in ('A-1', 'B-1'):
    write_channel(tmp_path, name, 3)
  config = channels_config(tmp_path, 'A-1', 'B-1')
  data = anomaly_data.read(config)
  lengths = {k: [len(x) for x in part] for k, part in data.parts.items()}
  assert lengths == {
    'train': [96, 96],
    'validation': [24, 24],
    'test': [120, 120],
  }
  made = recipe.build(config)
  assert np.isfinite(made.measure(*outputs_of(made, 'test'))['auroc'])


def test_series_of_nab_are_divided_each_by_itself(real_data):
  config = channels_config(real_data, 'artificialNoAnomaly', 'realKnownCause')
  config.data.name = 'nab'
  data = anomaly_data.read(config)
  assert [len(x) for x in data.parts.values()] == [12, 12, 12]
  everything = data.everything()
  for place in range(12):
    train, validation, test = (everything[place + 12 * i][1] for i in range(3))
    total = len(train) + len(validation) + len(test)
    starts = [data.begin[place + 12 * i] for i in range(3)]
    assert starts == [0, len(train), len(train) + len(validation)]
    assert len(train) == pytest.approx(0.6 * total, abs=1)
    # Each has the scale of its own training rows; one of them is constant.
    if train.values.any():
      assert train.values.mean() == pytest.approx(0, abs=1e-3)
      assert train.values.std() == pytest.approx(1, abs=1e-3)
  rows = sum(x.labels.sum() for x in data.parts['test'])
  assert 0 < rows < sum(map(len, data.parts['test']))
  config.data.channels = ('nope',)
  with pytest.raises(types.InputError, match="no series or folder 'nope'"):
    anomaly_data.read(config)


def test_bad_channels_are_refused(tmp_path):
  write_channel(tmp_path, 'A-1', 3)
  write_channel(tmp_path, 'C-1', 4)
  write_channel(tmp_path, 'D-1', 3, num_labels=119)
  for channels, match in (
    (('A-1', 'C-1'), 'need the same'),
    (('D-1',), r'labels have shape \(119,\)'),
    (('nope',), '--data_dir'),
    ((), 'names none'),
  ):
    with pytest.raises(types.InputError, match=match):
      recipe.build(channels_config(tmp_path, *channels))


def test_settings_out_of_range_name_their_field():
  for group, field, value in (
    ('window', 'eval_stride', 41),
    ('window', 'length', 3000),
    ('window', 'stride', 0),
    ('alarms', 'rate', 0.0),
    ('anomaly', 'temperature', 0.0),
    ('data', 'name', 'nope'),
  ):
    config = recipe.get_config('smoke')
    config[group][field] = value
    with pytest.raises(types.InputError, match=field):
      recipe.build(config)


def test_maps_have_one_column_a_layer():
  maps = np.full((2, 3, 5, 5), 0.2)
  drawn = anomaly_figures.association_maps(maps, maps, marked=[2])
  assert len(drawn.axes) == 4
  titles = [x.get_title() for x in drawn.axes[:2]]
  assert titles == ['prior, layer 1', 'prior, layer 2']


def test_alarms_of_a_run_are_by_thresholds_of_validation_rows():
  config = recipe.get_config('smoke')
  experiment = recipe.build(config)
  batches = list(experiment.evals('test'))
  columns = {
    name: np.concatenate([x[name] for x in batches]) for name in batches[0]
  }
  columns = {k: x[columns['mask'] > 0] for k, x in columns.items()}
  data = anomaly_data.read(config)
  names = [name for name, _ in data.everything()]
  of_test = np.array([names[i] == 'test' for i in columns['entity']])
  assert 0 < of_test.mean() < 1
  score = np.random.default_rng(0).random(columns['series'].shape[:2])
  score += 100 * of_test[:, None]
  made = experiment.measure({'score': score, 'error': score}, columns)
  # By a threshold of the test's own scores these would be about `rate`.
  assert made['alarms'] == 1.0


def test_scales_of_channels_are_those_of_their_training_rows(tmp_path):
  rng = np.random.default_rng(0)
  known = rng.normal(size=(100, 2)).astype(np.float32)
  known[80:] += 5
  test = (9 + 3 * rng.normal(size=(50, 2))).astype(np.float32)
  np.savez(
    tmp_path / 'A-1.npz',
    train=known,
    test=test,
    test_label=(np.arange(50) == 7).astype(np.uint8),
  )
  data = anomaly_data.read(channels_config(tmp_path, 'A-1'))
  assert data.begin == (0, 80, 0)
  centre, scale = known[:80].mean(0), known[:80].std(0)
  for name, rows in (
    ('train', known[:80]),
    ('validation', known[80:]),
    ('test', test),
  ):
    np.testing.assert_allclose(
      data.parts[name][0].values, (rows - centre) / scale, atol=1e-3
    )


def test_channels_may_lie_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'smap').mkdir()
  write_channel(tmp_path / 'smap', 'A-1', 3)
  data = anomaly_data.read(channels_config('~/smap', 'A-1'))
  assert len(data.parts['test'][0]) == 120


def test_each_detector_has_a_threshold_of_its_own(experiment):
  outputs, columns = outputs_of(experiment, 'test')
  outputs['error'] = 4 * outputs['error']  # Ranks points as the score does.
  header, lines = experiment.tables('test', outputs, columns)['scores']
  lines = [dict(zip(header, x, strict=True)) for x in lines]
  assert {x['score_alarm'] for x in lines} == {0, 1}
  assert all(x['error_alarm'] == x['score_alarm'] for x in lines)


def test_shares_of_series_with_parts_of_their_own_are_refused():
  config = recipe.get_config('smoke')
  config.data.shares = (0.5, 0.2, 0.3)
  with pytest.raises(types.InputError, match=r'config\.data\.shares'):
    recipe.build(config)


def test_rows_that_nobody_measured_are_not_judged():
  rng = np.random.default_rng(0)

  def one(length=2000):
    values = rng.normal(size=length)
    values[::2] = np.nan
    labels = np.arange(length) % 10 == 3  # Of measured rows.
    return seriess.from_arrays('gaps', values, labels=labels)

  parts = {x: [one()] for x in ('train', 'validation', 'test')}
  data = anomaly_data.Data(parts, (0, 0, 0), None)
  windows = anomaly_data.eval_windows(
    data, 'test', length=10, stride=1, eval_stride=10
  )
  columns = windows.read(np.arange(len(windows)))
  # It knows nothing, and a row without numbers has no error.
  score = rng.random((len(windows), 10)) * columns['observed'][..., 0]
  known, test = (
    of_anomalies.points(data, {'score': score}, columns, part)
    for part in ('validation', 'test')
  )
  assert len(test.position) == 2000  # A table has a line of each.
  found = of_anomalies.table(known, test, rate=0.1)['score']
  assert found['auroc'] == pytest.approx(0.5, abs=0.1)  # It was .78.
  assert found == anomaly.measure(
    test.scores['score'][1::2],
    test.labels[1::2],
    threshold=anomaly.threshold(known.scores['score'][1::2], 0.1),
  )
