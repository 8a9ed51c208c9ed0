"""Every table is realised exactly, for any seed, or says which cell lacks rows.

The oracle is a dictionary that counts rows one by one.
"""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.benchmarks import shift_rows
from repjax.data.reading import source as sources


def pool(num_labels, num_values, per_cell, seed=0):
  """Labels and values of a set, shuffled."""
  label, group = np.divmod(
    np.arange(num_labels * num_values * per_cell) // per_cell, num_values
  )
  order = np.random.default_rng(seed).permutation(len(label))
  return label[order], group[order]


def counted(label, group):
  table = {}
  for pair in zip(label.tolist(), group.tolist(), strict=True):
    table[pair] = table.get(pair, 0) + 1
  return table


def made(conditions, label, group, shape, seed):
  plan = shift_rows.make_plan(
    conditions, shift_rows.counts(label, group, *shape), seed=seed
  )
  return plan, shift_rows.realise(plan, label, group, seed=seed)


_counts = st.integers(0, 40)
_shifts = st.one_of(
  st.builds(
    shifts.SpuriousCorrelation,
    num_rare=_counts,
    num_common=st.one_of(st.none(), st.integers(1, 60)),
  ),
  st.builds(
    shifts.LowData,
    num_rare=_counts,
    share=st.sampled_from([0.0, 0.2, 0.7]),
    num_common=st.one_of(st.none(), st.integers(1, 60)),
  ),
  st.builds(shifts.UnseenData, share=st.sampled_from([0.0, 0.2, 0.7])),
  st.builds(shifts.Uniform, st.one_of(st.none(), st.integers(1, 60))),
)
_on_top = st.lists(
  st.one_of(
    st.builds(shifts.LabelNoise, st.floats(0, 1)),
    st.builds(shifts.FixedSize, st.integers(2, 90), st.floats(0, 0.5)),
  ),
  max_size=2,
)


@settings(max_examples=150, deadline=None)
@given(
  shift=_shifts,
  on_top=_on_top,
  num_labels=st.integers(2, 4),
  more=st.integers(0, 4),
  seed=st.integers(0, 2**31 - 1),
)
def test_the_table_is_realised_exactly(shift, on_top, num_labels, more, seed):
  shape = (num_labels, num_labels + more)
  label, group = pool(*shape, per_cell=100)
  plan, realised = made([shift, *on_top], label, group, shape, seed)
  assert len(set(realised.rows.tolist())) == len(realised.rows)
  start = 0
  for table, size in zip(plan.counts, realised.sizes, strict=True):
    part = realised.rows[start : start + size]
    found = counted(label[part], group[part])
    for cell, number in np.ndenumerate(table):
      assert found.get(cell, 0) == number
    start += size
  assert start == len(realised.rows) == len(realised.label)
  assert realised.weights.sum() == pytest.approx(1)
  # Each condition has what its words say, in numbers of its own.
  sizes = [x for x in on_top if isinstance(x, shifts.FixedSize)]
  if sizes:
    assert plan.counts.sum() == sizes[-1].total
  elif isinstance(shift, shifts.SpuriousCorrelation | shifts.LowData):
    rare = plan.counts[1:].sum()
    assert rare == shift.num_rare
    if shift.num_common is not None:
      assert plan.counts[0].sum() == shift.num_common
  for table in plan.counts:
    if not any(isinstance(x, shifts.FixedSize) for x in on_top) and (
      table is plan.counts[0] and getattr(shift, 'num_common', 1) is None
    ):
      continue
    filled = table[table > 0]
    assert filled.max() - filled.min() <= 1


def test_a_correlation_is_one_but_for_the_rare_rows():
  label, group = pool(3, 5, per_cell=20)
  shift = [shifts.SpuriousCorrelation(num_rare=30)]
  plan, _ = made(shift, label, group, (3, 5), 0)
  np.testing.assert_array_equal(plan.counts[1], np.full((3, 5), 2))
  np.testing.assert_array_equal(plan.counts[0], 18 * np.eye(3, 5))
  np.testing.assert_array_equal(plan.weights, [0.5, 0.5])
  none, _ = made(
    [shifts.SpuriousCorrelation(num_rare=0)], label, group, (3, 5), 0
  )
  np.testing.assert_array_equal(none.counts, 20 * np.eye(3, 5)[None])


@pytest.mark.parametrize(
  ('num_values', 'share', 'seen'),
  # int((A - 1) * share) + 1 of them, as in the authors' code.
  [(10, 0.2, 2), (3, 0.7, 2), (10, 0.7, 7), (5, 0.0, 1)],
)
def test_values_are_cut_as_published(num_values, share, seen):
  label, group = pool(2, num_values, per_cell=4)
  unseen, _ = made(
    [shifts.UnseenData(share=share)], label, group, (2, num_values), 1
  )
  expected = np.where(np.arange(num_values) < seen, 4, 0)
  np.testing.assert_array_equal(unseen.counts, [[expected, expected]])
  rare, _ = made(
    [shifts.LowData(num_rare=2, share=share)], label, group, (2, num_values), 1
  )
  assert rare.counts[1, :, :seen].sum() == 0
  assert rare.counts[1, :, seen:].sum() == 2


def test_seeds_draw_other_rows_of_one_table_and_odd_rows_of_other_cells():
  label, group = pool(3, 3, per_cell=50)
  shift = [shifts.SpuriousCorrelation(num_rare=4, num_common=30)]
  plans, rows = zip(
    *(made(shift, label, group, (3, 3), seed) for seed in (1, 1, 2)),
    strict=True,
  )
  np.testing.assert_array_equal(rows[0].rows, rows[1].rows)
  assert set(rows[0].rows) != set(rows[2].rows)
  np.testing.assert_array_equal(plans[0].counts[0], plans[2].counts[0])
  odd = sum(
    made(shift, label, group, (3, 3), seed)[0].counts[1] for seed in range(90)
  )
  assert odd.sum() == 360
  assert odd.min() > 20  # About 40 each: no cell is favoured.


def test_noise_changes_so_many_labels_once_for_all():
  label, group = pool(4, 4, per_cell=50)
  shift = [shifts.Uniform(), shifts.LabelNoise(0.4)]
  _, realised = made(shift, label, group, (4, 4), 5)
  changed = (realised.label != label[realised.rows]).mean()
  # A quarter of those that are drawn keep theirs by chance.
  assert 0.25 < changed < 0.35
  redrawn, plain = made(
    [shifts.Uniform(), shifts.LabelNoise(0.4, fixed=False)],
    label,
    group,
    (4, 4),
    5,
  )
  assert redrawn.redrawn
  np.testing.assert_array_equal(plain.label, label[plain.rows])


def test_labels_that_are_redrawn_differ_between_steps():
  transform = shift_rows.redrawn_labels(0.5, 4)
  rng = np.random.default_rng(0)
  columns = {'label': np.zeros(4000, np.int32)}
  first, second = (
    transform.apply(columns, rng.random((4000, transform.num_draws)))['label']
    for _ in range(2)
  )
  for x in (first, second):
    np.testing.assert_allclose((x > 0).mean(), 0.5 * 3 / 4, atol=0.03)
  assert (first != second).mean() > 0.3


def test_any_table_of_several_parts():
  label, group = pool(2, 2, per_cell=9)
  tables = np.array([[[9, 0], [0, 5]], [[0, 2], [1, 0]]])
  plan, realised = made(
    [shifts.Table(tables, weights=(1, 3))], label, group, (2, 2), 0
  )
  np.testing.assert_array_equal(plan.counts, tables)
  np.testing.assert_array_equal(plan.weights, [0.25, 0.75])
  np.testing.assert_array_equal(realised.sizes, [14, 3])


def test_a_training_set_is_a_source_of_these_rows():
  label, group = pool(2, 2, per_cell=5)
  source = sources.from_arrays(
    'set', {'label': label, 'group': group, 'id': np.arange(20)}, num_classes=2
  )
  _, realised = made(
    [shifts.SpuriousCorrelation(num_rare=4), shifts.LabelNoise(1.0)],
    label,
    group,
    (2, 2),
    0,
  )
  columns = shift_rows.training_set(source, realised).columns()
  np.testing.assert_array_equal(columns['id'], realised.rows)
  np.testing.assert_array_equal(columns['group'], group[realised.rows])
  np.testing.assert_array_equal(columns['label'], realised.label)


@pytest.mark.parametrize(
  ('conditions', 'match'),
  [
    (
      [shifts.SpuriousCorrelation(num_rare=60)],
      r'rare part asks for \d+ row\(s\) of label \d with value \d',
    ),
    (
      [shifts.LowData(num_rare=0, num_common=99)],
      'label 0 with value 0, of which 5 of 5 are left',
    ),
    ([shifts.Table(np.full((3, 3), 6))], 'asks for 6 row'),
    ([shifts.Table(np.zeros((3, 3), int))], 'no row to train on'),
    ([shifts.Table(np.ones((2, 3), int))], '3 labels and 3 values'),
    ([shifts.Table(np.ones((3, 3)))], 'float64'),
    ([shifts.SpuriousCorrelation(num_rare=-1)], 'num_rare'),
    ([shifts.UnseenData(share=1.0)], 'share'),
    ([shifts.Uniform(), shifts.LabelNoise(1.5)], 'label noise'),
    (
      [shifts.UnseenData(), shifts.SpuriousCorrelation(num_rare=1)],
      'compose no two',
    ),
    (
      [shifts.Table(np.ones((3, 3), int)), shifts.FixedSize(5)],
      'leave out FixedSize',
    ),
    (
      [shifts.FixedSize(10, 0.1), shifts.SpuriousCorrelation(num_rare=1)],
      'name the shift first',
    ),
    ([shifts.FixedSize(10)], 'name the shift first'),
    ([shifts.Uniform(), shifts.FixedSize(10.5)], 'total is a whole number'),
    ([shifts.Uniform(9.5)], 'num_common is a whole number'),
    ([shifts.SpuriousCorrelation(num_rare=2.5)], 'num_rare is a whole number'),
    ([shifts.LowData(num_rare=2.0)], 'num_rare is a whole number'),
  ],
)
def test_what_cannot_be_realised_says_so_in_one_line(conditions, match):
  label, group = pool(3, 3, per_cell=5)
  with pytest.raises(types.InputError, match=match) as error:
    made(conditions, label, group, (3, 3), 0)
  assert '\n' not in str(error.value)


def test_the_cell_that_is_named_is_the_one_that_lacks_rows():
  label, group = pool(3, 3, per_cell=5)
  kept = (label != 2) | (group != 1)
  label, group = label[kept], group[kept]
  with pytest.raises(types.InputError, match='label 2 with value 1'):
    made([shifts.Uniform(18)], label, group, (3, 3), 0)
  with pytest.raises(types.InputError, match='label 2 with value 1'):
    made([shifts.Uniform()], label, group, (3, 3), 0)


def test_more_labels_than_values_have_no_pairs():
  label, group = pool(3, 2, per_cell=5)
  with pytest.raises(types.InputError, match='take another nuisance'):
    made([shifts.SpuriousCorrelation(num_rare=1)], label, group, (3, 2), 0)


def test_rare_rows_need_a_value_that_is_rare():
  label, group = pool(2, 1, per_cell=5)
  with pytest.raises(types.InputError, match='has no cell'):
    made([shifts.LowData(num_rare=2)], label, group, (2, 1), 0)
  made([shifts.LowData(num_rare=0)], label, group, (2, 1), 0)
