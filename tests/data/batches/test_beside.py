"""Rows of two sets stand side by side, each set in epochs of its own."""

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import beside
from repjax.data.batches import in_order
from repjax.data.reading import source as sources


def _batches(first, num_rows, *, seed=0, batch_size=4):
  rows = sources.from_arrays(
    'rows',
    {
      'features': first + np.arange(num_rows, dtype=np.float32)[:, None],
      'label': np.arange(num_rows) % 2,
    },
    num_classes=2,
  )
  return in_order.train_batches(
    rows, batch_size=batch_size, seed=seed, process_index=0, process_count=1
  )


def test_each_set_goes_through_epochs_of_its_own():
  both = beside.beside(
    _batches(0, 6), _batches(100, 8, seed=1), {'features': 'other'}
  )
  steps = [both.batch(i) for i in range(6)]
  assert set(steps[0]) == {'features', 'label', 'mask', 'index', 'other'}
  own = np.concatenate([x['features'] for x in steps])[:, 0]
  other = np.concatenate([x['other'] for x in steps])[:, 0]
  for epoch in own.reshape(4, 6):
    assert sorted(epoch) == list(range(6))
  for epoch in other.reshape(3, 8):
    assert sorted(epoch) == list(range(100, 108))
  np.testing.assert_array_equal(
    np.concatenate([x['label'] for x in steps]), own % 2
  )


def test_a_stream_that_goes_on_has_the_same_batches():
  both = beside.beside(_batches(0, 6), _batches(100, 8), {'features': 'other'})
  stream = both.iterate(2)
  for step in (2, 3, 4):
    expected, found = both.batch(step), next(stream)
    assert expected.keys() == found.keys()
    for name, x in expected.items():
      np.testing.assert_array_equal(found[name], x)
  stream.close()
  assert both.expected_rows == 4


def test_a_fingerprint_tells_both_sets():
  columns = {'features': 'other'}
  prints = {
    beside.beside(_batches(*x), _batches(*y), columns).fingerprint()
    for x, y in [((0, 6), (9, 6)), ((9, 6), (0, 6)), ((0, 6), (8, 6))]
  }
  assert len(prints) == 3


def test_sets_that_do_not_fit_are_refused():
  with pytest.raises(types.InputError, match='as many of both'):
    beside.beside(_batches(0, 6), _batches(0, 6, batch_size=2), {})
  with pytest.raises(types.InputError, match="columns \\['label'\\]"):
    beside.beside(_batches(0, 6), _batches(0, 6), {'features': 'label'})


@pytest.mark.parametrize('sizes', [(5, 12), (12, 5)])
def test_pairs_keep_rows_whole_and_count_them_alike(sizes):
  first, second = (
    {f'{name}_{i}': np.arange(n) * 10**i for i in range(2)}
    for name, n in zip('ab', sizes, strict=True)
  )
  found = beside.pairs(first, second, times=3, seed=0)
  total = 3 * max(sizes)
  partners = set()
  for name, size in zip('ab', sizes, strict=True):
    rows = found[f'{name}_0']
    np.testing.assert_array_equal(found[f'{name}_1'], rows * 10)
    counts = np.bincount(rows, minlength=size)
    assert counts.sum() == total
    assert counts.max() - counts.min() == (total % size > 0)
  partners = set(zip(found['a_0'].tolist(), found['b_0'].tolist(), strict=True))
  assert len(partners) > max(sizes)  # A row stands beside different ones.


def test_sets_of_one_size_are_paired_by_the_seed():
  first, second = {'a': np.arange(9)}, {'b': np.arange(9)}
  one, again, other = (
    beside.pairs(first, second, times=2, seed=x) for x in (0, 0, 1)
  )
  assert (one['a'] != one['b']).any()
  for name in 'ab':
    np.testing.assert_array_equal(one[name], again[name])
    assert (one[name] != other[name]).any()
