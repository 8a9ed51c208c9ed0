"""Batches of groups, by (seed, step)."""

import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import loaders
from repjax.data.batches import in_order
from repjax.data.reading import source as sources

_ONE = dict(process_index=0, process_count=1)
_SIZES = {0: 3, 2: 40, 5: 7}  # Rows of each group; 1, 3 and 4 have none.
_GROUP = np.random.default_rng(0).permutation(
  np.repeat(list(_SIZES), list(_SIZES.values()))
)
_SOURCE = sources.from_arrays(
  'rows', {'features': np.arange(50.0)[:, None], 'group': _GROUP}
)


def test_uniform_batches_draw_groups_alike_and_rows_alike():
  batches = loaders.uniform_batches(_SOURCE, batch_size=300, seed=1, **_ONE)
  rows = np.concatenate([batches.rows_at(step) for step in range(100)])
  share = np.bincount(_GROUP[rows], minlength=6) / len(rows)
  np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 0, 0, 1 / 3], atol=0.01)
  # A row's weight is 1 / (groups * rows of its group).
  each = np.bincount(rows, minlength=50) / len(rows)
  expected = np.array([1 / (3 * _SIZES[g]) for g in _GROUP])
  np.testing.assert_allclose(each, expected, atol=0.012)


@pytest.mark.parametrize('uniform', [True, False])
def test_group_batches_have_equally_many_rows_of_distinct_groups(uniform):
  batches = loaders.group_batches(
    _SOURCE,
    batch_size=10,
    groups_per_batch=2,
    seed=0,
    uniform=uniform,
    **_ONE,
  )
  seen = np.zeros(6)
  for step in range(600):
    rows = batches.rows_at(step)
    groups = _GROUP[rows].reshape(2, 5)
    assert (groups == groups[:, :1]).all()
    assert groups[0, 0] != groups[1, 0]
    for part, group in zip(rows.reshape(2, 5), groups[:, 0], strict=True):
      # Without replacement, unless the group has no more rows than are drawn.
      assert (len(set(part)) == 5) == (_SIZES[group] > 5)
    seen[groups[:, 0]] += 1
  if uniform:
    np.testing.assert_allclose(seen[[0, 2, 5]] / 600, 2 / 3, atol=0.06)
  else:
    # The first is drawn by its rows, the second by those of the others.
    p = {g: n / 50 for g, n in _SIZES.items()}
    for g in _SIZES:
      second = sum(p[h] * p[g] / (1 - p[h]) for h in _SIZES if h != g)
      assert seen[g] / 600 == pytest.approx(p[g] + second, abs=0.05)


def test_a_group_of_as_many_rows_as_are_drawn_repeats_some():
  batches = loaders.group_batches(
    _SOURCE, batch_size=9, groups_per_batch=3, seed=0, **_ONE
  )
  rows = np.concatenate([batches.rows_at(step) for step in range(30)])
  of_three = rows[_GROUP[rows] == 0].reshape(30, 3)
  assert min(len(set(x)) for x in of_three) < 3


def test_groups_may_repeat_where_they_need_not_differ():
  batches = loaders.group_batches(
    _SOURCE, batch_size=8, groups_per_batch=4, seed=0, distinct=False, **_ONE
  )
  assert len(set(_GROUP[batches.rows_at(0)])) <= 3


def test_a_batch_is_a_function_of_seed_and_step_on_any_processes():
  def made(**settings):
    return loaders.group_batches(
      _SOURCE,
      **{**dict(batch_size=12, groups_per_batch=2, seed=3), **_ONE, **settings},
    )

  batches = made()
  whole = batches.batch(7)
  np.testing.assert_array_equal(whole['index'], made().batch(7)['index'])
  stream = batches.iterate(7)
  np.testing.assert_array_equal(whole['index'], next(stream)['index'])
  stream.close()
  halves = [made(process_index=i, process_count=2).batch(7) for i in (0, 1)]
  joined = np.concatenate([x['index'] for x in halves])
  np.testing.assert_array_equal(whole['index'], joined)
  # Both halves have rows of both groups.
  for half in halves:
    assert len(set(half['group'])) == 2
  assert (made(seed=4).batch(7)['index'] != whole['index']).any()
  assert (batches.batch(8)['index'] != whole['index']).any()


def test_uniform_batches_are_a_function_of_seed_and_step():
  def index(seed, step):
    made = loaders.uniform_batches(_SOURCE, batch_size=12, seed=seed, **_ONE)
    return made.batch(step)['index'].tolist()

  assert index(3, 7) == index(3, 7)
  assert index(4, 7) != index(3, 7)
  assert index(3, 8) != index(3, 7)


def test_joint_batches_hold_both_kinds_spread_evenly():
  unlabelled = sources.from_arrays(
    'more',
    {
      'features': 1000.0 + np.arange(30.0)[:, None],
      'group': np.full(30, 9),
      'other': np.zeros(30),
    },
  )
  parts = [
    in_order.train_batches(_SOURCE, batch_size=4, seed=0, **_ONE),
    in_order.train_batches(unlabelled, batch_size=12, seed=0, **_ONE),
  ]
  batches = loaders.joint(*parts)
  batch = batches.batch(5)
  assert batches.expected_rows == 16
  assert batch['labelled'].sum() == 4
  # A quarter of every quarter of the rows has labels.
  assert batch['labelled'].reshape(4, 4).sum(1).tolist() == [1] * 4
  values = batch['features'][:, 0]
  np.testing.assert_array_equal(values < 1000, batch['labelled'] > 0)
  assert set(values[values < 1000]) == set(parts[0].batch(5)['features'][:, 0])
  assert 'other' not in batch
  assert batches.fingerprint() != loaders.joint(*parts[::-1]).fingerprint()
  stream = batches.iterate(5)
  np.testing.assert_array_equal(next(stream)['features'], batch['features'])
  stream.close()


def test_joint_batches_refuse_views_that_one_kind_lacks():
  with_view = _SOURCE.with_columns(strong=np.zeros((50, 1)))
  batches = loaders.joint(
    in_order.train_batches(_SOURCE, batch_size=4, seed=0, **_ONE),
    in_order.train_batches(with_view, batch_size=4, seed=0, **_ONE),
  )
  with pytest.raises(types.InputError, match=r'differ in .*strong'):
    batches.batch(0)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(batch_size=9), 'batch_size=9 must be a multiple of'),
    (dict(groups_per_batch=4), 'groups_per_batch=4, but rows train has rows'),
    (dict(groups_per_batch=0), 'groups_per_batch must be in'),
  ],
)
def test_batches_that_cannot_be_made_are_refused(changes, message):
  settings = {**dict(batch_size=8, groups_per_batch=2, seed=0), **_ONE}
  with pytest.raises(types.InputError, match=message):
    loaders.group_batches(_SOURCE, **{**settings, **changes})


def test_rows_without_groups_are_refused():
  plain = sources.from_arrays('plain', {'features': np.zeros((5, 1))})
  with pytest.raises(types.InputError, match="no column 'group'"):
    loaders.uniform_batches(plain, batch_size=4, seed=0, **_ONE)
