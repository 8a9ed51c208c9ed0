"""Rows are divided among users exactly."""

import numpy as np
import pytest

from repjax import types
from repjax.data import partitions
from repjax.data.reading import source as sources

LABELS = np.repeat(np.arange(5), 12)[np.random.default_rng(0).permutation(60)]


def test_iid_parts_are_of_one_size():
  users = partitions.iid(61, 8, seed=0)
  counts = np.bincount(users, minlength=8)
  assert counts.sum() == 61
  assert set(counts) == {7, 8}
  assert (users != partitions.iid(61, 8, seed=1)).any()


def test_shards_hold_few_labels():
  users = partitions.by_label(LABELS, 10, shards=2, seed=0)
  for user in range(10):
    own = LABELS[users == user]
    assert len(own) == 6
    assert len(set(own)) <= 4  # A part of 3 rows lies in 2 labels at most.
  one = partitions.by_label(LABELS, 5, shards=1, seed=0)
  for user in range(5):
    assert len(set(LABELS[one == user])) == 1


def test_shares_of_a_dirichlet_go_from_all_alike_to_one_label_each():
  alike = partitions.dirichlet(LABELS, 4, alpha=1e7, seed=0)
  for label in range(5):
    counts = np.bincount(alike[label == LABELS], minlength=4)
    np.testing.assert_array_equal(counts, 3)
  # Nearly all rows of a label are one user's.
  far = partitions.dirichlet(LABELS, 2, alpha=0.02, seed=1)
  most = [np.bincount(far[x == LABELS]).max() for x in range(5)]
  assert np.mean(most) > 11


def test_rows_of_one_label_are_dealt_in_no_order():
  labels = np.zeros(60, int)
  for users in (
    partitions.by_label(labels, 2, shards=1, seed=0),
    partitions.dirichlet(labels, 2, alpha=1e7, seed=0),
  ):
    np.testing.assert_array_equal(np.bincount(users), 30)
    assert (np.diff(users) != 0).sum() > 10  # Else 1: two runs of rows.


def test_a_table_holds_every_row_once():
  users = partitions.dirichlet(LABELS, 4, alpha=1.0, seed=3)
  table = partitions.table(users, 4)
  for user, rows in enumerate(table):
    np.testing.assert_array_equal(users[rows[rows >= 0]], user)
  np.testing.assert_array_equal(np.sort(table[table >= 0]), np.arange(60))
  # Any source with a column of users will do.
  rows = sources.from_arrays('labels', {'label': LABELS}, num_classes=5)
  named = rows.with_columns(user=users)
  np.testing.assert_array_equal(
    partitions.table(named.column('user'), 4), table
  )


@pytest.mark.parametrize(
  ('call', 'says'),
  [
    (lambda: partitions.iid(3, 4, seed=0), '3 rows are too few for 4 users'),
    (
      lambda: partitions.by_label(LABELS, 31, shards=2, seed=0),
      'too few for 31 users with 2',
    ),
    (
      lambda: partitions.dirichlet(LABELS, 30, alpha=0.01, seed=0),
      'left without a row at alpha=0.01',
    ),
    (
      lambda: partitions.dirichlet(LABELS, 3, alpha=0.0, seed=0),
      'alpha must be in',
    ),
    (
      lambda: partitions.table(np.array([0, 0, 2]), 3),
      'user 1 of 3 has no row',
    ),
    (lambda: partitions.table(np.array([0, 3]), 3), r'not in \[0, 3\)'),
  ],
)
def test_users_without_rows_are_refused(call, says):
  with pytest.raises(types.InputError, match=says):
    call()
