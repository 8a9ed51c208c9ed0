"""Several studies: in which order, what goes on, what is said of failures."""

import signal
import threading
import time

import launching
import pytest

from launch.lib import app
from launch.lib import executors
from launch.lib import measuring
from repjax import files
from repjax import types

_PAPERS = dict(a=1, b=2, c=3)
_ROW = dict(name='gain', values=[0.5, 0.7], verdict='holds')


@pytest.fixture
def folders(tmp_path):
  return {paper: tmp_path / paper for paper in _PAPERS}


def _report(folder, seconds):
  folder.mkdir(exist_ok=True)
  files.write_json(folder / 'report.json', dict(claims=[_ROW], seconds=seconds))


def _run(monkeypatch, tmp_path, folders, codes):
  """Measures with processes that end with these codes: what was started."""
  started, written = [], []

  def local(num_parallel):
    assert num_parallel == 2

    def execute(jobs, stop, seen):
      for job in jobs:
        started.append(job.name)
        assert f'--papers={job.name}' in job.command
        assert job.command[-1] == '--preset=toy'
        job.log.parent.mkdir(exist_ok=True)
        job.log.write_text('first\nlast words\n')
        if not codes[job.name]:
          _report(job.log.parent, 2.0)
        seen(job, codes[job.name])
      return {job.name: codes[job.name] for job in jobs}

    return execute

  monkeypatch.setattr(executors, 'local', local)
  measuring.side_by_side(
    measuring.Begun(tmp_path, dict(papers=_PAPERS)),
    folders,
    ['--preset=toy'],
    lambda: written.append(1),
    num_parallel=2,
    stop=threading.Event(),
  )
  assert len(written) == len(started)
  return started


def test_what_took_longest_starts_first(monkeypatch, tmp_path, folders, capsys):
  _report(folders['b'], 30.0)
  _report(folders['c'], 400.0)
  codes = dict.fromkeys(_PAPERS, 0)
  assert _run(monkeypatch, tmp_path, folders, codes) == ['c', 'b', 'a']
  # Nothing is left of it but reports.
  assert {x.name for x in tmp_path.glob('*')} == set(_PAPERS)
  assert not list(tmp_path.glob('*/output.txt'))


def test_one_that_fails_is_named_and_measured_again(
  monkeypatch, tmp_path, folders, capsys, caplog
):
  codes = dict(a=0, b=3, c=0)
  with pytest.raises(SystemExit) as ended:
    _run(monkeypatch, tmp_path, folders, codes)
  assert ended.value.code == 3
  assert capsys.readouterr().err.startswith('ERROR: b failed; see output.txt')
  assert 'last words' in (folders['b'] / 'output.txt').read_text()
  assert _run(monkeypatch, tmp_path, folders, dict(b=0)) == ['b']
  assert not (folders['b'] / 'output.txt').exists()
  # All are done: the next time starts anew.
  assert len(_run(monkeypatch, tmp_path, folders, dict(a=0, b=0, c=0))) == 3


def test_one_that_is_killed_has_an_exit_code(monkeypatch, tmp_path, folders):
  with pytest.raises(SystemExit) as ended:
    _run(monkeypatch, tmp_path, folders, dict(a=-9, b=0, c=0))
  assert ended.value.code == app.USAGE


def test_what_was_stopped_goes_on(monkeypatch, tmp_path, folders):
  codes = dict(a=0, b=app.PREEMPTED, c=app.PREEMPTED)
  with pytest.raises(types.PreemptedError, match='run the same command again'):
    _run(monkeypatch, tmp_path, folders, codes)
  assert _run(monkeypatch, tmp_path, folders, dict(b=0, c=0)) == ['b', 'c']


@pytest.mark.slow
def test_two_studies_side_by_side_give_what_each_gives(tmp_path):
  both, alone = tmp_path / 'both' / 'results', tmp_path / 'alone' / 'results'
  smoke = ('--papers=gpm,shapley', '--preset=smoke')
  code, output = launching.run('reproduce', *smoke, f'--out={both}', '--jobs=2')
  assert code == 0, output
  assert output.count('wrote') == 2, output
  code, output = launching.run('reproduce', *smoke, f'--out={alone}')
  assert code == 0, output
  for folder in ('gpm.smoke', 'shapley.smoke'):
    mine, theirs = (
      files.read_json(x / folder / 'report.json', 'claims')
      for x in (both, alone)
    )
    for name in ('claims', 'scalars', 'config', 'seeds', 'sources'):
      assert mine[name] == theirs[name], name
    names = [
      {x.name for x in (y / folder).rglob('*') if 'events' not in x.name}
      for y in (both, alone)
    ]
    assert names[0] == names[1]
  assert (both.parent / 'RESULTS.md').exists()


@pytest.mark.slow
def test_a_signal_stops_all_of_them(tmp_path):
  out = tmp_path / 'results'
  # Studies of several minutes: none ends before the signal comes.
  flags = ('--papers=esvit,wilds', f'--out={out}', '--jobs=2')
  process = launching.start('reproduce', *flags)
  logs = [out / x / 'log.txt' for x in ('esvit', 'wilds')]
  while process.poll() is None and not all(x.exists() for x in logs):
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == app.PREEMPTED, output
  assert 'run the same command again' in output
  assert not list(out.glob('*/report.json'))


def test_jobs_of_no_number_are_refused(tmp_path):
  out = f'--out={tmp_path / "results"}'
  code, output = launching.call('reproduce', '--papers=gpm', out, '--jobs=0')
  assert code == 1
  assert '--jobs must be >= 1' in output
  code, output = launching.call(
    'reproduce', '--papers=gpm', out, '--jobs=2', '--num_processes=2'
  )
  assert code == 1
  assert 'leave --jobs out' in output
  assert not list(tmp_path.iterdir())
