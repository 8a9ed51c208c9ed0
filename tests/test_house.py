"""The house: what a reader must open, how long files are, who imports whom.

The figures are printed at the end of a run by `summary.py`, which also holds
the number of compiled programs to its limit.
"""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

from launch.lib import sources

ROOT = pathlib.Path(__file__).resolve().parent.parent
_OURS = ('repjax', 'configs', 'launch')
_FILES = [
  path for folder in _OURS for path in sorted((ROOT / folder).rglob('*.py'))
]
_RECIPES = [
  path
  for path in sorted((ROOT / 'configs').glob('[a-z]*.py'))
  if path.stem != 'presets'
]
_STUDIES = sorted((ROOT / 'configs' / 'studies').glob('[a-z]*.py'))


def _name(path):
  return path.relative_to(ROOT).as_posix()


def _num_lines(path):
  return len(path.read_text('utf-8').splitlines())


_each_file = pytest.mark.parametrize('path', _FILES, ids=_name)
_each_of_repjax = pytest.mark.parametrize(
  'path', [x for x in _FILES if _name(x).startswith('repjax/')], ids=_name
)
_each_recipe = pytest.mark.parametrize('path', _RECIPES, ids=lambda p: p.stem)


# What a reader must open: the files that importing a recipe runs.


@functools.cache
def _imports(path):
  """Modules that a file imports anywhere, and what it takes from them."""
  names = []
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: a relative import'
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return names


# What a reader must read: a package that only re-exports (`optim`, `adapters`)
# leads on to the names that are used, and one without code to nothing.


@functools.cache
def _exported(package):
  """Name -> file, of what a package re-exports."""
  tree = ast.parse(package.read_text('utf-8'))
  return {
    alias.asname: tuple(sources.files_of(node.module))[-1]
    for node in tree.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
    if alias.asname
  }


@functools.cache
def _used(path):
  """'a.b' of modules and 'a.b.c' of what is taken from them, as a file says."""
  tree = ast.parse(path.read_text('utf-8'))
  local = {
    alias.asname or alias.name: f'{node.module}.{alias.name}'
    for node in sources.nodes(tree)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }
  taken = {
    f'{local[node.value.id]}.{node.attr}'
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in local
  }
  return taken | set(sources.imports(path))


def _reading(*roots):
  """All files of our own that a reader of `roots` is led to."""
  found, waiting = set(), set(roots)
  while waiting:
    path = waiting.pop()
    found.add(path)
    for name in _used(path):
      files = list(sources.files_of(name))
      if not files:
        continue
      if files[-1].name == '__init__.py':  # A package, or a name in it.
        names = _exported(files[-1])
        files = [names[x] for x in [name.rpartition('.')[2]] if x in names]
      waiting |= {x for x in files if x.name != '__init__.py'} - found
  return found


@pytest.mark.slow
def test_a_closure_is_what_python_loads():
  code = (
    'import sys; from configs import sam; from repjax import run; '
    'print(*(x.__file__ for x in list(sys.modules.values()) if '
    f'x.__name__.partition(".")[0] in {_OURS}), sep="\\n")'
  )
  loaded = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  files = sources.closure(
    ROOT / 'configs' / 'sam.py', ROOT / 'repjax' / 'run.py'
  )
  assert {pathlib.Path(x) for x in loaded} == files


@_each_recipe
def test_a_recipe_is_understood_from_few_files(path, record_property):
  files = _reading(path, ROOT / 'repjax' / 'run.py')
  assert files <= sources.closure(path, ROOT / 'repjax' / 'run.py')
  lines = sum(map(_num_lines, files))
  record_property('house', f'{path.stem}: {len(files)} files, {lines:,} lines')
  assert len(files) <= 60, sorted(map(_name, files))
  if path.stem == 'sam':
    assert len(files) <= 35, sorted(map(_name, files))
    assert lines <= 8_000


@pytest.mark.parametrize('room', ['layers', 'models', 'optim', 'privacy'])
def test_a_part_needs_few_packages(room):
  # What these load in their turn: test_imports.py.
  needed = {
    name.partition('.')[0]
    for path in sources.closure(*(ROOT / 'repjax' / room).rglob('*.py'))
    for name in sources.imports(path)
  }
  packages = needed - {'repjax', *sys.stdlib_module_names}
  # absl comes with optax and chex.
  assert packages <= {'absl', 'chex', 'flax', 'jax', 'numpy', 'optax'}


@pytest.mark.parametrize(
  'path', ['repjax/run.py', 'repjax/experiments/of_images.py', 'configs/sam.py']
)
def test_who_does_not_ask_for_privacy_imports_none_of_it(path):
  files = map(_name, sources.closure(ROOT / path))
  assert not [x for x in files if 'privacy' in x or 'private' in x]


# Lengths.


@_each_file
def test_a_file_is_read_in_one_sitting(path):
  limit = 350
  if path in _RECIPES:
    limit = 200
  elif path in _STUDIES:
    limit = 300
  assert _num_lines(path) <= limit


def test_recipes_are_cards(record_property):
  lengths = [_num_lines(path) for path in _RECIPES]
  mean = sum(lengths) / len(lengths)
  record_property(
    'house', f'recipes: {mean:.0f} lines on average, {max(lengths)} at most'
  )
  assert mean <= 130


# Who imports whom: from its own rank only within its folder, and from lower
# ranks freely.

_RANKS = (
  ('types',),
  ('trees',),
  ('files', 'clusters', 'parallel', 'metrics', 'float64', 'interceptors'),
  ('data', 'layers', 'privacy'),
  ('models', 'optim', 'gradients'),
  ('weights', 'methods', 'adapt'),
  ('loop', 'checkpoint', 'report', 'plots', 'pictures'),
  ('agreement', 'matrix_plots'),
  ('start', 'run', 'experiments', 'export', 'tracking'),
  ('protocols',),
  ('attacks', 'analysis', 'benchmarks'),
)
_RANK = {name: i for i, names in enumerate(_RANKS) for name in names}


@_each_of_repjax
def test_imports_go_one_way(path):
  if path.name == '__init__.py':
    return
  room = path.relative_to(ROOT / 'repjax').parts[0].removesuffix('.py')
  assert room in _RANK, f'{path}: a new room needs a rank'
  for name in _imports(path):
    parts = name.split('.')
    assert parts[0] not in ('configs', 'launch'), f'{path} imports {name}'
    if parts[0] == 'repjax':
      other = parts[1]
      assert other == room or _RANK[other] < _RANK[room], (
        f'{path} imports {name}'
      )


def test_contributors_are_told_the_ranks():
  told = ' '.join((ROOT / 'CONTRIBUTING.md').read_text('utf-8').split())
  ranks = ' <- '.join(', '.join(names) for names in _RANKS)
  assert f'`{ranks} <- configs <- launch`' in told


@_each_recipe
def test_a_recipe_imports_no_other_recipe(path):
  for name in _imports(path):
    assert not name.startswith('configs.') or name.startswith(
      ('configs.presets', 'configs.parts')
    ), f'{path} imports {name}'


@_each_of_repjax
def test_devices_are_the_business_of_parallel_alone(path):
  text = path.read_text('utf-8')
  if path.name != 'parallel.py':
    assert 'jax.pmap' not in text
    assert 'shard_map' not in text


# Fields of a config are there.


@_each_file
def test_a_missing_field_of_a_config_is_never_guessed(path):
  assert not _guesses(path.read_text('utf-8'))


@pytest.mark.parametrize(
  'code',
  [
    "config.get('rate', 1)",
    "config.tx.get('rate')",
    "getattr(config.tx, 'rate', 1)",
    "config['tx'].get('rate', 1)",
  ],
)
def test_a_guess_is_found(code):
  assert _guesses(code)
  assert not _guesses("config.tx.rate + other.get('rate')")


def _guesses(code):
  """Lines that read a field of `config` with a default where it is missing."""

  def is_config(node):
    while isinstance(node, (ast.Attribute, ast.Subscript)):
      node = node.value
    return isinstance(node, ast.Name) and node.id == 'config'

  lines = []
  for call in ast.walk(ast.parse(code)):
    if not isinstance(call, ast.Call):
      continue
    fn = call.func
    by_get = (
      isinstance(fn, ast.Attribute) and fn.attr == 'get' and is_config(fn.value)
    )
    by_name = (
      isinstance(fn, ast.Name)
      and fn.id == 'getattr'
      and len(call.args) == 3
      and is_config(call.args[0])
    )
    if by_get or by_name:
      lines.append(call.lineno)
  return lines
