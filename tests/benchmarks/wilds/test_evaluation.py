"""Metrics over groups, against loops."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import metrics
from repjax.metrics import averages

_RNG = np.random.default_rng(0)
_TRUE = _RNG.integers(4, size=200)
_GUESS = np.where(_RNG.random(200) < 0.7, _TRUE, _RNG.integers(6, size=200))
_PLACE = _RNG.choice([0, 1, 3], 200)  # Nobody is at 2.
_METADATA = groupers.Metadata(np.stack([_PLACE, _TRUE], 1), ('place', 'y'), {})


def test_accuracies_of_groups_and_the_worst():
  evaluate = evaluation.by_groups(
    groupers.Grouper(_METADATA, ('place',)), metrics.ACCURACY
  )
  results = evaluate(_GUESS, _TRUE, _METADATA.values).results
  expected = {'acc_avg': (_GUESS == _TRUE).mean()}
  for place in range(4):
    here = place == _PLACE
    hits = (_GUESS == _TRUE)[here]
    expected[f'acc_place:{place}'] = hits.mean() if here.any() else 0.0
    expected[f'count_place:{place}'] = here.sum()
  # The place without rows has accuracy 0, and is not the worst.
  expected['acc_wg'] = min(expected[f'acc_place:{x}'] for x in (0, 1, 3))
  assert results == pytest.approx(expected)
  assert next(iter(results)) == 'acc_avg'


def test_recall_and_f1_are_means_over_the_classes_of_the_truth():
  classes = np.unique(_TRUE)
  for metric, peer in (
    (metrics.RECALL, sk.recall_score),
    (metrics.F1, sk.f1_score),
  ):
    expected = peer(_TRUE, _GUESS, average='macro', labels=classes)
    assert metric.of_all(_GUESS, _TRUE) == pytest.approx(expected)


def test_correlation_and_squared_error():
  x, y = _RNG.normal(size=(2, 50, 1))
  assert metrics.PEARSON.of_all(x, y) == pytest.approx(
    stats.pearsonr(x[:, 0], y[:, 0])[0]
  )
  assert np.isnan(metrics.PEARSON.of_all(np.ones(5), np.arange(5)))
  assert metrics.SQUARED_ERROR.of_all(x, y) == pytest.approx(
    ((x - y) ** 2).mean()
  )
  assert metrics.SQUARED_ERROR.worst(np.array([1.0, 3.0])) == 3.0
  assert metrics.PEARSON.worst(np.array([0.5, np.nan, 0.2])) == 0.2


def test_nothing_is_zero():
  none = np.array([], np.int64)
  assert metrics.ACCURACY.of_all(none, none) == 0.0
  assert metrics.ACCURACY.worst(none) == 0.0
  assert np.isnan(metrics.PEARSON.worst(np.array([np.nan])))


def test_intervals_are_those_of_a_share():
  for count, hits in ((10, 9), (100, 50), (7, 7), (5, 0)):
    low, high = averages.wilson(hits / count, count)
    peer = stats.binomtest(hits, count).proportion_ci(0.95, 'wilson')
    np.testing.assert_allclose((low, high), peer, atol=2e-4)
  assert averages.wilson(0.0, 0) == (0.0, 1.0)
  evaluate = evaluation.overall(metrics.ACCURACY)
  evaluated = evaluate(_GUESS, _TRUE, _METADATA.values)
  low, high = evaluated.intervals['acc_avg']
  assert low < evaluated.results['acc_avg'] < high


def test_the_text_leaves_empty_groups_out():
  evaluate = evaluation.by_groups(
    groupers.Grouper(_METADATA, ('place',)), metrics.ACCURACY
  )
  text = evaluate(_GUESS, _TRUE, _METADATA.values).text()
  assert 'place:2' not in text
  assert f'n = {(_PLACE == 3).sum()}' in text
  assert len(text.splitlines()) == 5  # All, three places, the worst.


def test_the_worst_region_has_a_name():
  metadata = groupers.Metadata(
    np.array([[0, 0, 1], [1, 0, 1], [1, 0, 1]]),
    ('region', 'year', 'y'),
    {'region': ('Asia', 'Other'), 'year': (2002,), 'y': range(2)},
  )
  evaluate = evaluation.years_and_regions(metadata)
  right = np.array([1, 0, 0])
  results = evaluate(right, np.ones(3, int), metadata.values).results
  assert results['acc_region:Other'] == 0
  assert results['acc_worst_region'] == 1
  assert results['acc_worst_year'] == pytest.approx(1 / 3)


def test_an_identity_that_nobody_mentions_is_not_the_worst():
  # PyPI's `wilds` takes it as an accuracy of 0.
  metadata = groupers.Metadata(
    np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 1, 0]]),
    ('male', 'black', 'y'),
    {},
  )
  evaluate = evaluation.identities(metadata, ('male', 'black'))
  kept = metadata.values[:3]
  results = evaluate(kept[:, 2], kept[:, 2], kept).results
  assert results['count_y:0_black:1'] == 0
  assert results['acc_wg'] == 1.0
