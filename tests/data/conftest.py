"""A cache folder of the tests' own, and the real sets where they are."""

import os
import pathlib

import pytest

_REAL = os.environ.get('REPJAX_TEST_DATA', '../shared/tfds')
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cache')
  old = os.environ.get('REPJAX_CACHE')
  os.environ['REPJAX_CACHE'] = str(folder)
  yield folder
  if old is None:
    del os.environ['REPJAX_CACHE']
  else:
    os.environ['REPJAX_CACHE'] = old


@pytest.fixture(scope='session')
def real_data():
  """Folder of prepared standard sets."""
  folder = (_ROOT / _REAL).resolve()
  if not (folder / 'mnist').exists():
    pytest.skip(f'no prepared mnist in {folder}; set REPJAX_TEST_DATA')
  return str(folder)
