"""Poisson sampling: rates, independence, resumption, overflow."""

import itertools

import numpy as np
import pytest
from scipy import special
from scipy import stats

from repjax import types
from repjax.data.batches import in_order
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.images import transforms
from repjax.data.reading import source

_ROWS = 40
_ONE = {'process_index': 0, 'process_count': 1}


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return source.from_arrays(
    'rows',
    {
      'image': rng.integers(0, 256, (_ROWS, 4, 4, 1), np.uint8),
      'label': np.arange(_ROWS) % 4,
    },
    num_classes=4,
  )


def make(rows, **settings):
  settings = {'rate': 0.2, 'capacity': 24, 'seed': 1, **_ONE, **settings}
  return poisson.poisson_batches(rows, **settings)


def test_every_row_is_drawn_at_the_rate_and_independently():
  steps, rate = 4000, 0.15
  drawn = np.zeros((steps, _ROWS))
  for step in range(steps):
    picked = poisson.rows_at(step, _ROWS, rate, seed=3)
    drawn[step, picked] += 1
  assert drawn.max() == 1  # No row twice.
  spread = np.sqrt(rate * (1 - rate) / steps)
  assert np.abs(drawn.mean(0) - rate).max() < 4.5 * spread
  correlation = np.corrcoef(drawn.T) - np.eye(_ROWS)
  assert np.abs(correlation).max() < 5 / np.sqrt(steps)
  # The number of rows is binomial, and steps do not know each other.
  counts = drawn.sum(1)
  expected = stats.binom.pmf(np.arange(3, 10), _ROWS, rate)
  found = [(counts == k).mean() for k in range(3, 10)]
  np.testing.assert_allclose(found, expected, atol=0.03)
  assert abs(np.corrcoef(counts[1:], counts[:-1])[0, 1]) < 0.08


def test_batches_have_one_shape_and_mark_their_real_rows(rows):
  loader = make(rows)
  assert loader.expected_batch_size == 8
  for step in range(20):
    batch = loader.batch(step)
    real = batch['mask'] > 0
    expected = poisson.rows_at(step, _ROWS, 0.2, 1)
    assert batch['image'].shape == (24, 4, 4, 1)
    np.testing.assert_array_equal(batch['index'][real], expected)
    np.testing.assert_array_equal(batch['label'][real], expected % 4)
    np.testing.assert_array_equal(
      batch['image'][real], rows.read(expected)['image']
    )


def test_a_batch_is_a_function_of_the_seed_and_the_step(rows):
  loader = make(rows, transform=transforms.random_flip())
  again = make(rows, transform=transforms.random_flip())
  stream = again.iterate(5)
  for step in (5, 6, 7):
    first, second = loader.batch(step), next(stream)
    for name in first:
      np.testing.assert_array_equal(first[name], second[name])
  stream.close()
  other = make(rows, seed=2).batch(5)
  assert set(other['index']) != set(loader.batch(5)['index'])


def test_processes_share_one_global_batch(rows):
  whole = make(rows).batch(3)
  parts = [
    make(rows, process_index=i, process_count=2).batch(3) for i in range(2)
  ]
  for name in whole:
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(joined, whole[name])


def test_of_too_many_rows_a_random_part_is_kept(rows):
  loader = make(rows, rate=0.5, capacity=20)
  kept = np.zeros(_ROWS)
  overflows = 0
  for step in range(400):
    batch = loader.batch(step)
    drawn = poisson.rows_at(step, _ROWS, 0.5, 1)
    real = batch['index'][batch['mask'] > 0]
    assert len(real) == min(len(drawn), 20)
    assert set(real) <= set(drawn)
    if len(drawn) > 20:
      overflows += 1
      kept[real] += 1
  expected = poisson.overflow_probability(_ROWS - 1, 0.5, 20)
  np.testing.assert_allclose(overflows / 400, expected, atol=0.1)
  assert stats.chisquare(kept).pvalue > 1e-3


def test_an_overflow_is_the_tail_of_a_binomial():
  for rows, rate, most in itertools.product(
    (1, 9, 1000, 10**6), (1e-4, 0.05, 0.9, 1.0), (0, 1, 8, 70, 950, 10**6)
  ):
    np.testing.assert_allclose(
      poisson.overflow_probability(rows, rate, most),
      stats.binom.sf(most, rows + 1, rate),
      rtol=1e-6,
      atol=1e-300,
    )


def test_the_capacity_is_the_smallest_that_hardly_ever_overflows():
  for tail in (1e-3, 1e-15):
    found = poisson.capacity(1000, 0.05, tail=tail)
    assert poisson.overflow_probability(1000, 0.05, found) <= tail
    assert poisson.overflow_probability(1000, 0.05, found - 1) > tail
  rounded = poisson.capacity(1000, 0.05, multiple=8)
  assert rounded % 8 == 0
  assert 0 <= rounded - poisson.capacity(1000, 0.05) < 8


@pytest.mark.parametrize(
  'num_rows, rate, tail, expected',
  [
    (60_000, 1024 / 60_000, 1e-17, 1305),
    (60_000, 1024 / 60_000, 1e-40, None),
    (1_281_167, 1024 / 1_281_167, 1e-30, None),
    (1_000_000, 0.3, 1e-100, None),
    (100, 0.9, 1e-20, 101),
    (100, 1.0, 1e-3, 101),
  ],
)
def test_the_capacity_holds_for_tails_below_the_precision_of_one(
  num_rows, rate, tail, expected
):
  found = poisson.capacity(num_rows, rate, tail=tail)
  assert expected in (None, found)

  def log_tail(size):  # Term by term, on the log scale.
    count = np.arange(size + 1, min(num_rows + 1, size + 20_000) + 1)
    terms = stats.binom.logpmf(count, num_rows + 1, rate)
    return special.logsumexp(terms) if count.size else -np.inf

  assert log_tail(found) <= np.log(tail) < log_tail(found - 1)


def test_settings_out_of_range_are_refused(rows):
  with pytest.raises(types.InputError, match='rate'):
    make(rows, rate=0.0)
  with pytest.raises(types.InputError, match='capacity=24 is below'):
    make(rows, rate=0.9)
  with pytest.raises(ValueError, match='tail'):
    poisson.capacity(10, 0.5, tail=0.0)


def test_each_kind_of_random_numbers_has_a_stream_of_its_own():
  kinds = in_order._ORDER, in_order._DRAWS, poisson._ROWS, users._PICKS
  assert len(set(kinds)) == len(kinds)
