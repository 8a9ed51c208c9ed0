"""Every command of the README: its flags are right, and what can run runs."""

import re
import shlex

import launching
import numpy as np
import pytest

_README = launching.ROOT / 'README.md'


def _commands():
  """(module, arguments) of the launches in the README, in its order."""
  text = re.sub(r'\\\n\s*', ' ', _README.read_text('utf-8'))
  found = []
  for line in text.splitlines():
    # Commands of their own, behind srun and the like, and inside of a line.
    for call in re.findall(r'python -m launch\.(\w+)([^`]*)', line):
      module, rest = call
      try:
        arguments = shlex.split(rest, comments=True)
      except ValueError:  # The end of a quotation around the command.
        arguments = shlex.split(rest.rstrip('"'), comments=True)
      found.append((module, tuple(arguments)))
  return found


_COMMANDS = _commands()


def _name(command):
  module, arguments = command
  shown = [x for x in arguments if x.startswith(('--config=', '--workdir='))]
  return ' '.join([module, *(x.rpartition('/')[2] for x in shown)])


def test_the_commands_are_found():
  modules = {module for module, _ in _COMMANDS}
  launchers = {x.stem for x in (launching.ROOT / 'launch').glob('[a-z]*.py')}
  assert modules <= launchers
  assert launchers <= modules, 'a launcher that the README does not show'
  assert len(_COMMANDS) > 40


@pytest.mark.parametrize('command', _COMMANDS, ids=_name)
def test_flags_and_fields_of_a_command_are_there(command):
  module, arguments = command
  code, output = launching.call(module, *arguments, '--only_check_args')
  assert code == 0, output


# What needs more than comes with repjax, and what takes minutes.
_NEEDS = (
  '--data_dir=',
  'FOLDER',
  'FILE',
  '$SHARED',
  '/mnt/shared',
  'package:',
  'walker-walk',
  '--config.data.name=cifar10',
)
_LONG = ('reproduce', 'benchmark', 'grid', 'prepare', 'configs')


def _can_run(command):
  module, arguments = command
  text = ' '.join(arguments)
  return module not in _LONG and not any(x in text for x in _NEEDS)


def _quick(argument, folder):
  """An argument for seconds, in a folder of its own."""
  argument = re.sub(r'(--config=\S+):small', r'\1:smoke', argument)
  argument = argument.replace('=runs/', f'={folder}/runs/')
  argument = argument.replace('=KEY', f'={folder}/KEY')
  return re.sub(r'=(\w+\.csv)$', rf'={folder}/\1', argument)


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
  """A folder with the files that commands name as a user's own."""
  folder = tmp_path_factory.mktemp('readme')
  rng = np.random.default_rng(0)
  hours = np.arange(1500)
  load = np.sin(hours / 24 * 2 * np.pi) + 0.1 * rng.normal(size=len(hours))
  times = np.datetime64('2026-01-01T00') + hours
  for name in ('my', 'pump'):
    lines = [
      f'{str(t).replace("T", " ")}:00:00,{x:.3f},{-x:.3f}'
      for t, x in zip(times, load, strict=True)
    ]
    text = 'time,load,temperature\n' + '\n'.join(lines) + '\n'
    (folder / f'{name}.csv').write_text(text)
  (folder / 'KEY').write_bytes(rng.bytes(32))
  (folder / 'KEY').chmod(0o600)
  return folder


# In their order: some go on from what others have left.
@pytest.mark.slow
@pytest.mark.parametrize(
  'command', [x for x in _COMMANDS if _can_run(x)], ids=_name
)
def test_a_command_runs_as_it_is_printed(command, workplace):
  module, arguments = command
  code, output = launching.call(
    module, *(_quick(argument, workplace) for argument in arguments)
  )
  assert code == 0, output
