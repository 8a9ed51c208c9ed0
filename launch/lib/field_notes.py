"""What the fields of a recipe's config mean, from where it is written already.

A group of settings is the argument list of what takes it, so that its meaning
stands in that docstring: of `mixup.make(**config.mixup)` under 'Args'. Where no
docstring tells it, or none that can be found so, `field_meanings` does. A
comment above the field, in the recipe, comes behind it. Nothing is imported:
sources are read.
"""

import ast
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import io
import pathlib
import re
import tokenize

from launch.lib import field_meanings
from launch.lib import sources

# The names that a part of a comment is about.
_NAMED = re.compile(r'(?:^|(?<=[.;] ))(\w+(?:(?:, (?:and )?| and )\w+)*): ')
_ENTRY = re.compile(r'(\*{0,2}\w+): (.*)')
_FOLDERS = (
  sources.ROOT / 'configs' / 'parts',
  sources.ROOT / 'repjax' / 'experiments',
)


def notes(recipe: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
  """Field -> what it means, one line; '' where nothing says it.

  Args:
    recipe: Its file.
    names: Fields of its config, such as 'tx.warmup'.
  """
  recipe = recipe.resolve()
  above = _comments(recipe)
  taken = _taken(recipe)
  found = {}
  for name in names:
    meaning = (
      taken.get(name)
      or _told(name, field_meanings.COMMON)
      or _told(name, field_meanings.OF_RECIPES)
      or _documented(name)
    )
    # What a recipe says above a field may be all, or a remark.
    texts = map(_first_sentence, (meaning, above.get(name, '')))
    found[name] = ' '.join(dict.fromkeys(x for x in texts if x))
  return found


def _told(name: str, table: Mapping[str, str]) -> str:
  """The meaning of the longest end of a name that a table has."""
  ends = [x for x in table if f'.{name}'.endswith(f'.{x}')]
  return table[max(ends, key=len)] if ends else ''


def _documented(name: str) -> str:
  """What the docstring says that `field_meanings` names for the group."""
  group, _, argument = name.rpartition('.')
  places = field_meanings.DOCUMENTED.get(group.rpartition('.')[2], ())
  for file, _, definition in (x.partition(' ') for x in places):
    found = _arguments(sources.ROOT / file, definition)
    if argument in found:
      return found[argument]
  return ''


def _first_sentence(text: str) -> str:
  text = ' '.join(text.split())
  found = re.match(r'(.{12,}?[^.A-Z][.:;])(?= [A-Z])', text)
  return re.sub('[;:]$', '.', found.group(1) if found else text)


def _comments(recipe: pathlib.Path) -> dict[str, str]:
  """Field or group -> the comment above it or behind it.

  Of a comment above a group, or above a line of several fields, 'kind: how.
  count, total: of rows.' is a comment of each field that it names.
  """
  text = recipe.read_text('utf-8')
  lines = text.splitlines()
  behind = _behind(text)
  found: dict[str, str] = {}
  for preset in _presets(recipe):
    by_line: dict[int, list[str]] = {}
    for name, node in _fields(preset):
      by_line.setdefault(node.lineno, []).append(name)
    for number, names in by_line.items():
      at = number - 2
      words: list[str] = []
      while at >= 0 and lines[at].strip().startswith('#'):
        words.insert(0, lines[at].strip().lstrip('# '))
        at -= 1
      comment = ' '.join([*words, behind.get(number, '')]).strip()
      if comment:
        group = names[0].rpartition('.')[0]
        below = [
          x
          for x, _ in _fields(preset)
          if x in names or x.startswith(f'{names[0]}.')
        ]
        said = _by_name(comment, below, {group, names[0]})
        beside = [x for x in names[1:] if not x.startswith(f'{names[0]}.')]
        if not said and not beside:  # Else nobody knows of which.
          said = {names[0]: comment}
        for name, x in said.items():
          found.setdefault(name, x)
  return found


def _by_name(
  comment: str, fields: Sequence[str], groups: set[str]
) -> dict[str, str]:
  """Field -> its part of 'kind: how. count, total: of rows.'"""
  short = {x.rpartition('.')[2]: x for x in fields}
  for group in sorted(groups):  # Where two have a name, the outermost.
    short |= {
      x.rpartition('.')[2]: x for x in fields if x.rpartition('.')[0] == group
    }
  parts = []
  for match in _NAMED.finditer(comment):
    names = re.findall(r'\w+', match[1].replace(' and ', ' '))
    if all(x in short for x in names):
      parts.append((match, names))
  found = {}
  end = len(comment)
  for match, names in reversed(parts):
    text = comment[match.end() : end].strip(' ;')
    found.update({short[name]: text[:1].upper() + text[1:] for name in names})
    end = match.start()
  return found


def _behind(text: str) -> dict[int, str]:
  """Line -> the comment behind its code."""
  read = tokenize.generate_tokens(io.StringIO(text).readline)
  return {
    x.start[0]: x.string.lstrip('# ')
    for x in read
    if x.type == tokenize.COMMENT and x.line[: x.start[1]].strip()
  }


def _presets(recipe: pathlib.Path) -> Iterator[ast.expr]:
  """The presets that a recipe's file writes down, in their order."""
  for node in _tree(recipe).body:
    if not isinstance(node, ast.Assign | ast.AnnAssign):
      continue
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    named = isinstance(target, ast.Name) and target.id == 'PRESETS'
    if named and isinstance(node.value, ast.Call):
      yield from (keyword.value for keyword in node.value.keywords)


def _fields(node, above='') -> Iterator[tuple[str, ast.keyword]]:
  """(name, keyword) of nested calls of `dict`."""
  for keyword in node.keywords if isinstance(node, ast.Call) else ():
    if keyword.arg is None:
      yield from _fields(keyword.value, above)
    else:
      name = f'{above}{keyword.arg}'
      yield name, keyword
      yield from _fields(keyword.value, f'{name}.')


def _taken(recipe: pathlib.Path) -> dict[str, str]:
  """Field -> what the docstring of that which takes it says."""
  found: dict[str, str] = {}
  names = sources.imports(recipe, anywhere=True)
  used = {x for name in names for x in sources.files_of(name)}
  for path in (recipe, *sorted(sources.closure(*used, anywhere=True))):
    # A recipe may lie anywhere.
    if path == recipe or any(x in path.parents for x in _FOLDERS):
      for field, text in _taken_in(path):
        found.setdefault(field, text)
  # A group named as a network, a method or a link: config[config.network].
  groups = {
    x.partition('.')[0]
    for preset in _presets(recipe)
    for x, _ in _fields(preset)
  }
  for group in sorted(groups):
    for place in _called(recipe, group):
      for argument, text in _arguments(*place).items():
        found.setdefault(f'{group}.{argument}', text)
  return found


def _taken_in(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  tree = _tree(path)
  short = {
    x.targets[0].id: _field_of(x.value, {})
    for x in ast.walk(tree)
    if isinstance(x, ast.Assign)
    and isinstance(x.targets[0], ast.Name)
    and _field_of(x.value, {})
  }
  for call in ast.walk(tree):
    if not isinstance(call, ast.Call):
      continue
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == 'partial':
      function = call.args[0]
    place = _place(path, function)
    arguments = _arguments(*place) if place else {}
    for keyword in call.keywords:
      if keyword.arg is None:
        for node in ast.walk(keyword.value):
          group = _field_of(node, short)
          for argument, text in arguments.items() if group else ():
            yield f'{group}.{argument}', text
      elif keyword.arg in arguments:
        field = _field_of(keyword.value, short)
        if field.rpartition('.')[2] == keyword.arg:
          yield field, arguments[keyword.arg]


def _field_of(node, short) -> str:
  """'a.b' of the expression `config.a.b`, or of a shorter name for it."""
  parts: list[str] = []
  while isinstance(node, ast.Attribute):
    parts.insert(0, node.attr)
    node = node.value
  if isinstance(node, ast.Name):
    if node.id == 'config':
      return '.'.join(parts)
    if node.id in short:
      return '.'.join([short[node.id], *parts])
  return ''


def _place(path, function) -> tuple[pathlib.Path, str] | None:
  """(file, name) of a function or class that a file calls."""
  if isinstance(function, ast.Name):
    return _defined(path, function.id)
  if isinstance(function, ast.Attribute) and isinstance(
    function.value, ast.Name
  ):
    module = _imports(path).get(function.value.id)
    files = list(sources.files_of(module)) if module else []
    return _defined(files[-1], function.attr) if files else None
  return None


def _called(recipe, group) -> Iterator[tuple[pathlib.Path, str]]:
  """What a recipe uses under the name of a group, in whatever spelling."""
  plain = group.replace('_', '')
  for node in ast.walk(_tree(recipe)):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      names = (node.attr.lower(), node.value.id.replace('_', ''))
      place = _place(recipe, node)
      if place and plain in names:
        yield place


def _defined(path, name) -> tuple[pathlib.Path, str] | None:
  """Where a name is defined that a file has, itself or by an import."""
  if _definition(path, name):
    return path, name
  module, _, last = _imports(path).get(name, '').rpartition('.')
  files = list(sources.files_of(module)) if module else []
  return _defined(files[-1], last) if files and files[-1] != path else None


@functools.cache
def _arguments(path: pathlib.Path, name: str) -> dict[str, str]:
  """Argument or attribute -> what the docstring says, with those of bases."""
  node = _definition(path, name)
  if node is None:
    return {}
  found = _entries(ast.get_docstring(node) or '')
  for base in node.bases if isinstance(node, ast.ClassDef) else ():
    place = _place(path, base)
    found = {**(_arguments(*place) if place else {}), **found}
  # '**more: Of `classifier.make`.'
  for text in [x for argument, x in found.items() if argument[0] == '*']:
    for word in re.findall(r'`([\w.]+)`', text):
      place = _place(path, ast.parse(word).body[0].value)
      found = {**(_arguments(*place) if place else {}), **found}
  return found


def _entries(doc: str) -> dict[str, str]:
  """Name -> text of the sections 'Args' and 'Attributes'."""
  found: dict[str, str] = {}
  inside, last = False, ''
  for line in doc.splitlines():
    if line and line[0] != ' ':
      inside = line in ('Args:', 'Attributes:')
    elif inside and line.startswith('  '):
      entry = _ENTRY.match(line[2:])
      if entry:
        last = entry.group(1)
        found[last] = entry.group(2)
      elif last:
        found[last] += f' {line.strip()}'
  return found


def _definition(path, name):
  for node in _tree(path).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
      return node
  return None


@functools.cache
def _imports(path: pathlib.Path) -> dict[str, str]:
  """Name in a file -> the module or member that it stands for."""
  return {
    alias.asname or alias.name: f'{node.module}.{alias.name}'
    for node in ast.walk(_tree(path))
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text('utf-8'))
