"""Differences of every pair are those of SciPy's paired test."""

import numpy as np
import pytest
from scipy import stats

from repjax.metrics import pairs

RNG = np.random.default_rng(0)
# Episodes differ far more than methods do.
_EPISODE = RNG.normal(0.6, 0.1, 50)
VALUES = {
  name: _EPISODE + gain + RNG.normal(0, 0.01, 50)
  for name, gain in (('one', 0.0), ('two', 0.02), ('three', -0.05))
}


def test_every_pair_has_the_interval_of_a_paired_t_test():
  found = pairs.differences(VALUES)
  for name, x in VALUES.items():
    assert list(found[name]) == [other for other in VALUES if other != name]
    for other, (mean, half) in found[name].items():
      wanted = stats.ttest_rel(x, VALUES[other]).confidence_interval(0.95)
      np.testing.assert_allclose([mean - half, mean + half], wanted, rtol=1e-9)
  # Unpaired intervals could not tell them apart.
  mean, half = found['two']['one']
  assert mean > half
  assert half < 0.2 * 1.96 * _EPISODE.std() / 50**0.5


def test_the_table_says_the_same_in_points():
  lines = pairs.table(VALUES).splitlines()
  over = pairs.differences(VALUES)
  assert lines[0].split() == ['mean', '1', '2']
  assert [x.split()[:2] for x in lines[1::2]] == [
    ['1', 'one'],
    ['2', 'two'],
    ['3', 'three'],
  ]
  for i, (name, values) in enumerate(VALUES.items()):
    before = [over[name][x] for x in list(VALUES)[:i]]
    means, halves = lines[1 + 2 * i].split()[2:], lines[2 + 2 * i].split()
    wanted = [values.mean(), *(x for x, _ in before)]
    np.testing.assert_allclose(
      np.asarray(means, float) / 100, wanted, atol=5.1e-4
    )
    assert all(x.startswith('+-') for x in halves)
    np.testing.assert_allclose(
      [float(x[2:]) / 100 for x in halves[1:]],
      [half for _, half in before],
      atol=5.1e-4,
    )
  # Columns are those of the numbers above them, flush right.
  assert lines[-1].rindex('+-') + 5 == len(lines[0]) == len(lines[5])


def test_nine_methods_fit_a_screen():
  names = 'x' * 22, *(f'{i} calibrated' for i in range(8))
  text = pairs.table({x: RNG.random(10) for x in names})
  assert max(map(len, text.splitlines())) <= 100


def test_equal_methods_differ_by_nothing_and_one_episode_has_no_interval():
  same = pairs.differences({'a': [0.5, 0.7], 'b': [0.5, 0.7]})
  assert same == {'a': {'b': (0, 0)}, 'b': {'a': (0, 0)}}
  mean, half = pairs.differences({'a': [0.5], 'b': [0.25]})['a']['b']
  assert mean == 0.25 and np.isnan(half)


def test_other_episodes_are_no_pairs():
  with pytest.raises(ValueError, match='as many values'):
    pairs.differences({'a': [0.5, 0.7], 'b': [0.5]})
