"""Which commit a result comes from."""

import pathlib
import subprocess

import pytest

from repjax import report


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A checkout with the file that asks, and one of results."""

  def git(*args):
    name = ('-c', 'user.name=a', '-c', 'user.email=a@b.c')
    command = ('git', *name, *args)
    done = subprocess.run(
      command, cwd=tmp_path, capture_output=True, check=True
    )
    return done.stdout.decode().strip()

  git('init', '-q')
  (tmp_path / 'package').mkdir()
  file = tmp_path / 'package' / 'report.py'
  file.write_text(pathlib.Path(report.__file__).read_text('utf-8'))
  (tmp_path / 'report.json').write_text('1')
  git('add', '.')
  git('commit', '-qm', 'x')
  monkeypatch.setattr(report, '__file__', str(file))
  return tmp_path, git('rev-parse', 'HEAD')


def test_what_runs_leave_is_no_change(checkout):
  folder, commit = checkout
  assert report.git_commit() == commit
  (folder / 'report.json').write_text('2')
  (folder / 'plot.png').write_text('new')
  assert report.git_commit() == commit


@pytest.mark.parametrize('name', ['package/report.py', 'new.py'])
def test_code_that_is_not_committed_is_marked(checkout, name):
  folder, commit = checkout
  (folder / name).write_text('# Other code.')
  assert report.git_commit() == f'{commit}+'


def test_outside_of_a_checkout_there_is_none(tmp_path, monkeypatch):
  monkeypatch.setattr(report, '__file__', str(tmp_path / 'a.py'))
  assert report.git_commit() == ''
