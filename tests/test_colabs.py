"""Executes every notebook from a fresh kernel."""

import os
import pathlib
import resource

import compiling
import pytest

pytestmark = pytest.mark.colab

_NOTEBOOKS = sorted(
  (pathlib.Path(__file__).parent.parent / 'colabs').glob('*.ipynb')
)
# Seconds of CPU, of which two cores give two a second. The first shows the idea
# of the project and is short; machines differ by a factor of two.
_LIMIT = {'00_tour': 180}


# What `conftest.py` sets.
_OF_TESTS = (
  'XLA_FLAGS',
  'JAX_DISABLE_MOST_OPTIMIZATIONS',
  'JAX_NUMPY_RANK_PROMOTION',
  'JAX_TRACEBACK_IN_LOCATIONS_LIMIT',
  'OPENBLAS_NUM_THREADS',
)


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_in_minutes(path, tmp_path, record_property):
  nbclient = pytest.importorskip('nbclient', reason='needs the extra colab')
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    assert not cell.get('outputs'), f'{path.name}: strip outputs before commit'
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,  # Of a cell, beside another notebook.
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  # As a user's kernel is: one device, optimized programs, though by half.
  env = {
    name: value for name, value in os.environ.items() if name not in _OF_TESTS
  }
  env['XLA_FLAGS'] = compiling.flags_of_notebooks()
  client.execute(env=env)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  seconds = sum(after[:2]) - sum(before[:2])
  record_property('house', f'{path.stem}: {seconds:.0f} s of CPU')
  shown = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(shown) >= 3, 'the figures are not shown'
  assert 0 < seconds < _LIMIT.get(path.stem, 360), f'it took {seconds:.0f} s'
