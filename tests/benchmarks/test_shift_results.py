"""Tables by label and value, changes and ranks, against loops over rows."""

import csv
import io

import numpy as np
import pytest

from repjax.benchmarks import shift_results


def test_the_raw_table_counts_each_pair_on_its_own():
  rng = np.random.default_rng(0)
  label, group = rng.integers(3, size=200), rng.integers(4, size=200)
  group[(label == 2) & (group == 1)] = 0  # A pair without rows.
  logits = rng.normal(size=(2, 200, 3))
  logits[0, 5] = np.nan  # Wrong, whatever its label.
  table = shift_results.cell_accuracy(
    logits, label, group, num_labels=3, num_values=4
  )
  for model in range(2):
    for i in range(3):
      for j in range(4):
        hits = [
          bool(np.isfinite(x).all() and x.argmax() == i)
          for x, a, b in zip(logits[model], label, group, strict=True)
          if (a, b) == (i, j)
        ]
        if (i, j) == (2, 1):
          assert np.isnan(table[model, i, j])
        else:
          assert table[model, i, j] == pytest.approx(np.mean(hits))


def test_a_table_comes_back_from_the_results_of_a_run():
  table = np.arange(12.0).reshape(3, 4) / 12
  result = {
    f'test/{name}': x for name, x in shift_results.as_numbers(table).items()
  }
  result |= {'test/accuracy': 0.5, 'valid/0-0/cell_accuracy': 1.0}
  result['test/1-2/cell_accuracy'] = None  # Not finite, as JSON has it.
  table[1, 2] = np.nan
  np.testing.assert_array_equal(
    shift_results.from_numbers(result, 'test'), table
  )
  np.testing.assert_array_equal(
    shift_results.from_numbers(result, 'valid'), [[1.0]]
  )


_ACCURACY = {
  'erm': {'a': np.array([0.5, 0.7]), 'b': np.array([0.4, 0.4])},
  'one': {'a': np.array([0.6, 0.6]), 'b': np.array([0.4, 0.5])},
  'two': {'a': np.array([0.4, 0.9]), 'b': np.array([0.2, 0.1])},
}


def test_changes_are_paired_by_seed():
  found = shift_results.changes(_ACCURACY, 'erm')
  assert list(found) == ['one', 'two']
  np.testing.assert_allclose(found['one']['a'], [0.1, -0.1])
  np.testing.assert_allclose(found['two']['b'], [-0.2, -0.3])


def test_ranks_and_wins_share_places():
  np.testing.assert_array_equal(
    shift_results.ranks(_ACCURACY),
    [[[2, 2], [1.5, 2]], [[1, 3], [1.5, 1]], [[3, 1], [3, 3]]],
  )
  np.testing.assert_array_equal(
    shift_results.wins(_ACCURACY), [[0.25, 0], [0.75, 0.5], [0, 0.5]]
  )


def test_what_one_method_for_all_shifts_loses():
  rng = np.random.default_rng(0)
  table = rng.random((4, 3, 5))
  accuracy = {
    f'm{i}': {f's{k}': table[i, k] for k in range(3)} for i in range(4)
  }
  for seed, found in enumerate(shift_results.regret(accuracy)):
    others = [x for x in range(5) if x != seed]
    means = table[:, :, others].mean(2)
    one = means.mean(1).argmax()
    lost = [
      table[means[:, k].argmax(), k, seed] - table[one, k, seed]
      for k in range(3)
    ]
    assert found == pytest.approx(np.mean(lost))
  # Of methods that are all alike, the best of the same rows would seem better.
  alike = {
    f'm{i}': {'a': x, 'b': y}
    for i, (x, y) in enumerate(rng.normal(size=(9, 2, 400)))
  }
  assert abs(shift_results.regret(alike).mean()) < 0.1
  assert np.isnan(shift_results.regret({'m': {'a': np.ones(1)}})).all()


def test_tables_for_readers():
  lines = shift_results.rank_table(_ACCURACY).splitlines()
  assert lines[0] == '| method | a | b | mean rank |'
  assert lines[2] == '| one | 0.600 (2.0) | 0.450 (1.2) | 1.62 |'
  assert [x.split(' ')[1] for x in lines[2:]] == ['one', 'erm', 'two']
  text = shift_results.table_of_cells({('erm', 'a', 3): np.eye(2)})
  rows = list(csv.DictReader(io.StringIO(text)))
  assert len(rows) == 4
  assert rows[3] == dict(
    method='erm', shift='a', seed='3', label='1', value='1', accuracy='1'
  )


def test_six_shifts_are_in_two_lines():
  six = {
    name: {f'shift {i}': next(iter(x.values())) for i in range(6)}
    for name, x in _ACCURACY.items()
  }
  change = shift_results.change_figure(six, 'erm')
  assert change.get_figwidth() < 10
  assert sum(axes.axison for axes in change.axes) == 6
  titles = [axes.get_title().split('\n')[0] for axes in change.axes[:6]]
  assert titles == list(six['erm'])
  (bars,) = change.axes[5].containers
  (same,) = change.axes[0].containers
  np.testing.assert_allclose(
    bars.lines[0].get_xdata(), same.lines[0].get_xdata()
  )


def test_figures_show_every_method_and_shift():
  change = shift_results.change_figure(_ACCURACY, 'erm')
  assert len(change.axes) == 2
  names = [x.get_text() for x in change.axes[0].get_yticklabels()]
  assert names == ['one', 'two']
  # Mean and half of the interval: with two seeds, 12.7 standard errors.
  (bars,) = change.axes[1].containers
  np.testing.assert_allclose(bars.lines[0].get_xdata(), [0.05, -0.25])
  assert change.get_figwidth() < 6
  ranks = shift_results.rank_figure(_ACCURACY).axes[0]
  assert [x.get_text() for x in ranks.get_yticklabels()] == [
    'one',
    'erm',
    'two',
  ]
