"""Grids: every cell is a run, tables of what is finished, second trainings."""

import csv
import json
import sys
import threading

import launching
import numpy as np
import pytest

from launch.lib import executors
from launch.lib import grids
from launch.lib import one_candidate
from launch.lib import space as spaces
from launch.lib import trials
from repjax import types

# Stands in for launch.train: what a cell measures is a function of its fields.
_TRAIN = """
import json, pathlib, sys, time
flags = dict(x.lstrip('-').split('=', 1) for x in sys.argv[1:])
folder = pathlib.Path(flags['workdir'])
method, seed = flags['config.method'], int(flags['config.seed'])
with open(folder / 'runs', 'a') as file:
  file.write('x')
if method == 'frail' and not (folder / 'again').exists():
  (folder / 'again').touch()
  print('ERROR: loss is nan')
  sys.exit(3)
started = time.time()
time.sleep(0.2)
gain = dict(erm=0.0, good=0.2, frail=-0.1, jtt=0.1)[method]
if method == 'jtt':  # The run that it names is the baseline's of its cell.
  first = json.loads(
    (pathlib.Path(flags['config.jtt.first']) / 'report.json').read_text()
  )['flags']
  for name in ('config.shift.kind', 'config.seed'):
    assert first[name] == flags[name]
  assert first['config.method'] == 'erm'
base = dict(easy=0.5, hard=0.3)[flags['config.shift.kind']] + 0.01 * seed
pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
cells = {f'test/{i}-{j}/cell_accuracy': base + gain for i, j in pairs}
report = {'result': {'test/accuracy': base + gain, **cells}}
report |= {'flags': flags, 'times': [started, time.time()], 'seconds': 1.0}
(folder / 'report.json').write_text(json.dumps(report))
"""


def grid_of(**changes):
  settings = dict(
    methods=('erm', 'good', 'jtt'),
    twice=('jtt',),
    shifts=spaces.parse('shift.kind=easy,hard'),
    num_seeds=2,
    metric='test/accuracy',
  )
  return grids.Grid(**{**settings, **changes})


def run(grid, tmp_path, monkeypatch, jobs=2):
  path = tmp_path / 'train.py'
  path.write_text(_TRAIN)
  monkeypatch.setattr(trials, 'TRAIN', (sys.executable, '-S', str(path)))
  sweep = trials.Sweep(
    workdir=tmp_path / 'grid',
    file='configs/fine_grained_shift.py',
    preset='smoke',
    overrides={},
    space=grids.space(grid),
    metric=grid.metric,
    mode='max',
    train_flags=(),
  )
  grids.run(grid, sweep, executors.local(jobs), threading.Event())


def cells(tmp_path):
  with open(tmp_path / 'grid' / 'cells.csv') as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_grid_is_run_two_at_a_time_and_gone_on_with(tmp_path, monkeypatch):
  run(grid_of(), tmp_path, monkeypatch)
  folder = tmp_path / 'grid'
  lines = (folder / 'grid.md').read_text().splitlines()
  assert lines[2] == '| method | easy | hard | mean rank |'
  assert lines[4:] == [
    '| good | 0.705 (1.0) | 0.505 (1.0) | 1.00 |',
    '| jtt | 0.605 (2.0) | 0.405 (2.0) | 2.00 |',
    '| erm | 0.505 (3.0) | 0.305 (3.0) | 3.00 |',
  ]
  for name in ('change_over_erm', 'ranks'):
    assert (folder / 'plots' / f'{name}.png').stat().st_size > 1000
  rows = cells(tmp_path)
  assert len(rows) == 3 * 2 * 2 * 4
  (one,) = (
    x for x in rows if list(x.values())[:5] == ['jtt', 'hard', '1', '0', '1']
  )
  np.testing.assert_allclose(float(one['accuracy']), 0.41)
  # Both at work all the time, but no third one.
  reports = [
    json.loads(x.read_text())
    for x in sorted((folder / 'trials').glob('*/report.json'))
  ]
  times = [x['times'] for x in reports]
  together = [sum(a <= t <= b for a, b in times) for t, _ in times]
  assert max(together) == 2
  # One cell more for a further method: what is finished is kept.
  run(grid_of(), tmp_path, monkeypatch)
  runs = [x.read_text() for x in (folder / 'trials').glob('*/runs')]
  assert runs == ['x'] * 12


@pytest.mark.slow
def test_a_method_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
  grid = grid_of(methods=('erm', 'good', 'frail'), twice=())
  with pytest.raises(SystemExit) as ended:
    run(grid, tmp_path, monkeypatch)
  assert ended.value.code == 3
  text = (tmp_path / 'grid' / 'grid.md').read_text()
  assert '| good | 0.705 (1.0)' in text
  assert 'Not finished: frail.' in text
  assert {x['method'] for x in cells(tmp_path)} == {'erm', 'good'}
  run(grid, tmp_path, monkeypatch)
  text = (tmp_path / 'grid' / 'grid.md').read_text()
  assert '| frail | 0.405 (3.0)' in text
  assert 'Not finished' not in text


@pytest.mark.parametrize('refused', [True, False])
def test_a_grid_that_is_refused_leaves_the_tables_of_another(
  tmp_path, monkeypatch, refused
):
  written = []
  monkeypatch.setattr(grids, 'write', lambda *args: written.append(args))

  def never(*args):
    raise types.InputError('another') if refused else types.PreemptedError('')

  monkeypatch.setattr(grids.trials, 'run', never)
  with pytest.raises((types.InputError, types.PreemptedError)):
    grids.run(grid_of(), _Sweep(tmp_path), None, threading.Event())
  assert bool(written) != refused


class _Sweep:
  def __init__(self, workdir):
    self.workdir = workdir


def test_second_trainings_name_the_first_of_their_cell(tmp_path):
  grid = grid_of()
  first = grids.first_wave(grid)
  assert [x['method'] for x in first] == ['erm'] * 4 + ['good'] * 4
  for x in grids.second_wave(grid, tmp_path):
    named = first[int(x['jtt.first'].rpartition('/')[2])]
    assert named['method'] == 'erm'
    for name in ('shift.kind', 'seed'):
      assert named[name] == x[name]


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    (dict(methods=('erm',), twice=()), 'two or more'),
    (dict(methods=('erm', 'irm', 'irm'), twice=()), 'each once'),
    (dict(twice=('erm',)), 'not the first'),
    (dict(num_seeds=0), '--seeds'),
    (dict(shifts=spaces.parse('shift.kind=a,b,a')), 'shift.kind twice'),
    (dict(shifts=spaces.parse('seed=1,2')), '--seeds goes through'),
    (dict(shifts=spaces.parse('shift.share=uniform(0,1)')), 'no grid'),
  ],
)
def test_a_grid_that_is_none_is_refused(changes, match):
  with pytest.raises(types.InputError, match=match):
    grids.check(grid_of(**changes), {})


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    (dict(methods=('erm', 'hoo'), twice=()), 'method=hoo.*config.method must'),
    (
      dict(methods=('erm',), shifts=spaces.parse('augment.mean=abc')),
      'augment.mean=abc',
    ),
    (
      dict(methods=('erm', 'irm'), shifts=spaces.parse('shift.kind=hard,odd')),
      'shift.kind=hard.*config.shift.kind',
    ),
  ],
)
def test_a_cell_that_cannot_be_built_is_refused_before_any_runs(
  changes, match, tmp_path
):
  grid = grid_of(**{'shifts': {}, 'twice': (), **changes})
  sweep = trials.Sweep(
    workdir=tmp_path,
    file='configs/fine_grained_shift.py',
    preset='smoke',
    overrides={},
    space=grids.space(grid),
    metric=grid.metric,
    mode='max',
    train_flags=(),
  )
  with pytest.raises(types.InputError, match=match):
    one_candidate.check_built(sweep, grids.rows_and_columns(grid))
  good = grid_of(methods=('erm', 'irm'), twice=(), shifts={})
  one_candidate.check_built(sweep, grids.rows_and_columns(good))


def test_each_method_and_each_shift_is_built_once():
  cells = grids.rows_and_columns(grid_of())
  assert [(x['method'], x['shift.kind']) for x in cells] == [
    ('erm', 'easy'),
    ('good', 'easy'),
    ('erm', 'easy'),
    ('erm', 'hard'),
  ]


def test_shifts_of_fields_that_end_alike_have_names_of_their_own():
  fields = {'method': 'erm', 'irm.weight': '1', 'coral.weight': '2'}
  assert grids._name(fields) == 'irm.weight=1, coral.weight=2'
  assert grids._name({**fields, 'shift.kind': 'rare', 'seed': '0'}) == (
    'irm.weight=1, coral.weight=2, rare'
  )


def test_a_method_that_has_no_first_run_is_refused_at_once(tmp_path):
  code, output = launching.call(
    'grid',
    '--config=configs/fine_grained_shift.py:smoke',
    f'--workdir={tmp_path / "grid"}',
    *('--methods=erm,irm,coral', '--twice=coral', '--seeds=1'),
    '--space=shift.kind=correlated',
  )
  assert code == 1
  assert '--twice=coral: config.coral.first has to be a field' in output
  assert not (tmp_path / 'grid').exists()


@pytest.mark.slow
def test_a_method_that_fails_keeps_no_second_training_waiting(
  tmp_path, monkeypatch
):
  run(grid_of(methods=('erm', 'frail', 'jtt')), tmp_path, monkeypatch)
  assert {x['method'] for x in cells(tmp_path)} == {'erm', 'frail', 'jtt'}
