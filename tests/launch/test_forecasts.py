"""A file of one's own: trained on, forecast, and refused in one line."""

import csv
import json

import launching
import numpy as np
import pytest

SMOKE = 'configs/pyraformer.py:smoke'


def _write(path, rows):
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(rows)
  return path


def _rows(length=240):
  times = np.datetime64('2021-03-01T00:00:00') + 3600 * np.arange(length)
  load = 50 + 10 * np.sin(2 * np.pi * np.arange(length) / 24)
  heat = 5 + np.cos(2 * np.pi * np.arange(length) / 24)
  names = ['time', 'load', 'heat', 'note', 'flat']
  return [
    names,
    *(
      [str(t), f'{x:.3f}', '' if i == 7 else f'{y:.3f}', 'fine', '1']
      for i, (t, x, y) in enumerate(zip(times, load, heat, strict=True))
    ),
  ]


def _train(file, workdir, *flags):
  return launching.call(
    'train',
    f'--config={SMOKE}',
    f'--workdir={workdir}',
    f'--config.data.file={file}',
    *flags,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('series')
  file = _write(folder / 'my.csv', _rows())
  code, output = _train(
    file, folder / 'run', '--config.data.columns=load, heat'
  )
  assert code == 0, output
  return folder


def _forecasts(folder, split):
  code, output = launching.call(
    'evaluate',
    f'--workdir={folder / "run"}',
    f'--split={split}',
    f'--outputs={folder / "out"}',
  )
  assert code == 0, output
  with (folder / 'out' / f'{split}_forecasts.csv').open() as file:
    rows = list(csv.DictReader(file))
  line = next(x for x in output.splitlines() if x.startswith('{'))
  return rows, json.loads(line)


def test_what_is_not_measured_yet_is_forecast(trained):
  rows, values = _forecasts(trained, 'future')
  assert [int(x['row']) for x in rows] == [*range(240, 248)]
  assert rows[0]['time'] == '2021-03-11T00:00:00'
  assert all(x['load'] == '' for x in rows)
  assert all(np.isfinite(float(x['load_forecast'])) for x in rows)
  assert set(values) == {'step', 'split'}


def test_what_comes_behind_a_newer_file_is_forecast(trained):
  newer = _write(trained / 'newer.csv', _rows(260))
  output = trained / 'newer-forecasts.csv'
  code, said = launching.call(
    'predict',
    f'--workdir={trained / "run"}',
    f'--inputs={newer}',
    f'--outputs={output}',
  )
  assert code == 0, said
  with output.open() as file:
    rows = list(csv.DictReader(file))
  assert [int(x['row']) for x in rows] == [*range(260, 268)]
  assert rows[0]['time'] == '2021-03-11T20:00:00'
  code, said = launching.call(
    'evaluate',
    f'--workdir={trained / "run"}',
    '--config=configs/pyraformer.py:smoke',
    f'--config.data.file={newer}',
    '--split=future',
    f'--outputs={trained / "newer"}',
  )
  assert code == 0, said
  with (trained / 'newer' / 'future_forecasts.csv').open() as file:
    assert list(csv.DictReader(file)) == rows
  code, said = launching.call(
    'predict',
    f'--workdir={trained / "run"}',
    f'--inputs={trained / "none.csv"}',
  )
  assert code == 1 and 'There is no file' in said.splitlines()[-1]


def test_the_rows_of_a_split_are_forecast_once_beside_the_truth(trained):
  rows, values = _forecasts(trained, 'test')
  assert len({x['row'] for x in rows}) == len(rows)
  truth = {i: x for i, x in enumerate(_rows()[1:])}
  errors = []
  for x in rows:
    assert float(x['load']) == pytest.approx(
      float(truth[int(x['row'])][1]), abs=2e-3
    )
    assert x['time'] == truth[int(x['row'])][0]
    errors.append(float(x['load_forecast']) - float(x['load']))
  # A few steps: in the units of the file, and not far off.
  assert np.mean(np.square(errors)) < 400
  assert {'mse', 'nd', 'linear_mse', 'seasonal_mse'} <= set(values)


def test_rows_that_came_since_are_a_split_and_change_no_other(trained):
  _, before = _forecasts(trained, 'test')
  grown = _rows(300)
  _write(trained / 'my.csv', grown)
  try:
    _, after = _forecasts(trained, 'test')
    rows, _ = _forecasts(trained, 'new')
    grown[0][1] = 'burden'
    _write(trained / 'my.csv', grown)
    code, output = launching.call('evaluate', f'--workdir={trained / "run"}')
  finally:
    _write(trained / 'my.csv', _rows())
  assert after == before
  assert {int(x['row']) for x in rows} <= set(range(240, 300))
  assert min(int(x['row']) for x in rows) == 240
  assert code == 1
  lines = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert len(lines) == 1
  assert "no column 'load'; it has time, burden, heat" in lines[0]


def _changed(name):
  rows = _rows()
  if name == 'gap':
    del rows[100]
  elif name == 'unsorted':
    rows[100], rows[101] = rows[101], rows[100]
  elif name == 'short':
    rows = rows[:60]
  return rows


@pytest.mark.parametrize(
  ('name', 'flags', 'says'),
  [
    ('text', (), "column 'note' holds text ('fine' in line 2)"),
    ('flat', ('--config.data.columns=load,flat',), "'flat' is constant"),
    ('gap', ('--config.data.columns=load',), '--config.data.gaps=fill'),
    ('unsorted', ('--config.data.columns=load',), 'sort the rows by time'),
    ('none', ('--config.data.columns=lod',), "no column 'lod'; it has"),
    ('short', ('--config.data.columns=load',), 'no window of length=24'),
  ],
)
def test_a_file_that_cannot_be_forecast_is_one_line(
  name, flags, says, tmp_path
):
  file = _write(tmp_path / 'my.csv', _changed(name))
  code, output = _train(file, tmp_path / 'run', *flags)
  assert code == 1
  lines = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert len(lines) == 1
  assert says in lines[0]


def test_outputs_of_what_has_none_are_refused(tmp_path):
  workdir = tmp_path / 'run'
  code, output = launching.call(
    'train', '--config=configs/sam.py:smoke', f'--workdir={workdir}'
  )
  assert code == 0, output
  code, output = launching.call(
    'evaluate', f'--workdir={workdir}', f'--outputs={tmp_path / "out"}'
  )
  assert code == 1
  assert 'no predictions to write as CSV' in output
