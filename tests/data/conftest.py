"""A cache folder of the tests' own."""

import os

import pytest


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
