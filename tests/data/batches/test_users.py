"""Sampling of users: rates, rows of each, resumption, shapes."""

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import poisson
from repjax.data.batches import users
from repjax.data.images import transforms
from repjax.data.reading import source

_ONE = {'process_index': 0, 'process_count': 1}
# Users have 1 to 7 rows, which do not stand side by side.
_USERS = np.random.default_rng(0).permutation(
  np.repeat(np.arange(10, 17), range(1, 8))
)


@pytest.fixture(scope='module')
def rows():
  label = np.arange(len(_USERS)) % 4
  return source.from_arrays(
    'rows', {'label': label, 'user': _USERS}, num_classes=4
  )


def make(rows, **settings):
  settings = {
    'rate': 0.4,
    'rows_per_user': 3,
    'capacity': 6,
    'seed': 1,
    **_ONE,
    **settings,
  }
  return users.user_batches(rows, rows.column('user'), **settings)


def test_each_user_comes_with_rows_of_its_own_and_none_twice(rows):
  loader = make(rows)
  assert loader.num_users == 7
  assert loader.expected_batch_size == pytest.approx(2.8)
  for step in range(30):
    batch = loader.batch(step)
    drawn = poisson.rows_at(step, 7, 0.4, 1)[:6]
    user, index, mask = (
      batch[name].reshape((6, 3)) for name in ('user', 'index', 'mask')
    )
    assert (user == user[:, :1]).all()
    np.testing.assert_array_equal(user[: len(drawn), 0], drawn)
    assert (user[len(drawn) :] == -1).all()
    np.testing.assert_array_equal(mask.sum(1)[len(drawn) :], 0)
    # User 10 + k has k + 1 rows.
    np.testing.assert_array_equal(
      mask.sum(1)[: len(drawn)], np.minimum(drawn + 1, 3)
    )
    real = mask > 0
    np.testing.assert_array_equal(_USERS[index[real]] - 10, user[real])
    assert len(set(index[real])) == real.sum()


def test_all_rows_of_a_user_are_as_likely_and_users_come_at_the_rate(rows):
  loader, steps = make(rows, capacity=7), 3000
  counts = np.zeros(len(_USERS))
  for step in range(steps):
    batch = loader.batch(step)
    counts[batch['index'][batch['mask'] > 0]] += 1
  own = np.bincount(_USERS)[_USERS]
  rate = 0.4 * np.minimum(1, 3 / own)
  np.testing.assert_allclose(counts / steps, rate, atol=5 * 0.5 / steps**0.5)
  assert loader.expected_rows == pytest.approx(rate.sum())


def test_a_batch_is_a_function_of_the_seed_and_the_step(rows):
  jitter = transforms.Transform(
    1, lambda columns, draws: {**columns, 'draw': draws[:, 0]}
  )
  stream = make(rows, transform=jitter).iterate(4)
  for step in (4, 5):
    first, second = make(rows, transform=jitter).batch(step), next(stream)
    for name in first:
      np.testing.assert_array_equal(first[name], second[name])
  stream.close()
  other = make(rows, seed=2).batch(4)['index']
  assert not np.array_equal(other, make(rows).batch(4)['index'])


def test_processes_share_one_global_batch(rows):
  whole = make(rows).batch(3)
  parts = [
    make(rows, process_index=i, process_count=2).batch(3) for i in range(2)
  ]
  for name in whole:
    joined = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(joined, whole[name])


def test_with_one_row_a_user_batches_are_those_of_rows(rows):
  batch = make(rows, rows_per_user=1).batch(0)
  assert 'user' not in batch
  drawn = poisson.rows_at(0, 7, 0.4, 1)
  index = batch['index'][batch['mask'] > 0]
  np.testing.assert_array_equal(_USERS[index] - 10, drawn)


def test_users_may_be_text(rows):
  named = np.array([f'user {x}' for x in _USERS])
  loader = users.user_batches(
    rows, named, rate=0.4, rows_per_user=3, capacity=6, seed=1, **_ONE
  )
  np.testing.assert_array_equal(
    loader.batch(0)['index'], make(rows).batch(0)['index']
  )


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'rate': 0.0}, 'rate'),
    ({'rows_per_user': 0}, 'rows_per_user'),
    ({'capacity': 2}, 'below the mean batch of 2.8 users'),
    # 18 rows divide over two processes, 9 users do not.
    ({'capacity': 9, 'rows_per_user': 2, 'process_count': 2}, 'a part of a'),
  ],
)
def test_settings_out_of_range_are_refused(rows, settings, message):
  with pytest.raises(types.InputError, match=message):
    make(rows, **settings)


def test_users_that_are_not_one_a_row_are_refused(rows):
  with pytest.raises(types.InputError, match='one entry a row'):
    users.user_batches(
      rows, _USERS[1:], rate=0.4, rows_per_user=1, capacity=6, seed=1, **_ONE
    )
