"""What docstrings point to is there: `module.name` of our own packages."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ('repjax', 'configs', 'launch')
# `a.b`, `a.b.c`, `a.b(...)`; what is of no module of ours is not looked at.
NAME = re.compile(r'`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`')

_FILES = ('.py', '.md', '.json', '.npy', '.csv')  # Names of files.
# A group of fields of configs, and a package: `data.name` is a field.
FIELDS = re.compile(r'data\.\w+$')


@functools.cache
def files():
  """All modules, by the last part of their name."""
  found = {}
  for package in PACKAGES:
    for path in (ROOT / package).rglob('*.py'):
      parts = path.relative_to(ROOT).with_suffix('').parts
      parts = parts[:-1] if parts[-1] == '__init__' else parts
      found.setdefault(parts[-1], []).append(path)
  return found


def _targets(node):
  """Names that a statement binds."""
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return [node.name]
  if isinstance(node, ast.Import | ast.ImportFrom):
    return [x.asname or x.name.split('.')[0] for x in node.names]
  if isinstance(node, ast.AnnAssign | ast.Assign):
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    found = [x for target in targets for x in ast.walk(target)]
    return [
      x.id if isinstance(x, ast.Name) else x.attr
      for x in found
      if isinstance(x, ast.Name | ast.Attribute)
    ]
  return []


@functools.cache
def members(path):
  """Name -> names in it (fields and methods of classes, else None)."""
  found = {}
  for node in ast.parse(path.read_text('utf-8')).body:
    inside = None
    if isinstance(node, ast.ClassDef):
      inside = {x for part in ast.walk(node) for x in _targets(part)}
      if any(ast.unparse(base) != 'NamedTuple' for base in node.bases):
        inside = None  # It has names of other classes, too.
    found.update(dict.fromkeys(_targets(node), inside))
  return found


def is_there(parts):
  """Whether some module of that name has it; None: there is no such module."""
  if parts[0] not in files():
    return None
  for path in files()[parts[0]]:
    rest = parts[1:]
    folder = path.parent if path.name == '__init__.py' else None
    if folder and (
      (folder / f'{rest[0]}.py').exists() or (folder / rest[0]).is_dir()
    ):
      if len(rest) == 1 or is_there(rest):
        return True
      continue
    own = members(path)
    if rest[0] in own and (
      len(rest) == 1 or own[rest[0]] is None or rest[1] in own[rest[0]]
    ):
      return True
  return False


def missing(text):
  """The names in a docstring that nothing of ours has."""
  found = [
    x
    for x in NAME.findall(text)
    if not x.endswith(_FILES) and not FIELDS.match(x)
  ]
  return [x for x in found if is_there(x.split('.')) is False]


def test_names_in_docstrings_are_there():
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
  seen, lost = 0, []
  for path in sorted(p for paths in files().values() for p in paths):
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      text = isinstance(node, kinds) and ast.get_docstring(node)
      if text:
        seen += len(NAME.findall(text))
        lost += [f'{path.relative_to(ROOT)}: `{x}`' for x in missing(text)]
  assert seen > 500
  assert not lost


@pytest.mark.parametrize(
  'name',
  [
    'optim.sam',
    'repjax.optim.sam.SamState.asks',
    'in_order.eval_batches',
    'protocols.linear_probe.fit',
    'Found.psi',  # Of no module: not looked at.
    'jax.vmap',
  ],
)
def test_a_name_that_is_there_passes(name):
  assert not missing(f'As in `{name}`.')


@pytest.mark.parametrize(
  'name',
  [
    'optim.sharp',
    'sam.sam_of_old',
    'repjax.optim.sam.SamState.radius',
    'protocols.linear_probe.guess(features)',
  ],
)
def test_a_name_that_is_gone_is_found(name):
  assert missing(f'As in `{name}`.')
