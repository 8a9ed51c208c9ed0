"""Tests that a machine cannot run say so; those that need a mark bear it."""

import ast
import os
import pathlib
import re
import types

import marks
import pytest
import spreading

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


def _tests_of(tree, within=''):
  """Name -> whether it starts processes, of a file's tests."""
  found, all_slow = {}, False
  for node in tree.body:
    if isinstance(node, ast.ClassDef):
      found |= _tests_of(node, f'{node.name}::')
    elif isinstance(node, ast.Assign) and 'pytestmark' in ast.unparse(node):
      all_slow |= 'mark.slow' in ast.unparse(node)
    elif isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
      text = ' '.join(map(ast.unparse, node.decorator_list))
      found[within + node.name] = 'mark.slow' in text
  return {name: slow or all_slow for name, slow in found.items()}


def test_dear_tests_exist_and_leave_one_in_their_file():
  listed = (ROOT / 'dear.txt').read_text('utf-8').splitlines()
  assert listed == sorted(set(listed))
  of_files = {}
  for line in listed:
    file, _, name = line.partition('::')
    of_files.setdefault(file, set()).add(name)
  for file, names in of_files.items():
    tests = _tests_of(ast.parse((ROOT / file).read_text('utf-8')))
    assert names <= set(tests), (file, names - set(tests))
    assert {x for x, slow in tests.items() if not slow} - names, file
    assert all(marks.may_be_dear(f'tests/{file}::{x}') for x in names), file


def test_peers_are_imported_by_those_who_ask_for_them(request):
  plugins = request.config.pluginmanager
  conftest = plugins.get_plugin(str(ROOT / 'conftest.py'))

  def ignored(path, asked):
    option = types.SimpleNamespace(markexpr=asked)
    return conftest.pytest_ignore_collect(
      path, types.SimpleNamespace(option=option)
    )

  assert ignored(ROOT / 'parity', 'not slow and not parity')
  for path, asked in (
    (ROOT / 'parity', 'parity'),
    (ROOT / 'parity', 'not colab'),
    (ROOT / 'parity', ''),
    (ROOT / 'models', 'not slow and not parity'),
  ):
    assert ignored(path, asked) is None  # As pytest would have it.
  # Nothing else is left out with them.
  for path in (ROOT / 'parity').glob('test_*.py'):
    assert 'pytestmark = pytest.mark.parity' in path.read_text('utf-8'), path


class Named(Item):
  """One that has a name and takes marks."""

  def __init__(self, nodeid, *given):
    super().__init__(*given)
    self.nodeid = nodeid
    self.path = nodeid.partition('::')[0]

  def add_marker(self, decorator):
    self._marks[decorator.name] = decorator


def test_make_test_leaves_out_what_is_listed(request):
  listed = marks.dear()
  name = 'tests/models/test_deep.py::test_clipped_gradients_are_the_same'
  assert name in listed
  items = [Named(f'{name}[a case]'), Named(f'{name}_too')]
  marks.mark_dear(items)
  assert [x.get_closest_marker('dear') is not None for x in items] == [1, 0]
  for item in request.session.items:
    if marks.name_of(item.nodeid) in listed:
      assert item.get_closest_marker('dear') is not None, item


def test_what_takes_long_begins_first():
  slow = pytest.mark.slow.mark
  items = [Named(x) for x in ('few::a', 'many::c', 'many::b', 'none::a')]
  items += [Named('starts::b'), Named('starts::a', slow)]
  spreading.put_long_files_first(items)
  assert [x.nodeid for x in items] == (
    ['starts::b', 'starts::a', 'many::c', 'many::b', 'few::a', 'none::a']
  )


@pytest.mark.parametrize(
  'worker, count, cores, own',
  [
    ('gw0', '2', {0, 1}, [0]),
    ('gw1', '2', {0, 1}, [1]),
    ('gw1', '2', {2, 3, 5, 7, 8}, [3, 7]),
    ('gw2', '4', {4, 6}, [4]),
  ],
)
def test_each_worker_has_cores_of_its_own(
  worker, count, cores, own, monkeypatch
):
  taken = []
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores, False)
  monkeypatch.setattr(
    os, 'sched_setaffinity', lambda pid, x: taken.append((pid, x)), False
  )
  spreading.keep_to_own_cores({})
  assert not taken  # All of a process without workers.
  spreading.keep_to_own_cores(
    {'PYTEST_XDIST_WORKER': worker, 'PYTEST_XDIST_WORKER_COUNT': count}
  )
  assert taken == [(0, own)]


def test_processes_of_one_job_may_use_all_cores(monkeypatch):
  taken = []
  monkeypatch.setattr(spreading, '_ALL', {0, 1})

  def take(pid, cores):
    taken.append((pid, cores))
    raise ProcessLookupError

  monkeypatch.setattr(os, 'sched_setaffinity', take, False)
  spreading.take_all_cores(7)
  assert taken == [(7, {0, 1})]
