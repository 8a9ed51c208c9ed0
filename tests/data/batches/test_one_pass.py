"""One pass over a stream: its order, its end, resumption, processes."""

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import one_pass
from repjax.data.images import transforms
from repjax.data.reading import source

_ROWS = 23
_ONE = {'process_index': 0, 'process_count': 1}


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return source.from_arrays(
    'rows',
    {
      'image': rng.integers(1, 256, (_ROWS, 4, 4, 1), np.uint8),
      'label': np.arange(_ROWS) % 4,
    },
    num_classes=4,
  )


def make(rows, **settings):
  return one_pass.one_pass_batches(
    rows, **{'batch_size': 8, **_ONE, **settings}
  )


def same(first, second):
  assert first.keys() == second.keys()
  for name, values in first.items():
    np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize(
  ('batch_size', 'steps'), [(1, 23), (8, 3), (23, 1), (40, 1)]
)
def test_every_row_comes_once_in_the_order_of_the_source(
  rows, batch_size, steps
):
  stream = make(rows, batch_size=batch_size)
  assert stream.num_steps == steps
  batches = list(stream.iterate())
  assert len(batches) == steps
  real = [batch['mask'] > 0 for batch in batches]
  for name, expected in (
    ('index', np.arange(_ROWS)),
    ('image', rows.read(np.arange(_ROWS))['image']),
  ):
    seen = [x[name][mask] for x, mask in zip(batches, real, strict=True)]
    np.testing.assert_array_equal(np.concatenate(seen), expected)
  # Padding stands at the end, and batches have one shape.
  assert all(len(mask) == batch_size for mask in real)
  assert (np.diff(np.concatenate(real).astype(int)) <= 0).all()
  assert stream.expected_rows == _ROWS / steps


def test_beyond_the_end_is_padding_alone(rows):
  stream = make(rows)
  for step in (3, 4, 100):
    batch = stream.batch(step)
    assert batch['image'].shape == (8, 4, 4, 1)
    assert not batch['mask'].any()


@pytest.mark.parametrize('num_threads', [0, 2])
@pytest.mark.parametrize('start', [0, 1, 2, 3])
def test_a_run_goes_on_from_any_step(rows, start, num_threads):
  stream = make(
    rows, transform=transforms.random_flip(), num_threads=num_threads
  )
  found = list(stream.iterate(start))
  assert len(found) == 3 - start
  for step, batch in enumerate(found, start):
    same(batch, stream.batch(step))


def test_draws_are_those_of_the_seed_and_the_step(rows):
  flip = transforms.random_flip()
  stream, again, other = (
    make(rows, transform=flip, seed=seed) for seed in (1, 1, 2)
  )
  same(stream.batch(1), again.batch(1))
  assert (stream.batch(1)['image'] != other.batch(1)['image']).any()
  np.testing.assert_array_equal(
    stream.batch(1)['index'], other.batch(1)['index']
  )


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_batch_of_one(rows, count):
  flip = transforms.random_flip()
  whole = make(rows, transform=flip)
  parts = [
    make(rows, transform=flip, process_index=i, process_count=count)
    for i in range(count)
  ]
  for step in range(4):
    shared = [part.batch(step) for part in parts]
    joined = {x: np.concatenate([p[x] for p in shared]) for x in shared[0]}
    same(whole.batch(step), joined)


def test_a_batch_that_does_not_divide_over_processes_is_refused(rows):
  with pytest.raises(types.InputError, match='batch_size=9'):
    make(rows, batch_size=9, process_index=0, process_count=2)
