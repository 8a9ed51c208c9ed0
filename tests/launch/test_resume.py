"""Killed and resumed runs end with the same parameters, bit for bit."""

import json
import pathlib
import random
import signal
import time

import launching
import pytest

pytestmark = pytest.mark.slow

_FLAGS = (
  f'--config={launching.SMOKE}',
  '--config.min_steps=40',
  '--config.run.save_every=5',
  '--config.run.eval_every=20',
  '--config.run.log_every=5',
)


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  """The report of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole')
  code, output = launching.run('train', *_FLAGS, f'--workdir={workdir}')
  assert code == 0, output
  return launching.report(workdir)


def _grows(path):
  """A condition: the file is larger than it is now."""
  size = path.stat().st_size if path.exists() else 0
  return lambda: path.exists() and path.stat().st_size != size


def _run_until(processes, condition, delay):
  """Waits for a condition, then a moment longer; False if they end first."""
  deadline = time.monotonic() + 120
  while not condition():
    if any(p.poll() is not None for p in processes):
      return False
    assert time.monotonic() < deadline, 'nothing was saved in two minutes'
    time.sleep(0.02)
  time.sleep(delay)
  return all(p.poll() is None for p in processes)


def _assert_same_result(workdir, expected):
  actual = launching.report(workdir)
  assert actual['params_crc32'] == expected['params_crc32']
  assert actual['result'] == expected['result']


def test_five_kills_at_random_moments(tmp_path, expected):
  moments = random.Random(0)
  for _ in range(5):
    process = launching.start('train', *_FLAGS, f'--workdir={tmp_path}')
    # From the first step on, so that some kills hit a save.
    moment = moments.uniform(0, 1.0)
    _run_until([process], _grows(tmp_path / 'metrics.jsonl'), moment)
    process.kill()
    process.communicate()
  code, output = launching.run('train', *_FLAGS, f'--workdir={tmp_path}')
  assert code == 0, output
  _assert_same_result(tmp_path, expected)
  losses = [row['step'] for row in _history(tmp_path) if 'loss' in row]
  assert losses == sorted(set(losses)), 'a step was reported twice'


def _history(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_sigterm_saves_and_exits_with_75(tmp_path, expected):
  process = launching.start('train', *_FLAGS, f'--workdir={tmp_path}')
  log = tmp_path / 'metrics.jsonl'
  assert _run_until([process], log.exists, 0.0)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output
  assert 'run the same command again' in output
  code, output = launching.run('train', *_FLAGS, f'--workdir={tmp_path}')
  assert code == 0, output
  assert 'resuming from the checkpoint of step' in output
  _assert_same_result(tmp_path, expected)


def test_two_processes_are_stopped(tmp_path_factory):
  # Long enough that the job is still running when both have agreed to stop.
  job = (*_FLAGS, '--config.min_steps=80', *launching.AT_THE_END)
  whole = tmp_path_factory.mktemp('two_whole')
  codes, outputs = launching.finish(
    launching.start_two('train', *job, f'--workdir={whole}')
  )
  assert codes == [0, 0], outputs
  workdir = tmp_path_factory.mktemp('two')
  processes = launching.start_two('train', *job, f'--workdir={workdir}')
  _run_until(processes, _grows(workdir / 'metrics.jsonl'), 0.0)
  processes[0].send_signal(signal.SIGTERM)
  processes[1].send_signal(signal.SIGTERM)
  codes, outputs = launching.finish(processes)
  assert codes == [75, 75], outputs
  codes, outputs = launching.finish(
    launching.start_two('train', *job, f'--workdir={workdir}')
  )
  assert codes == [0, 0], outputs
  _assert_same_result(workdir, launching.report(whole))
