"""Notebooks point at the published repository, once there is one."""

import json

import pytest

from docs import badges

_NOTEBOOKS = sorted((badges.ROOT / 'colabs').glob('*.ipynb'))
_TO = 'https://github.com/people/repjax'

_each_notebook = pytest.mark.parametrize(
  'path', _NOTEBOOKS, ids=lambda path: path.stem
)


def _pyproject(line=''):
  return f"[project]\nname = 'repjax'\n[project.urls]\n{line}\n"


@_each_notebook
def test_a_notebook_is_what_the_command_writes(path):
  pyproject = (badges.ROOT / 'pyproject.toml').read_text('utf-8')
  text = path.read_text('utf-8')
  written = badges.pointed(text, path.name, badges.address(pyproject))
  assert written == text, 'run: python -m docs.badges'


@_each_notebook
def test_a_badge_opens_this_notebook_and_nothing_else_changes(path):
  text = path.read_text('utf-8')
  there = badges.pointed(text, path.name, _TO)
  assert badges.pointed(there, path.name, _TO) == there
  assert badges.pointed(there, path.name, None) == text

  cells, before = (json.loads(x)['cells'] for x in (there, text))
  assert cells[2:] == before[2:]
  lines = ''.join(cells[0]['source']).splitlines()
  assert lines[2] == (
    '[![Open in Colab](https://colab.research.google.com/assets/'
    'colab-badge.svg)](https://colab.research.google.com/github/people/repjax/'
    f'blob/main/colabs/{path.name})'
  )
  del lines[1:3]
  assert lines == ''.join(before[0]['source']).splitlines()


def _asked(to, source='..'):
  """What the first cell installs on a machine without repjax."""
  path = _NOTEBOOKS[0]
  text = badges.pointed(path.read_text('utf-8'), path.name, to)
  code = ''.join(json.loads(text)['cells'][1]['source'])
  code = code.partition('import jax\n')[0]
  # `%pip` as a function.
  code = code.replace('import repjax', 'raise ImportError')
  code = code.replace('%pip install -q {SOURCE}', 'asked.append(SOURCE)')
  code = code.replace("SOURCE = '..'\n", f'SOURCE = {source!r}\n')
  asked: list[str] = []
  exec(compile(code, path.name, 'exec'), {'asked': asked})
  return asked


def test_in_a_checkout_that_is_installed(tmp_path, monkeypatch):
  folder = tmp_path / 'colabs'
  folder.mkdir()
  (tmp_path / 'pyproject.toml').touch()
  monkeypatch.chdir(folder)
  assert _asked(_TO) == _asked(None) == ['..']


def test_outside_of_one_the_published_is_installed_or_asked_for(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'colabs'
  folder.mkdir()
  monkeypatch.chdir(folder)
  assert _asked(_TO) == [f'git+{_TO}']
  with pytest.raises(SystemExit, match='change SOURCE'):
    _asked(None)
  assert _asked(None, 'git+https://a/b') == ['git+https://a/b']


@pytest.mark.parametrize(
  'line',
  [f"Repository = '{_TO}{end}'" for end in ('', '/', '.git')],
)
def test_an_address_is_read(line):
  assert badges.address(_pyproject(line)) == _TO


def test_without_an_address_there_is_none():
  assert badges.address("[project]\nname = 'repjax'\n") is None
  assert badges.address(_pyproject()) is None


def test_another_address_is_refused():
  for url in ('https://gitlab.com/a/b', 'http://github.com/a/b', _TO[:-7]):
    with pytest.raises(badges.AddressError, match='Repository'):
      badges.address(_pyproject(f"Repository = '{url}'"))


def test_a_notebook_of_another_shape_is_refused():
  cell = dict(cell_type='markdown', source=['no title'])
  with pytest.raises(ValueError, match='no title'):
    badges.pointed(json.dumps(dict(cells=[cell, cell])), 'x.ipynb', None)
  cell = dict(cell_type='markdown', source=['# Title'])
  with pytest.raises(ValueError, match='does not install'):
    badges.pointed(json.dumps(dict(cells=[cell, cell])), 'x.ipynb', None)
