"""Taking one part must not bring in what it does not need."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_CODE = """
import importlib, pkgutil, sys
for name in (
  'repjax.layers', 'repjax.models', 'repjax.optim', 'repjax.privacy'
):
  package = importlib.import_module(name)
  for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f'{name}.{module.name}')
print(sorted(set(m.partition('.')[0] for m in sys.modules)))
"""


@pytest.fixture(scope='module')
def loaded():
  """Top-level packages that come with layers, models, optim and privacy."""
  result = subprocess.run(
    [sys.executable, '-c', _CODE], capture_output=True, text=True, check=True
  )
  return ast_list(result.stdout)


def ast_list(text):
  import ast

  return ast.literal_eval(text.strip().splitlines()[-1])


def test_parts_load_what_they_need(loaded):
  assert {'jax', 'flax', 'optax', 'numpy'} <= set(loaded)


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
