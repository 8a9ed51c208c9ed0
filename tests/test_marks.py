"""Tests that a machine cannot run say so; those that need a mark bear it."""

import ast
import pathlib
import re

import marks
import pytest

ROOT = pathlib.Path(__file__).resolve().parent


class Item:
  """A test of pytest's with these marks."""

  def __init__(self, *given):
    self._marks = {x.name: x for x in given}

  def get_closest_marker(self, name):
    return self._marks.get(name)


@pytest.mark.parametrize(
  'given, devices, backend, reason',
  [
    ([], 1, 'gpu', None),
    ([pytest.mark.devices(4).mark], 4, 'cpu', None),
    ([pytest.mark.devices(4).mark], 8, 'gpu', None),
    ([pytest.mark.devices(4).mark], 1, 'gpu', 'needs 4 devices, has 1'),
    ([pytest.mark.cpu_bits.mark], 1, 'cpu', None),
    ([pytest.mark.cpu_bits.mark], 4, 'gpu', 'on CPUs alone, and this is a gpu'),
  ],
)
def test_a_test_is_skipped_with_its_reason(given, devices, backend, reason):
  found = marks.reason_to_skip(Item(*given), devices=devices, backend=backend)
  if reason is None:
    assert found is None
  else:
    assert reason in found


def test_conftest_asks_for_the_reason(request):
  plugins = request.config.pluginmanager
  conftest = plugins.get_plugin(str(ROOT / 'conftest.py'))
  item = Item(pytest.mark.devices(10**6).mark)
  with pytest.raises(pytest.skip.Exception, match='needs 1000000 devices'):
    conftest.pytest_runtest_setup(item)
  conftest.pytest_runtest_setup(Item())


# Of what `make test-gpu` runs: one device would be compared with itself.
_OF_DEVICES = re.compile(r'four_devices|one_device_.*four')


def _unmarked(path):
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if not isinstance(node, ast.FunctionDef):
      continue
    if node.name.startswith('test_') and _OF_DEVICES.search(node.name):
      text = ' '.join(map(ast.unparse, node.decorator_list))
      if 'mark.devices' not in text:
        yield f'{path.relative_to(ROOT)}: {node.name}'


def test_who_compares_devices_is_marked():
  paths = [
    path
    for path in sorted(ROOT.rglob('test_*.py'))
    if 'distributed' not in path.parts  # Processes make their devices.
  ]
  names = [name for path in paths for name in _unmarked(path)]
  assert not names, names


def test_an_unmarked_one_is_found(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), 'ROOT', tmp_path)
  path = tmp_path / 'test_x.py'
  path.write_text(
    'def test_one_device_equals_four(): pass\n'
    '@pytest.mark.devices(4)\ndef test_four_devices_agree(): pass\n'
    'def test_bleu_has_four_parts(): pass\n'
  )
  assert list(_unmarked(path)) == ['test_x.py: test_one_device_equals_four']


def test_one_gpu_is_tested_at_full_precision():
  made = (ROOT.parent / 'Makefile').read_text('utf-8')
  recipe = made.partition('\ntest-gpu:')[2].partition('\n\n')[0]
  for setting in (
    'JAX_PLATFORMS=cuda',
    'XLA_PYTHON_CLIENT_PREALLOCATE=false',  # Processes share the card.
    'JAX_DEFAULT_MATMUL_PRECISION=highest',
  ):
    assert setting in recipe


def test_dear_tests_exist_and_leave_one_in_their_file():
  listed = (ROOT / 'dear.txt').read_text('utf-8').splitlines()
  assert listed == sorted(set(listed))
  of_files = {}
  for line in listed:
    file, _, name = line.partition('::')
    of_files.setdefault(file, set()).add(name)
  for file, names in of_files.items():
    tree = ast.parse((ROOT / file).read_text('utf-8'))
    defined = {
      x.name
      for x in ast.walk(tree)
      if isinstance(x, ast.FunctionDef) and x.name.startswith('test_')
    }
    assert names < defined, (file, names - defined)
    assert all(marks.may_be_dear(f'tests/{file}::{x}') for x in names), file


def test_make_test_leaves_out_what_is_listed(request):
  listed = marks.dear()
  assert (
    'tests/models/test_deep.py::test_clipped_gradients_are_the_same' in listed
  )
  for item in request.session.items:
    marked = item.get_closest_marker('dear') is not None
    assert marked == (marks.name_of(item.nodeid) in listed), item
