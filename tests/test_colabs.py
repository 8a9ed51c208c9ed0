"""Executes every notebook from a fresh kernel."""

import os
import pathlib
import time

import pytest

pytestmark = pytest.mark.colab

_NOTEBOOKS = sorted(
  (pathlib.Path(__file__).parent.parent / 'colabs').glob('*.ipynb')
)
# Seconds on two cores. The first shows the idea of the project and is short;
# the others take about a minute and a half, and machines differ.
_LIMIT = {'00_tour': 120}


# What `conftest.py` sets.
_OF_TESTS = (
  'XLA_FLAGS',
  'JAX_DISABLE_MOST_OPTIMIZATIONS',
  'JAX_NUMPY_RANK_PROMOTION',
)


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_in_minutes(path, tmp_path):
  nbclient = pytest.importorskip('nbclient', reason='needs the extra colab')
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    assert not cell.get('outputs'), f'{path.name}: strip outputs before commit'
  started = time.monotonic()
  client = nbclient.NotebookClient(
    notebook,
    timeout=240,  # Of a cell; the whole is limited below.
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  # As a user's kernel is: one device, optimized programs.
  env = {
    name: value for name, value in os.environ.items() if name not in _OF_TESTS
  }
  client.execute(env=env)
  seconds = time.monotonic() - started
  shown = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(shown) >= 3, 'the figures are not shown'
  assert seconds < _LIMIT.get(path.stem, 240), f'it took {seconds:.0f} s'
