"""What launchers print about themselves and about recipes.

--help                        what it does, its flags, the recipes by name
--config=FILE:PRESET --help   a recipe: its docstring, presets and fields
--config=... --print_config   all fields as they are after the overrides
"""

import ast
from collections.abc import Iterator
from collections.abc import Sequence
import os
import pathlib
import shutil
import sys
import textwrap
from typing import Any

from absl import flags
import ml_collections

from configs import presets
from launch.lib import field_notes
from launch.lib import recipes

_HELP = ('-h', '--help', '-help', '--helpshort', '-helpshort')
_ALL_HELP = (*_HELP, '--helpfull', '-helpfull', '--helpxml', '-helpxml')
# What every launcher is asked for first, in this order; then its own flags.
_FIRST = ('config', 'workdir', 'data_dir', 'platform')
# Of jobs with several processes, and of who looks for what goes wrong.
_LAST = (
  'coordinator_address',
  'num_processes',
  'process_id',
  'distributed',
  'compilation_cache',
)


def asks_for_help(arguments: Sequence[str]) -> bool:
  """Whether one of the arguments asks for what stands here."""
  return any(x in _HELP for x in arguments)


def asks_for_all_help(arguments: Sequence[str]) -> bool:
  """The same, or for the flags of all libraries, which absl prints."""
  return any(x in _ALL_HELP for x in arguments)


def show(text: str) -> None:
  """Prints; whoever has read enough (`| head`) may close the pipe."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def launcher() -> str:
  """What --help of the launcher that runs prints."""
  doc = (sys.modules['__main__'].__doc__ or '').strip()
  first, own, last = _flags()
  lines = [doc, '', 'flags:']
  for group in (first, own, last):
    for flag in group:
      lines += _flag(flag)
    if group:
      lines.append('')
  if any(flag.name == 'config' for flag in first):
    names = ', '.join(path.stem for path in recipes.config_files())
    lines += _wrapped(f'Recipes (configs/NAME.py): {names}.')
    lines += [
      '',
      'python -m launch.configs            what each is, its presets and needs',
      '--config=configs/NAME.py --help     one of them, with all its fields',
    ]
  lines.append(
    '--helpfull                          the flags of libraries, too'
  )
  return '\n'.join(lines)


def recipe(file: str, preset: str) -> str:
  """What --config=FILE:PRESET --help prints."""
  path = pathlib.Path(file)
  doc = ast.get_docstring(ast.parse(path.read_text('utf-8'))) or ''
  module = recipes.load_config_module(file)
  layers = getattr(module, 'PRESETS', None)
  names = f'Presets: {", ".join(presets.names(layers))}. ' if layers else ''
  of = f' of {preset or "paper"}' if layers or preset else ''
  config = module.get_config(*([preset] if preset else []))
  return '\n'.join(
    [
      doc.strip(),
      '',
      f'{names}Fields{of}, each overridden by --config.NAME=VALUE:',
      '',
      *_fields(path, config, config),
    ]
  )


def config(file: str, preset: str, changed: ml_collections.ConfigDict) -> str:
  """What --print_config prints: each field, and the preset's where changed."""
  module = recipes.load_config_module(file)
  usual = module.get_config(*([preset] if preset else []))
  count = sum(
    value != presets.fields(usual).get(name)
    for name, value in presets.fields(changed).items()
  )
  return '\n'.join(
    [
      f'# {file}:{preset or "paper"}, {count} overridden',
      *_fields(pathlib.Path(file), changed, usual),
    ]
  )


def _flags() -> tuple[list[Any], list[Any], list[Any]]:
  """Flags of ours: first ones, the launcher's own, last ones."""
  main = pathlib.Path(sys.argv[0]).name
  found = {
    flag.name: flag
    for module, group in flags.FLAGS.flags_by_module_dict().items()
    for flag in group
    if module.startswith('launch.') or pathlib.Path(module).name == main
    if not flag.name.startswith('config.')
  }
  first = [found[name] for name in _FIRST if name in found]
  last = [found[name] for name in _LAST if name in found]
  own = [flag for name, flag in found.items() if name not in (*_FIRST, *_LAST)]
  return first, own, last


def _flag(flag) -> Iterator[str]:
  values = f'={"|".join(flag.parser.enum_values)}' if _is_enum(flag) else ''
  yield f'  --{flag.name}{values}'
  text = flag.help.strip().removeprefix(f'<{values[1:]}>: ')  # By absl.
  if flag.default not in (None, '', [], False):
    text += f' (default: {_default(flag)})'
  yield from _wrapped(text, '      ')


def _is_enum(flag) -> bool:
  return isinstance(flag.parser, flags.EnumParser)


def _default(flag) -> str:
  if isinstance(flag.default, list):
    return ','.join(flag.default)
  if isinstance(flag.default, float):
    return f'{flag.default:.6g}'
  return str(flag.default).lower() if flag.boolean else str(flag.default)


def _fields(path, fields, usual) -> Iterator[str]:
  values, before = presets.fields(fields), presets.fields(usual)
  notes = field_notes.notes(path, list(values))
  width = min(40, max(len(f'{k} = {x!r}') for k, x in values.items()))
  for name, value in values.items():
    text = notes[name]
    if value != before.get(name):
      text = f'[OVERRIDDEN: the preset has {before.get(name)!r}] {text}'
    line = f'{name} = {value!r}'
    room = max(30, _columns() - width - 4)
    words = textwrap.wrap(text, room) or ['']
    if len(line) > width:
      yield line
      line = ''
    for i, part in enumerate(words):
      yield f'{line if not i else "":{width}}  # {part}' if part else line


def _wrapped(text: str, indent: str = '') -> list[str]:
  return textwrap.wrap(
    text,
    _columns(),
    initial_indent=indent,
    subsequent_indent=indent,
    break_on_hyphens=False,
    break_long_words=False,
  )


def _columns() -> int:
  return min(100, max(60, shutil.get_terminal_size((80, 24)).columns))
