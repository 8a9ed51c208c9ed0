"""Every module can be imported, and a part brings in no more than it needs."""

import importlib
import subprocess
import sys

import launching
import pytest

_LAUNCHERS = sorted(
  path.stem for path in (launching.ROOT / 'launch').glob('[a-z]*.py')
)
_OTHERS = sorted(
  '.'.join(path.relative_to(launching.ROOT).with_suffix('').parts)
  for folder in ('repjax', 'configs', 'launch')
  for path in (launching.ROOT / folder).rglob('[a-z]*.py')
  if path.parent.name != 'launch'
)


@pytest.mark.versions
@pytest.mark.parametrize('module', _OTHERS)
def test_every_module_is_imported(module):
  importlib.import_module(module)


@pytest.mark.versions
@pytest.mark.parametrize('module', _LAUNCHERS)
def test_every_launcher_tells_its_flags(module):
  code, output = launching.call(module, '--help')
  assert code == 0
  assert 'flags:' in output
  assert f'python -m launch.{module}' in output


_PARTS = ('repjax.layers', 'repjax.models', 'repjax.optim', 'repjax.privacy')
_CODE = f"""
import importlib, sys
for module in {[x for x in _OTHERS if x.startswith(_PARTS)]}:
  importlib.import_module(module)
print(*{{x.partition('.')[0] for x in sys.modules}})
"""


@pytest.fixture(scope='module')
def loaded():
  """Top-level packages that come with layers, models, optim and privacy."""
  result = subprocess.run(
    [sys.executable, '-c', _CODE], capture_output=True, text=True, check=True
  )
  return result.stdout.split()


@pytest.mark.slow
def test_parts_load_what_they_need(loaded):
  assert {'jax', 'flax', 'optax', 'numpy'} <= set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
  'package',
  [
    'tensorflow_datasets',
    'tensorflow',
    'orbax',
    'grain',
    'sklearn',
    'matplotlib',
    'tensorboardX',
    'torch',
    'dp_accounting',
  ],
)
def test_parts_load_nothing_else(loaded, package):
  assert package not in loaded


@pytest.mark.slow
@pytest.mark.parametrize(
  ('names', 'private'),
  [('configs.sam, repjax.run', False), ('configs.dp_tuning', True)],
)
def test_who_does_not_ask_for_privacy_loads_none_of_it(names, private):
  code = f'import sys, {names}; print(*sys.modules)'
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  modules = result.stdout.split()
  assert 'repjax.gradients' in modules
  of_privacy = [
    x for x in modules if x.startswith(('repjax.privacy', 'dp_accounting'))
  ]
  assert bool(of_privacy) == private, of_privacy
