"""Who keeps a run's numbers, and what becomes of one that fails."""

import io

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from repjax import report
from repjax import types
from repjax.tracking import run_ids
from repjax.tracking import writers

CONFIG = {'seed': 3, 'tx': {'rate': 0.5, 'name': 'sgd'}, 'splits': ['test']}


class Recorder:
  """A writer that remembers, and fails at what it is told."""

  def __init__(self, fails=''):
    self.calls, self._fails = [], fails

  def _note(self, name, *what):
    if name == self._fails:
      raise RuntimeError('the house\nis closed')
    self.calls.append((name, *what))

  def hyperparameters(self, fields):
    self._note('hyperparameters', fields)

  def scalars(self, step, values):
    self._note('scalars', step, values)

  def image(self, step, name, path):
    self._note('image', step, name, path.name)

  def close(self, *, finished):
    self._note('close', finished)


@pytest.fixture
def replaced(monkeypatch):
  """Puts recorders in the place of clients: name -> recorder."""

  def put(**recorders):
    for name, recorder in recorders.items():
      monkeypatch.setitem(writers._OPEN, name, lambda _, x=recorder: x)
    monkeypatch.setattr(writers, 'check', lambda names: None)

  return put


def run_of_two_steps(folder, track):
  run = report.Run(folder, track=writers.several(track))
  with run.held():
    run.start(CONFIG)
    run.write(2, {'loss': np.float32(0.5)})
    run.write(4, {'test/accuracy': 0.25})
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2])
    run.figure('curve', figure)
    plt.close(figure)
    run.finish({'result': {}, 'config': {}})
  return run


def test_each_writer_gets_all(replaced, tmp_path):
  one, other = Recorder(), Recorder()
  replaced(wandb=one, mlflow=other)
  run_of_two_steps(tmp_path, ('wandb', 'mlflow'))
  assert one.calls == other.calls
  fields = {
    'seed': 3,
    'tx.rate': 0.5,
    'tx.name': 'sgd',
    'splits': "['test']",
  }
  assert one.calls == [
    ('hyperparameters', fields),
    ('scalars', 2, {'loss': 0.5}),
    ('scalars', 4, {'test/accuracy': 0.25}),
    ('image', 4, 'curve', 'curve.png'),
    ('close', True),
  ]
  assert not list(tmp_path.glob('events.*'))


@pytest.mark.parametrize('fails', ['scalars', 'image', 'close'])
def test_a_house_that_closes_ends_no_run(fails, replaced, tmp_path, caplog):
  bad, good = Recorder(fails), Recorder()
  replaced(wandb=bad, mlflow=good)
  run = run_of_two_steps(tmp_path, ('wandb', 'mlflow'))
  assert len(run.history()) == 2 and len(good.calls) == 5
  warned = [x.getMessage() for x in caplog.records if 'wandb' in x.getMessage()]
  (line,) = warned
  assert 'the house is closed' in line and 'goes on' in line


def test_a_run_that_is_stopped_is_not_finished(replaced, tmp_path):
  recorder = Recorder()
  replaced(wandb=recorder)
  run = report.Run(tmp_path, track=writers.several(('wandb',)))
  with run.held():
    run.start(CONFIG)
  assert recorder.calls[-1] == ('close', False)


def test_what_cannot_begin_is_refused(replaced, tmp_path, monkeypatch):
  def closed(workdir):
    raise RuntimeError('no account')

  replaced()
  monkeypatch.setitem(writers._OPEN, 'wandb', closed)
  with pytest.raises(types.InputError, match='--track=wandb: no account'):
    writers.several(('wandb',))(tmp_path)


def test_unknown_and_missing_clients(monkeypatch):
  with pytest.raises(
    types.InputError, match=r"--track must be one of.*'wandbb'"
  ):
    writers.several(('wandbb',))
  monkeypatch.setattr(writers.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(types.InputError, match=r'pip install -e "\.\[mlflow\]"'):
    writers.several(('mlflow',))


def test_tensorboard_gets_numbers_fields_and_figures(tmp_path):
  run_of_two_steps(tmp_path, ('tensorboard',))
  (path,) = tmp_path.glob('events.out.*')
  found = {}
  for record in read(path):
    event = event_pb2.Event.FromString(record)
    for value in event.summary.value:
      found[value.tag] = (event.step, value)
  assert found['loss'][0] == 2 and found['loss'][1].simple_value == 0.5
  assert found['test/accuracy'][1].simple_value == 0.25
  step, value = found['plots/curve']
  assert step == 4
  stored = PIL.Image.open(io.BytesIO(value.image.encoded_image_string))
  assert stored.size == (value.image.width, value.image.height)
  fields = found['_hparams_/session_start_info'][1].metadata.plugin_data.content
  assert b'tx.rate' in fields and b'sgd' in fields


def read(path):
  """Records of an event file, by TensorBoard's own framing."""
  assert record_writer  # It wrote them: length, its check, bytes, their check.
  data = path.read_bytes()
  while data:
    length = int.from_bytes(data[:8], 'little')
    yield data[12 : 12 + length]
    data = data[12 + length + 4 :]


def test_ids_of_several_clients_are_kept(tmp_path):
  assert run_ids.read(tmp_path, 'wandb') == ''
  run_ids.write(tmp_path, 'wandb', 'a')
  run_ids.write(tmp_path, 'mlflow', 'b')
  assert run_ids.read(tmp_path, 'wandb') == 'a'
  assert run_ids.read(tmp_path, 'mlflow') == 'b'
