"""Every command of the README: its flags are right, and what can run runs."""

import re
import shlex

import launching
import numpy as np
from PIL import Image
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
  '--data_dir=~/tensorflow_datasets',
  '--data_dir=~/wilds',
  'FOLDER',
  'FILE',
  '$SHARED',
  '/mnt/shared',
  'package:',
  'walker-walk',
  '--config.data.name=cifar10',
  'wandb',
)
_LONG = ('reproduce', 'benchmark', 'grid', 'prepare', 'configs')


def _can_run(command):
  module, arguments = command
  text = ' '.join(arguments)
  if module in _LONG or any(x in text for x in _NEEDS):
    return False
  if module in ('train', 'sweep'):
    return True
  # What goes on from a run needs one that was trained here.
  runs = {x for x in arguments if x.startswith('--workdir=')}
  trained = {x for other in _COMMANDS if _trains(other) for x in other[1]}
  return runs <= trained


def _trains(command):
  return command[0] == 'train' and _can_run(command)


def _quick(argument, folder):
  """An argument for seconds, in a folder of its own."""
  argument = re.sub(r'(--config=\S+):small', r'\1:smoke', argument)
  # How many it draws is left to chance, and there may be many times as many.
  argument = re.sub(r'^(--expected_trials)=.*', r'\1=1.2', argument)
  argument = argument.replace('=runs/', f'={folder}/runs/')
  argument = argument.replace('=KEY', f'={folder}/KEY')
  argument = argument.replace('=~/', f'={folder}/')
  return re.sub(r'=(\w+\.(csv|npz|png)|\w+/)$', rf'={folder}/\1', argument)


def _append(path, start, stop):
  """Writes hours of a series behind those that a file has."""
  hours = np.arange(start, stop)
  noise = np.random.default_rng(start).normal(size=len(hours))
  load = np.sin(hours / 24 * 2 * np.pi) + 0.1 * noise
  times = np.datetime64('2026-01-01T00') + hours
  with path.open('a') as file:
    for time, x in zip(times, load, strict=True):
      stamp = str(time).replace('T', ' ')
      file.write(f'{stamp}:00:00,{x:.3f},{-x:.3f}\n')


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
  """A folder with the files that commands name as a user's own."""
  folder = tmp_path_factory.mktemp('readme')
  rng = np.random.default_rng(0)
  for name, hours in (('my', 1500), ('pump', 1500), ('newer', 1600)):
    (folder / f'{name}.csv').write_text('time,load,temperature\n')
    _append(folder / f'{name}.csv', 0, hours)
  grey = rng.integers(0, 256, (200, 32, 32), np.uint8)
  for i, pixels in enumerate(grey):
    for group in ('pets', 'others'):
      place = folder / group / ('cat', 'dog')[i % 2] / f'{i}.png'
      place.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(place)
  (folder / 'new').mkdir()
  Image.fromarray(grey[0]).save(folder / 'new' / 'one.png')
  # The demo's images are digits.
  Image.fromarray(grey[0, :8, :8]).save(folder / 'my.png')
  np.savez(
    folder / 'my.npz',
    features=rng.random((200, 4)),
    labels=np.arange(200) % 5,
  )
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
  if '--split=new' in arguments:  # 'rows appended since'
    _append(workplace / 'my.csv', 1500, 1700)
  code, output = launching.call(
    module, *(_quick(argument, workplace) for argument in arguments)
  )
  assert code == 0, output


def test_programs_that_are_called_are_installed_there():
  text = _README.read_text('utf-8')
  called = set(re.findall(r'^    (tensorboard|wandb|mlflow) ', text, re.M))
  installed = ' '.join(re.findall(r'^    pip install (.*)', text, re.M))
  assert called
  assert all(re.search(rf'\b{x}\b', installed) for x in called)
