"""The recipes and studies of repjax, and the fields of their configs."""

import ast
from collections.abc import Sequence
import importlib.util
import json
import math
import os
import pathlib
import types as python_types
from typing import Any

import ml_collections
from ml_collections.config_flags import tuple_parser

from repjax import trees
from repjax import types

_CONFIGS = pathlib.Path(__file__).resolve().parent.parent.parent / 'configs'


def config_files() -> list[pathlib.Path]:
  """The recipes that come with repjax."""
  return [x for x in sorted(_CONFIGS.glob('[a-z]*.py')) if x.stem != 'presets']


def path_of(paper: str) -> pathlib.Path:
  """The recipe of a paper."""
  return _CONFIGS / f'{paper}.py'


def papers() -> list[str]:
  """Names of the papers that have a recipe; each has a study, too."""
  names = [path.stem for path in config_files()]
  for path in sorted((_CONFIGS / 'studies').glob('[a-z]*.py')):
    if path.stem not in names:
      raise types.InputError(
        f'configs/studies/{path.name} has no recipe: there is no '
        f'configs/{path.name}.'
      )
  return names


def load_study(paper: str) -> python_types.ModuleType:
  """Imports a paper's study; refuses one that lacks a part."""
  path = _CONFIGS / 'studies' / f'{paper}.py'
  if not path.is_file():
    raise types.InputError(
      f'configs/{paper}.py has no study: write configs/studies/{paper}.py with '
      'SEEDS, CLAIMS, get_config and run.'
    )
  study = load_config_module(str(path))
  for name in ('SEEDS', 'CLAIMS', 'get_config', 'run'):
    if not hasattr(study, name):
      raise types.InputError(f'configs/studies/{paper}.py has no {name}.')
  return study


def seeds(study: python_types.ModuleType, preset: str) -> tuple[int, ...]:
  """Seeds of a preset: SEEDS, and those that MORE_SEEDS has for it."""
  return (*study.SEEDS, *getattr(study, 'MORE_SEEDS', {}).get(preset, ()))


def load_config_module(file: str) -> python_types.ModuleType:
  """Imports a config file by path."""
  spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
  assert spec is not None and spec.loader is not None  # As of any .py file.
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def own_recipe(file: str) -> str:
  """A recipe of repjax as a run has named it, from whatever folder.

  Raises:
    InputError: For any other file: looking at somebody's run must not execute
      what it names.
  """
  path = pathlib.Path(file)
  own = _CONFIGS / path.name
  # As it is started here, and from another checkout, unless changed there.
  ours = own in config_files() and (
    path.absolute() == own or path.parent.name == _CONFIGS.name
  )
  if ours and (not path.is_file() or path.read_bytes() == own.read_bytes()):
    return str(own)
  raise types.InputError(
    f'This run is of the recipe {file}, which is none of those that come with '
    f'repjax: give --config={file} to execute it.'
  )


def update(config: ml_collections.ConfigDict, stored: dict[str, Any]) -> None:
  """Sets a config's fields to stored ones; refuses unknown and missing."""
  from repjax import checkpoint
  from repjax import run

  stored = run.without_studies(stored)
  lines = [
    line
    for line in checkpoint.differing_fields(
      stored, json.loads(json.dumps(config.to_dict()))
    )
    if '(absent)' in line
  ]
  if lines:
    raise types.InputError(
      f'The stored config does not fit the config file: {"; ".join(lines)}.'
    )
  # JSON has no infinity; no field is ever NaN.
  config.update(_with_infinity(stored, config))


def _with_infinity(stored, config):
  return {
    name: _with_infinity(x, config[name])
    if isinstance(x, dict)
    else math.inf
    if x is None and isinstance(config[name], float)
    else x
    for name, x in stored.items()
  }


def field_problem(
  config: ml_collections.ConfigDict, path: Sequence[str], value: str
) -> str:
  """What is wrong with setting config.<path> to the text `value`, or ''."""
  node = config
  for depth, name in enumerate(path):
    if not isinstance(node, ml_collections.ConfigDict) or name not in node:
      known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
      where = '.'.join(['config', *path[:depth]])
      near = trees.nearest(name, known)
      shown = ', '.join(f'{k} ({type(node[k]).__name__})' for k in known)
      return f'unknown field {name!r}.{near} {where} has: {shown}.'
    node = node[name]
  kind = type(node)
  valid = True
  if kind is bool:
    valid = value.lower() in ('true', 'false', '1', '0')
  elif kind in (int, float):
    try:
      kind(value)
    except ValueError:
      valid = False
  elif kind is tuple:
    valid = _tuple(value) is not None
  return '' if valid else f'{value!r} is not {kind.__name__}, as {node!r} is.'


def set_field(config: ml_collections.ConfigDict, name: str, value: str) -> None:
  """Sets the field `name` ('a.b') to a text, read as the type that it has."""
  *path, last = name.split('.')
  node = config
  for part in path:
    node = node[part]
  old = node[last]
  if isinstance(old, bool):
    node[last] = value.lower() in ('true', '1')
  elif isinstance(old, (int, float)):
    node[last] = type(old)(value)
  elif isinstance(old, tuple):
    node[last] = _tuple(value)
  else:
    text = isinstance(old, str)
    node[last] = os.path.expanduser(value) if text else ast.literal_eval(value)


def _tuple(value: str) -> tuple[Any, ...] | None:
  """A text as a field's flag reads it; None if it is no tuple."""
  try:
    return tuple_parser.TupleParser().parse(value)
  except (ValueError, SyntaxError, TypeError):
    return None
