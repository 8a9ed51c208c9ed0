"""What a run leaves behind, read back."""

import json
import os
import pathlib
import resource
import threading

from absl import logging
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import plots
from repjax import report
from repjax import types


@pytest.fixture
def run(tmp_path):
  run = report.Run(tmp_path / 'a' / 'run')
  with run.held():
    run.start({'seed': 1})
    yield run


def test_numbers_go_to_one_line_a_step_and_to_tensorboard(run):
  run.write(2, {'loss': jnp.float32(0.5), 'test/accuracy': 0.25})
  run.write(4, {'loss': 0.125})
  made = {'loss': np.float32(0.125), 'each': np.arange(2)}
  run.finish({'result': made, 'config': {}})
  assert run.history() == [
    {'step': 2, 'loss': 0.5, 'test/accuracy': 0.25},
    {'step': 4, 'loss': 0.125},
  ]
  assert run.result()['result'] == {'loss': 0.125, 'each': [0, 1]}
  (events,) = run.workdir.glob('events.out.*')
  data = events.read_bytes()
  assert b'loss' in data
  assert b'test/accuracy' in data


@pytest.mark.parametrize(
  'content', ['{"config": [], "result": {}}', '{"config": {}}', '[]', '{']
)
def test_a_damaged_report_is_none(run, content, caplog):
  (run.workdir / 'report.json').write_text(content)
  assert run.result() is None
  assert 'report.json' in caplog.text


def test_lines_that_hold_no_numbers_are_left_out(run):
  (run.workdir / 'metrics.jsonl').write_text(
    '{"step": 1, "loss": "abc"}\n{"step": 2, "loss": [1]}\n'
    '{"step": 3, "loss": null}\n'
  )
  assert run.history() == [{'step': 3, 'loss': None}]


def test_resuming_forgets_what_is_made_again(run):
  for step in (2, 4, 6):
    run.write(step, {'loss': 1.0 / step})
  with open(run.workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 8, "lo')  # Killed in the middle of a line.
  run.truncate(4)
  assert [row['step'] for row in run.history()] == [2, 4]
  run.write(6, {'loss': 0.0})
  assert [row['step'] for row in run.history()] == [2, 4, 6]


def test_config_tells_what_the_run_was(run):
  config = json.loads((run.workdir / 'config.json').read_text())
  assert config['config'] == {'seed': 1}
  assert config['versions']['jax'].count('.') == 2
  assert len(config['devices']) == 4
  assert {'git', 'command', 'time', 'cores', 'processes'} <= set(config)


def test_the_result_is_written_last_and_whole(run, monkeypatch):
  assert run.result() is None
  run.finish({'result': 1})
  before = (run.workdir / 'report.json').read_text()
  with pytest.raises(TypeError):
    run.finish({'result': object()})
  assert (run.workdir / 'report.json').read_text() == before


def test_a_folder_that_is_a_file_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(types.InputError, match=r'--workdir=.*file'):
    report.Run(tmp_path / 'file')


def test_a_run_of_others_is_read_without_a_trace(tmp_path):
  theirs = report.Run(tmp_path / 'run', read_only=True)
  assert theirs.result() is None and theirs.history() == []
  assert not list(tmp_path.iterdir())


def test_figures_are_saved_as_images(run):
  path = run.figure(
    'loss',
    plots.curves([{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.0}])['loss'],
  )
  assert path.read_bytes().startswith(b'\x89PNG')


def test_a_full_disk_is_named_and_ends_no_thread(run, monkeypatch):
  run.write(1, {'loss': 1.0})
  threads = threading.active_count()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Larger than what is there, smaller than what comes.
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    with pytest.raises(OSError, match=r"File too large: '.*/run/"):
      for step in range(2, 100):
        run.write(step, {'loss': 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert threading.active_count() == threads


def test_a_log_has_no_words_of_libraries_wherever_they_lie(run):
  ours = str(pathlib.Path(report.__file__).parent / 'loop.py')
  checkout = '/home/somebody/repjax'
  logger = logging.get_absl_logger()
  before = list(logger.handlers)
  run.log()
  try:
    for path, level, text in (
      (ours, logging.INFO, 'step 1'),
      (f'{checkout}/configs/studies/sam.py', logging.INFO, 'measured'),
      (f'{checkout}/.venv/lib/site-packages/orbax/a.py', logging.INFO, 'noise'),
      (f'{checkout}/.venv/lib/site-packages/a.py', logging.WARNING, 'beware'),
    ):
      level = logging.converter.absl_to_standard(level)
      record = logger.makeRecord('absl', level, path, 1, text, (), None)
      for handler in set(logger.handlers) - set(before):
        handler.handle(record)
  finally:
    for handler in set(logger.handlers) - set(before):
      logger.removeHandler(handler)
      handler.close()
  log = (run.workdir / 'log.txt').read_text()
  assert [x.split()[-1] for x in log.splitlines()] == [
    '1',
    'measured',
    'beware',
  ]


def test_another_that_looks_at_once_refuses_nothing(tmp_path, monkeypatch):
  unlink = pathlib.Path.unlink

  def second(path, **how):
    if path.name.startswith('.probe'):
      os.remove(path)  # The other one was faster.
    unlink(path, **how)

  monkeypatch.setattr(pathlib.Path, 'unlink', second)
  report.Run(tmp_path)
