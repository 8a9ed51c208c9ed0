"""Sweeps: trials that end in every way, resumed, at a time, and real ones."""

import csv
import json
import sys
import threading
import time

import launching
import numpy as np
import pytest

from launch.lib import executors
from launch.lib import space as spaces
from launch.lib import trials
from repjax import types

pytestmark = pytest.mark.slow

# Stands in for launch.train: the rate decides how a trial ends.
_TRAIN = """
import json, pathlib, signal, sys, time
flags = dict(x.lstrip('-').split('=', 1) for x in sys.argv[1:])
folder = pathlib.Path(flags['workdir'])
rate = float(flags['config.tx.rate'])
started = time.time()
with open(folder / 'runs', 'a') as file:
  file.write('x')
print('rate', rate, flush=True)
if rate == 1.0:  # As training that takes its time.
  signal.signal(signal.SIGTERM, lambda *args: sys.exit(75))
  time.sleep(30)
if rate == 3.0:
  print('ERROR: loss is nan at step 7\\n')
  sys.exit(3)
if rate == 7.0:  # As what trains nothing.
  sys.exit(0)
if rate == 75.0 and not (folder / 'half').exists():
  (folder / 'half').touch()
  sys.exit(75)
time.sleep(0.1)
result = {'test/accuracy': 1 - abs(rate - 0.2), 'test/loss': rate}
report = {'result': result, 'seconds': time.time() - started}
report |= {'config': flags, 'times': [started, time.time()]}
(folder / 'report.json').write_text(json.dumps(report))
"""


@pytest.fixture(autouse=True)
def fake_train(monkeypatch, tmp_path):
  path = tmp_path / 'train.py'
  path.write_text(_TRAIN)
  monkeypatch.setattr(trials, 'TRAIN', (sys.executable, '-S', str(path)))


def sweep_of(tmp_path, space, **changes):
  settings = dict(
    workdir=tmp_path / 'sweep',
    file='configs/sam.py',
    preset='smoke',
    overrides={'epochs': 2.0},
    space=spaces.parse(space),
    metric='test/accuracy',
    mode='max',
    train_flags=('--nothing=1',),
  )
  return trials.Sweep(**{**settings, **changes})


def run(sweep, *, jobs=1, stop=None, candidates=None, until=None):
  if candidates is None:
    candidates = spaces.grid(sweep.space)
  return trials.run(
    sweep,
    candidates,
    executors.local(jobs),
    stop or threading.Event(),
    until=until,
  )


def table(sweep):
  with open(sweep.workdir / 'summary.csv') as file:
    return list(csv.DictReader(file))


def test_a_grid_is_run_and_summed_up(tmp_path, capsys):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,0.2,0.5;tx.name=a,b')
  found = run(sweep, jobs=3)
  assert [x.status for x in found] == ['finished'] * 6
  rows = table(sweep)
  assert [x['test/accuracy'] for x in rows[:2]] == ['1', '1']
  assert [x['tx.name'] for x in rows[:2]] == ['a', 'b']
  text = (sweep.workdir / 'summary.md').read_text()
  assert 'Best: trials/002 (tx.rate=0.2, tx.name=a)' in text
  assert text in capsys.readouterr().out
  for name in ('tx.rate', 'tx.name'):
    assert (sweep.workdir / 'plots' / f'{name}.png').stat().st_size > 1000
  report = trials.report(sweep.workdir / 'trials' / '003')
  assert report['config']['config.tx.name'] == 'b'
  assert report['config']['config.epochs'] == '2.0'
  assert report['config']['nothing'] == '1'
  # No more than three at a time, and not one after the other.
  times = [trials.report(x)['times'] for x in _folders(sweep)]
  most = max(sum(a <= t <= b for a, b in times) for t, _ in times)
  assert 2 <= most <= 3
  # Where less is better, another one is best.
  less = sweep._replace(metric='test/loss', mode='min')
  assert trials.summarize(
    less,
    [
      x._replace(metric=trials.metric_of(less, trials.report(f)))
      for x, f in zip(found, _folders(sweep), strict=True)
    ],
  ).fields == {'tx.rate': '0.1', 'tx.name': 'a'}


def _folders(sweep):
  return sorted((sweep.workdir / 'trials').iterdir())


def test_a_failed_and_a_stopped_trial_do_not_lose_the_others(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,3,75,0.3')
  with pytest.raises(types.PreemptedError, match='same command'):
    run(sweep)
  rows = {x['tx.rate']: x for x in table(sweep)}
  assert rows['0.1']['status'] == rows['0.3']['status'] == 'finished'
  assert rows['75']['status'] == 'stopped'
  assert rows['3']['status'] == 'failed (3): ERROR: loss is nan at step 7'
  # Again: what is finished is kept, the stopped one goes on, and now the
  # failed one alone decides how the sweep ends.
  with pytest.raises(SystemExit) as ended:
    run(sweep)
  assert ended.value.code == 3
  rows = {x['tx.rate']: x for x in table(sweep)}
  assert rows['75']['status'] == 'finished'
  runs = {x['trial']: x for x in table(sweep)}
  for name in runs:
    made = (sweep.workdir / 'trials' / name / 'runs').read_text()
    assert made == ('x' if runs[name]['tx.rate'] in ('0.1', '0.3') else 'xx')


def test_a_trial_that_leaves_no_report_has_failed(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,7')
  with pytest.raises(SystemExit) as ended:
    run(sweep)
  assert ended.value.code == 1
  assert table(sweep)[1]['status'].startswith('failed (0)')


def test_stopping_the_sweep_stops_its_trials(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,1,0.3')
  stop = threading.Event()

  def stop_when_it_runs():
    log = sweep.workdir / 'trials' / '001' / 'output.txt'
    while 'rate' not in (log.read_text() if log.exists() else ''):
      time.sleep(0.02)
    time.sleep(0.2)
    stop.set()

  thread = threading.Thread(target=stop_when_it_runs)
  thread.start()
  started = time.monotonic()
  with pytest.raises(types.PreemptedError):
    run(sweep, stop=stop)
  thread.join()
  assert time.monotonic() - started < 20
  status = {x['tx.rate']: x['status'] for x in table(sweep)}
  assert status == {'0.1': 'finished', '1': 'stopped', '0.3': 'not started'}


def test_a_reached_metric_starts_no_more(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.5,0.2,0.3')
  found = run(sweep, until=0.95)
  assert [x.status for x in found] == ['finished', 'finished', 'not started']
  # Nor does the same command, once more.
  found = run(sweep, until=0.95)
  assert [x.status for x in found] == ['finished', 'finished', 'not started']


def test_trials_that_run_when_a_metric_is_reached_end_well(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.2,0.3,0.5,0.1')
  found = run(sweep, jobs=2, until=0.95)
  status = [x.status for x in found]
  assert status[:2] == ['finished', 'finished']
  assert 'stopped' not in status and status[-1] == 'not started'


def test_a_sweep_is_of_the_files_that_it_began_with(tmp_path):
  own = {'data.name': 'csv:label=stars'}
  sweep = sweep_of(
    tmp_path, 'tx.rate=0.1', overrides=own, train_flags=('--data_dir=/a',)
  )
  run(sweep)
  with pytest.raises(types.InputError, match=r'/a.*/b'):
    run(sweep._replace(train_flags=('--data_dir=/b',)))
  # One from before kept no place.
  path = sweep.workdir / 'sweep.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'more': []}))
  run(sweep._replace(train_flags=('--data_dir=/b',)))
  # A standard set is the same wherever it lies.
  usual = sweep._replace(overrides={}, workdir=tmp_path / 'usual')
  run(usual)
  run(usual._replace(train_flags=('--data_dir=/b',)))


def test_a_preset_of_ones_own_files_is_of_the_place_it_began_with(tmp_path):
  sweep = sweep_of(
    *(tmp_path, 'tx.rate=0.1'),
    **dict(file='configs/shapley.py', preset='adult', overrides={}),
    train_flags=('--data_dir=/a',),
  )
  run(sweep)
  with pytest.raises(types.InputError, match=r'/a.*/b'):
    run(sweep._replace(train_flags=('--data_dir=/b',)))


def test_the_folder_of_another_sweep_is_refused(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1')
  run(sweep)
  for changed, says in (
    (sweep_of(tmp_path, 'tx.rate=0.1,0.2'), 'space.tx.rate'),
    (sweep._replace(overrides={'epochs': 3.0}), 'epochs: 2.0 -> 3.0'),
    (sweep._replace(preset='small'), 'preset: smoke -> small'),
  ):
    with pytest.raises(types.InputError, match=says):
      run(changed)
  with pytest.raises(types.InputError, match=r'test/accuracy, test/loss'):
    run(sweep._replace(metric='test/acc'))


def test_two_sweeps_in_one_folder_and_damaged_files(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,0.2')
  with (
    trials.held(sweep.workdir),
    pytest.raises(types.InputError, match=r'--workdir=.*is in use by'),
  ):
    run(sweep)
  run(sweep)
  # A trial whose report is damaged runs again; the sweep is not guessed.
  report = sweep.workdir / 'trials' / '001' / 'report.json'
  report.write_bytes(report.read_bytes()[:20])
  found = run(sweep)
  assert [x.status for x in found] == ['finished'] * 2
  made = [(x / 'runs').read_text() for x in _folders(sweep)]
  assert made == ['x', 'xx']
  (sweep.workdir / 'sweep.json').write_text('[]')
  with pytest.raises(types.InputError, match=r'sweep\.json is damaged'):
    run(sweep)


def test_a_trial_whose_metric_has_no_value_is_the_last(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,0.2')
  run(sweep)
  path = sweep.workdir / 'trials' / '001' / 'report.json'
  path.write_text('{"result": {"test/accuracy": null}}')
  found = run(sweep)
  assert np.isnan(found[1].metric)
  assert [x['trial'] for x in table(sweep)] == ['000', '001']


def test_paths_of_trials_are_those_of_the_sweep(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code = 'import os, configs.presets; print(os.getcwd())'
  job = executors.Job(
    'one', (sys.executable, '-c', code), tmp_path / 'output.txt'
  )
  ended = executors.local(1)([job], threading.Event(), lambda *_: None)
  assert ended == {'one': 0}
  assert job.log.read_text().strip() == str(tmp_path)


def test_a_random_search_may_grow(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=log(0.1,0.9)')
  draws = [{'tx.rate': '0.3'}, {'tx.rate': '0.25'}, {'tx.rate': '0.2'}]
  run(sweep, candidates=draws[:2])
  found = run(sweep, candidates=draws)
  assert [x.status for x in found] == ['finished'] * 3
  for folder in _folders(sweep):
    assert (folder / 'runs').read_text() == 'x'
  with pytest.raises(types.InputError, match='other trials'):
    run(sweep, candidates=draws[::-1])


@pytest.mark.parametrize('cluster', ['debug', 'local'])
def test_jobs_of_submitit(tmp_path, cluster):
  pytest.importorskip('submitit')
  sweep = sweep_of(tmp_path, 'tx.rate=0.1,3')
  execute = executors.slurm(
    tmp_path / 'slurm',
    num_parallel=2,
    parameters=dict(timeout_min=5),
    cluster=cluster,
  )
  with pytest.raises(SystemExit) as ended:
    trials.run(sweep, spaces.grid(sweep.space), execute, threading.Event())
  assert ended.value.code == 3
  status = {x['tx.rate']: x['status'] for x in table(sweep)}
  assert status['0.1'] == 'finished'
  assert status['3'] == 'failed (3): ERROR: loss is nan at step 7'


def test_a_preempted_job_lets_its_trial_save_and_is_queued_again(tmp_path):
  submitit = pytest.importorskip('submitit')
  sweep = sweep_of(tmp_path, 'tx.rate=1')
  job = sweep.job(tmp_path / 'trial', {'tx.rate': '1'})
  trial = executors._Trial(job)
  codes = []
  thread = threading.Thread(target=lambda: codes.append(trial()))
  thread.start()
  while 'rate' not in (job.log.read_text() if job.log.exists() else ''):
    time.sleep(0.02)
  time.sleep(0.2)
  again = trial.checkpoint()
  thread.join(20)
  assert codes == [75]
  assert isinstance(again, submitit.helpers.DelayedSubmission)
  assert again.function.job == job


def test_what_slurm_lacks_is_said(tmp_path):
  pytest.importorskip('submitit')
  with pytest.raises(types.InputError, match='--executor=slurm'):
    executors.slurm(tmp_path, num_parallel=1, parameters={})
  with pytest.raises(types.InputError, match='no_such'):
    executors.slurm(
      tmp_path, num_parallel=1, parameters=dict(no_such=1), cluster='local'
    )
  with pytest.raises(types.InputError, match='--jobs'):
    executors.local(0)


def test_a_real_trial_of_the_launcher(tmp_path):
  code, output = launching.run(
    'sweep',
    f'--config={launching.ROOT}/configs/sam.py:smoke',
    f'--workdir={tmp_path / "sweep"}',
    '--config.min_steps=4',
    '--space=tx.learning_rate=0.05',
  )
  assert code == 0, output
  assert 'best:' in output
  (best,) = table(sweep_of(tmp_path, 'a=1'))
  assert best['status'] == 'finished'
  folder = tmp_path / 'sweep' / 'trials' / '000'
  config = json.loads((folder / 'config.json').read_text())['config']
  assert config['tx']['learning_rate'] == 0.05
  assert config['min_steps'] == 4
  found = launching.report(folder)['result']['test/accuracy']
  assert float(best['test/accuracy']) == pytest.approx(found, rel=1e-5)


def test_no_trial_is_best_where_all_metrics_are_no_number(tmp_path):
  sweep = sweep_of(tmp_path, 'tx.rate=0.5,0.2')
  sweep.workdir.mkdir()
  made = [
    trials.Trial(str(i), {'tx.rate': x}, 'finished', np.nan, 1.0, '')
    for i, x in enumerate(('0.5', '0.2'))
  ]
  assert trials.summarize(sweep, made) is None
  assert 'Best' not in (sweep.workdir / 'summary.md').read_text()
