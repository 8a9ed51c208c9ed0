"""Weights & Biases and MLflow by their own clients, which call nobody."""

import pathlib

import matplotlib.pyplot as plt
import pytest

from repjax import report
from repjax.tracking import writers

pytestmark = pytest.mark.filterwarnings('default')  # Of other people's code.


def train(folder, track, steps, *, finishes):
  """What a run writes."""
  run = report.Run(folder, track=writers.several(track))
  with run.held():
    run.start({'seed': 3, 'tx': {'rate': 0.5}})
    for step in steps:
      run.write(step, {'loss': 1 / step, 'test/accuracy': 0.25})
    if finishes:
      figure, axes = plt.subplots(figsize=(2, 1))
      axes.plot([1, 2])
      run.figure('curve', figure)
      plt.close(figure)
      run.finish({'result': {}, 'config': {}})


def test_a_run_in_mlflow_goes_on_as_one(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/runs.db')
  monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'tests')
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / 'mine'
  train(folder, ('mlflow',), (2,), finishes=False)
  client = mlflow.MlflowClient()
  (found,) = client.search_runs(
    [client.get_experiment_by_name('tests').experiment_id]
  )
  assert found.info.status == 'KILLED'
  train(folder, ('mlflow',), (4, 6), finishes=True)
  (found,) = client.search_runs([found.info.experiment_id])
  assert found.info.status == 'FINISHED' and found.info.run_name == 'mine'
  assert found.data.params == {'seed': '3', 'tx.rate': '0.5'}
  history = client.get_metric_history(found.info.run_id, 'loss')
  assert [(x.step, x.value) for x in history] == [
    (2, 0.5),
    (4, 0.25),
    (6, 1 / 6),
  ]
  assert found.data.metrics['test/accuracy'] == 0.25
  (plot,) = client.list_artifacts(found.info.run_id, 'plots')
  assert pathlib.PurePath(plot.path).name == 'curve.png'


def test_a_run_in_wandb_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  folder = tmp_path / 'mine'
  train(folder, ('wandb',), (2, 4), finishes=True)
  (log,) = (folder / 'wandb').glob('offline-run-*/run-*.wandb')
  data = log.read_bytes()
  for word in (b'loss', b'test/accuracy', b'rate', b'curve'):
    assert word in data
  images = list((folder / 'wandb').glob('offline-run-*/files/media/**/*.png'))
  assert len(images) == 1
  assert (folder / 'tracking.json').is_file()
