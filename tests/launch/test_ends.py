"""How launchers end: by signals, on a full disk, with threads that hang."""

import gc
import os
import pathlib
import signal
import sys
import time

import jax
import launching
import pytest

from launch.lib import process
from repjax import files


def _waits_for(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.fixture
def handlers(monkeypatch):
  """Takes back handlers of signals; ending raises SystemExit."""
  before = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)}
  monkeypatch.setattr(os, '_exit', sys.exit)
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_a_second_one_ends(number, handlers, capsys):
  asked = []
  process.on_signal(asked.append)
  os.kill(os.getpid(), number)
  assert asked == [number.name]
  with pytest.raises(SystemExit) as ended:
    os.kill(os.getpid(), signal.SIGTERM)
  assert ended.value.code == 75
  assert 'STOPPED: SIGTERM again' in capsys.readouterr().err
  assert len(asked) == 1


def test_who_saves_nothing_ends_at_the_first_signal(handlers):
  process.begin()
  with pytest.raises(process.Stopped, match='SIGINT'):
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_garbage_is_collected_is_not_lost(handlers):
  left = [signal.SIGTERM]

  def collecting(phase, info):
    """What is raised in here, Python swallows."""
    del phase, info
    if left:
      os.kill(os.getpid(), left.pop())

  process.begin()
  gc.callbacks.append(collecting)
  try:
    with pytest.raises(process.Stopped, match='SIGTERM'):
      gc.collect()
      time.sleep(20)
  finally:
    gc.callbacks.remove(collecting)
  assert not left
  # It came once: nothing comes after it, which would end all at once.
  time.sleep(3 * process._SOON)


# A recipe in whose `build` garbage is collected when a signal comes.
_COLLECTS = """
import gc, os, signal, time
from configs.vit import *

def build(config):
  def collecting(phase, info):
    gc.callbacks.remove(collecting)
    os.kill(os.getpid(), signal.SIGTERM)

  gc.callbacks.append(collecting)
  gc.collect()
  time.sleep(20)
"""


def test_launchers_lose_no_signal_while_garbage_is_collected(tmp_path):
  path = tmp_path / 'collects.py'
  path.write_text(_COLLECTS)
  code, output = launching.call(
    'train', f'--config={path}:smoke', f'--workdir={tmp_path / "run"}'
  )
  assert code == 75
  assert output.endswith('STOPPED: SIGTERM; run the same command again.\n')
  assert 'Traceback' not in output


@pytest.mark.parametrize(
  ('index', 'joined', 'waits'),
  [(0, True, True), (1, True, False), (0, False, False)],
)
def test_process_0_of_a_job_is_the_last_to_end(
  index, joined, waits, handlers, monkeypatch
):
  # The others abort without their own line when it is gone.
  waited = []
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: joined)
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  monkeypatch.setattr(process.time, 'sleep', waited.append)
  with pytest.raises(SystemExit) as ended:
    process.end_of(SystemExit(1))
  assert ended.value.code == 1
  assert bool(waited) == waits


# In processes of their own.

# A recipe that hangs: in its thread, after it has been refused or not.
_HANGS = """
import pathlib, threading, time
from configs.vit import *
from repjax import types

def build(config):
  threading.Thread(target=time.sleep, args=[600]).start()
  pathlib.Path({ready!r}).touch()
  {then}
"""


def _recipe(tmp_path, then):
  path = tmp_path / 'hangs.py'
  path.write_text(_HANGS.format(ready=str(tmp_path / 'ready'), then=then))
  return f'--config={path}:smoke'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('then', 'says'),
  [
    ('raise types.InputError("refused")', 'ERROR: refused'),
    ('raise OSError("full")', 'ERROR: full'),
    ('raise KeyError("bug")', "KeyError: 'bug'"),
  ],
)
def test_a_thread_that_hangs_keeps_no_process(tmp_path, then, says):
  code, output = launching.run('train', _recipe(tmp_path, then), timeout=60)
  assert code == (74 if 'OSError' in then else 1), output
  assert says in output


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('launcher', ['train', 'sweep', 'evaluate'])
def test_signals_end_what_has_nothing_to_save(tmp_path, launcher, number):
  config = _recipe(tmp_path, 'time.sleep(600)')
  flags = [config, f'--workdir={tmp_path / "run"}']
  if launcher == 'sweep':
    flags.append('--space=tx.learning_rate=0.1')
  if launcher == 'evaluate':
    folder = tmp_path / 'run'
    code, output = launching.run(
      'train', f'--config={launching.SMOKE}', f'--workdir={folder}'
    )
    assert code == 0, output
  one = launching.start(launcher, *flags)
  _waits_for((tmp_path / 'ready').exists)
  one.send_signal(number)
  output, _ = one.communicate(timeout=60)
  assert one.returncode == 75, output
  assert 'Traceback' not in output
  assert output.count('STOPPED: ') == 1


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
  'flags',
  [
    ['audit', '--trials=1000'],
    ['benchmark', '--only=loop', '--rounds=1000'],
    ['reproduce', '--papers=mixup', '--out={}/results'],
  ],
)
def test_signals_end_every_launcher(tmp_path, flags, number):
  launcher, *flags = [x.format(tmp_path) for x in flags]
  one = launching.start(launcher, *flags)
  lines = iter(one.stdout.readline, '')
  assert any('device(s)' in line for line in lines)
  one.send_signal(number)
  time.sleep(0.1)
  one.send_signal(number)  # As somebody who is in a hurry does.
  output, _ = one.communicate(timeout=60)
  assert one.returncode == 75, output
  assert 'Traceback' not in output
  assert 'STOPPED: ' in output


@pytest.mark.slow
def test_trials_die_with_a_killed_sweep(tmp_path):
  # The sweep itself looks at an experiment, too, and may fail to.
  config = _recipe(tmp_path, 'time.sleep(600)')
  path, pid = tmp_path / 'hangs.py', tmp_path / 'pid'
  path.write_text(
    'import os, pathlib, sys\n'
    + path.read_text().replace(
      'def build(config):\n',
      'def build(config):\n'
      '  assert "--space" not in " ".join(sys.argv)\n'
      f'  pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n',
    )
  )
  flags = [config, '--space=tx.learning_rate=0.1', '--metric=test/accuracy']
  flags.append(f'--workdir={tmp_path / "sweep"}')
  sweep = launching.start('sweep', *flags)
  _waits_for((tmp_path / 'ready').exists)
  trial = int(pid.read_text())
  sweep.kill()
  sweep.communicate()
  _waits_for(lambda: not pathlib.Path(f'/proc/{trial}').exists(), 10)
  # And a new one takes the trial over.
  (tmp_path / 'ready').unlink()
  sweep = launching.start('sweep', *flags)
  _waits_for((tmp_path / 'ready').exists)
  sweep.terminate()
  time.sleep(0.5)
  sweep.terminate()
  output, _ = sweep.communicate(timeout=60)
  assert sweep.returncode == 75, output
  assert 'Traceback' not in output


@pytest.mark.slow
def test_worker_processes_die_with_a_killed_run(tmp_path):
  run = launching.start(
    'train',
    f'--config={launching.SMOKE}',
    f'--workdir={tmp_path}',
    '--config.data.num_workers=2',
    '--config.min_steps=100000',
  )
  _waits_for((tmp_path / 'metrics.jsonl').exists)
  children = [
    pathlib.Path('/proc', x)
    for task in pathlib.Path(f'/proc/{run.pid}/task').glob('*/children')
    for x in task.read_text().split()
  ]
  assert len(children) >= 2
  run.kill()
  run.wait()
  _waits_for(lambda: not any(x.exists() for x in children), 10)
  run.communicate()


@pytest.mark.slow
def test_all_processes_of_a_job_end_where_another_run_is(tmp_path):
  with files.locked(tmp_path, '--workdir'):
    processes = launching.start_two(
      'train', f'--config={launching.SMOKE}', f'--workdir={tmp_path}'
    )
    codes, outputs = launching.finish(processes, timeout=60)
  assert codes == [1, 1], outputs
  assert f'process {os.getpid()}' in outputs[0]
  assert 'ERROR: --workdir' in outputs[1]
