"""Scores of a table of one's own, from a work directory that was trained."""

import csv

import launching
import numpy as np
import pytest

pytestmark = pytest.mark.slow


def test_scores_are_written_beside_plots(tmp_path):
  rng = np.random.default_rng(0)
  waves = np.sin(np.arange(300) / 4)[:, None] + 0.1 * rng.normal(size=(300, 2))
  waves[270, 1] = 9.0
  start = np.datetime64('2024-01-01T00', 'h')
  with (tmp_path / 'own.csv').open('w', newline='') as file:
    lines = csv.writer(file)
    lines.writerow(['date', 'pump', 'valve', 'site'])
    for i, (a, b) in enumerate(waves):
      lines.writerow([start + i, '' if i == 260 else f'{a:.3f}', b, 'north'])
  workdir = tmp_path / 'run'
  train = (
    'train',
    '--config=configs/anomaly_transformer.py:smoke',
    f'--workdir={workdir}',
    f'--config.data.file={tmp_path / "own.csv"}',
    '--config.window.length=20',
    '--config.window.eval_stride=10',
  )
  code, output = launching.call(*train)
  assert code == 1
  assert "column 'site' holds text" in output
  code, output = launching.call(*train, '--config.data.columns=pump,valve')
  assert code == 0, output
  code, output = launching.call(
    'evaluate', f'--workdir={workdir}', f'--outputs={tmp_path / "out"}'
  )
  assert code == 0, output
  with (tmp_path / 'out' / 'test_scores.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [int(x['row']) for x in rows] == list(range(210, 300))
  assert rows[50]['pump'] == ''
  assert rows[60]['time'] == str((start + 270).astype('datetime64[s]'))
  assert float(rows[60]['valve']) == pytest.approx(9.0)
  assert max(rows, key=lambda x: float(x['error']))['row'] == '270'
  assert rows[60]['error_alarm'] == '1'
  assert (workdir / 'plots' / 'test_scores.png').exists()
  # Without rows behind those that it knew, `predict` scores the test rows too.
  output = tmp_path / 'scores.csv'
  predict = ('predict', f'--workdir={workdir}', f'--outputs={output}')
  code, said = launching.call(*predict, f'--inputs={tmp_path / "own.csv"}')
  assert code == 0 and 'its test rows are scored' in said, said
  assert len(output.read_text().splitlines()) == 91
  with (tmp_path / 'own.csv').open('a', newline='') as file:
    lines = csv.writer(file)
    for i in range(300, 340):
      lines.writerow([start + i, 0.1, 9.0 if i == 320 else 0.2, 'north'])
  code, said = launching.call(*predict, f'--inputs={tmp_path / "own.csv"}')
  assert code == 0, said
  with output.open() as file:
    rows = list(csv.DictReader(file))
  assert [int(x['row']) for x in rows] == list(range(300, 340))
  assert max(rows, key=lambda x: float(x['error']))['row'] == '320'


def test_runs_that_keep_no_scales_predict_no_files(tmp_path):
  rng = np.random.default_rng(0)
  known, test = rng.normal(size=(2, 200, 2)).astype(np.float32)
  label = (np.arange(200) == 150).astype(np.uint8)
  np.savez(tmp_path / 'A-1.npz', train=known, test=test, test_label=label)
  workdir = tmp_path / 'run'
  code, output = launching.call(
    'train',
    '--config=configs/anomaly_transformer.py:smoke',
    f'--workdir={workdir}',
    f'--data_dir={tmp_path}',
    '--config.data.name=smap_msl',
    "--config.data.channels=('A-1',)",
    '--config.window.length=20',
    '--config.window.eval_stride=10',
  )
  assert code == 0, output
  rows = '\n'.join(f'{a},{b}' for a, b in test)
  (tmp_path / 'own.csv').write_text(f'x,y\n{rows}\n')
  code, output = launching.call(
    'predict', f'--workdir={workdir}', f'--inputs={tmp_path / "own.csv"}'
  )
  assert code == 1 and 'has no series.json' in output, output
