"""Measures of alarms against loops over points."""

import numpy as np
import pytest

from repjax import types
from repjax.metrics import anomaly


def random_case(seed, length=60):
  """(scores, labels, series) with segments at the ends, and touching ones."""
  rng = np.random.default_rng(seed)
  # Runs of random lengths, labelled in turn or at random.
  labels = np.repeat(rng.integers(0, 2, length), rng.integers(1, 9, length))[
    :length
  ]
  series = np.sort(rng.integers(0, 3, length))
  return rng.normal(size=length).round(1), labels, series


def loop_segments(labels, series):
  found, start = [], None
  for i in range(len(labels) + 1):
    inside = i < len(labels) and labels[i]
    broken = 0 < i < len(labels) and series[i] != series[i - 1]
    if start is not None and (not inside or broken):
      found.append([start, i])
      start = None
    if inside and start is None:
      start = i
  return found


def loop_adjusted(alarms, labels):
  """The authors' way: a hit spreads backwards and forwards (one series)."""
  alarms = list(alarms)
  for i in range(len(labels)):
    if labels[i] and alarms[i]:
      j = i
      while j >= 0 and labels[j]:
        alarms[j] = True
        j -= 1
      j = i
      while j < len(labels) and labels[j]:
        alarms[j] = True
        j += 1
  return np.array(alarms)


def loop_f1(alarms, labels):
  tp = fp = fn = 0
  for alarm, label in zip(alarms, labels, strict=True):
    tp += bool(alarm and label)
    fp += bool(alarm and not label)
    fn += bool(label and not alarm)
  return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


@pytest.mark.parametrize('seed', range(20))
def test_segments_are_those_of_a_loop(seed):
  _, labels, series = random_case(seed)
  one = np.zeros(len(labels))
  assert anomaly.segments(labels).tolist() == loop_segments(labels, one)
  assert anomaly.segments(labels, series).tolist() == loop_segments(
    labels, series
  )


def test_series_without_anomalies_have_no_segments():
  assert anomaly.segments(np.zeros(5)).shape == (0, 2)
  assert anomaly.segments([]).shape == (0, 2)
  assert anomaly.segments([1, 1, 1]).tolist() == [[0, 3]]


@pytest.mark.parametrize('seed', range(20))
def test_point_adjustment_is_that_of_a_loop(seed):
  scores, labels, _ = random_case(seed)
  alarms = scores > 1.0
  np.testing.assert_array_equal(
    anomaly.point_adjusted(alarms, labels), loop_adjusted(alarms, labels)
  )


@pytest.mark.parametrize('k', [0, 20, 50, 100])
@pytest.mark.parametrize('seed', range(5))
def test_pa_k_fills_segments_of_which_more_than_k_per_cent_are_hit(seed, k):
  scores, labels, series = random_case(seed)
  alarms = scores > 0.3
  expected = alarms.copy()
  for start, stop in loop_segments(labels, series):
    share = np.mean([alarms[i] for i in range(start, stop)])
    if share > k / 100:
      expected[start:stop] = True
  actual = anomaly.point_adjusted(alarms, labels, series=series, k=k)
  np.testing.assert_array_equal(actual, expected)
  if k == 100:
    np.testing.assert_array_equal(actual, alarms)


def test_events_count_once_whatever_their_length():
  labels = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 0])
  alarms = np.array([0, 0, 1, 0, 0, 0, 0, 1, 1, 0])
  # One of two events is found, one run of alarms is false: P = R = 1 / 2.
  assert anomaly.event_f1(alarms, labels) == 0.5
  # A run of alarms that sticks out of an event is no false one.
  assert anomaly.event_f1(np.array([1, 1, 0, 0, 0] + [0] * 5), labels) == 2 / 3
  assert anomaly.event_f1(np.zeros(10), labels) == 0.0


@pytest.mark.parametrize('seed', range(5))
def test_all_measures_are_those_of_loops(seed):
  scores, labels, series = random_case(seed, length=80)
  measured = anomaly.measure(scores, labels, threshold=0.7, series=series)
  alarms = scores > 0.7
  assert measured['f1'] == pytest.approx(loop_f1(alarms, labels))
  adjusted = [
    loop_f1(anomaly.point_adjusted(alarms, labels, series=series, k=k), labels)
    for k in range(101)
  ]
  assert measured['f1_adjusted'] == pytest.approx(adjusted[0])
  assert measured['f1_pa20'] == pytest.approx(adjusted[20])
  assert measured['f1_pa_mean'] == pytest.approx(np.mean(adjusted))
  positive, negative = scores[labels > 0], scores[labels == 0]
  pairs = [
    1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative
  ]
  assert measured['auroc'] == pytest.approx(np.mean(pairs))
  assert measured['alarms'] == alarms.mean()
  hits = (alarms & (labels > 0)).sum()
  assert measured['precision'] == hits / alarms.sum()
  assert measured['recall'] == hits / labels.sum()


def test_auprc_is_the_mean_precision_at_the_positives():
  rng = np.random.default_rng(0)
  scores, positive = rng.permutation(50), rng.integers(0, 2, 50)
  ordered = positive[np.argsort(-scores)]
  precision = [
    ordered[: i + 1].mean() for i in range(len(ordered)) if ordered[i]
  ]
  assert anomaly.auprc(scores, positive) == pytest.approx(np.mean(precision))


def test_random_alarms_in_long_segments_are_chance_until_they_are_adjusted():
  labels = np.zeros(50_000)
  for start in range(2_000, 50_000, 5_000):
    labels[start : start + 500] = 1
  scores = np.random.default_rng(0).uniform(size=len(labels))
  measured = anomaly.measure(scores, labels, threshold=0.99)
  assert measured['f1'] < 0.05
  assert measured['f1_adjusted'] > 0.85
  assert measured['f1_pa20'] == pytest.approx(measured['f1'], abs=0.01)
  assert measured['auroc'] == pytest.approx(0.5, abs=0.02)


def test_the_threshold_is_exceeded_by_the_rate():
  scores = np.random.default_rng(1).permutation(1000)
  assert (scores > anomaly.threshold(scores, 0.05)).mean() == 0.05
  # A score that many points share is none that they exceed.
  assert (np.zeros(10) > anomaly.threshold(np.zeros(10), 0.5)).sum() == 0


def test_a_point_gets_the_mean_over_its_windows():
  rng = np.random.default_rng(2)
  starts, values = np.array([0, 3, 5, 6]), rng.normal(size=(4, 4))
  expected = [
    np.mean(
      [
        values[n, t - start]
        for n, start in enumerate(starts)
        if start <= t < start + 4
      ]
    )
    for t in range(10)
  ]
  np.testing.assert_allclose(anomaly.over_windows(values, starts, 10), expected)
  gap = anomaly.over_windows(values[[0, 3]], starts[[0, 3]], 11)
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(gap)), [4, 5, 10])


def test_what_cannot_be_judged_is_refused():
  labels = np.array([0, 1, 0, 0])
  with pytest.raises(types.InputError, match=r'one label a point.*\(3,\)'):
    anomaly.measure(np.zeros(3), labels, threshold=0.0)
  with pytest.raises(types.InputError, match='not finite, the first at 2'):
    anomaly.measure([0, 0, np.nan, np.inf], labels, threshold=0.0)
  with pytest.raises(types.InputError, match='say normal'):
    anomaly.measure(np.zeros(4), np.zeros(4), threshold=0.0)
  with pytest.raises(types.InputError, match='one label a point'):
    anomaly.event_f1(np.zeros(3), labels)
  with pytest.raises(types.InputError, match='rate must be in'):
    anomaly.threshold(np.zeros(3), 0.0)
  with pytest.raises(types.InputError, match=r'k must be in \[0, 100\]'):
    anomaly.point_adjusted(np.zeros(4), labels, k=101)
  with pytest.raises(types.InputError, match='do not lie in a series of 9'):
    anomaly.over_windows(np.zeros((2, 4)), [0, 6], 9)


def test_areas_have_their_names_and_events_end_with_their_series():
  labels = np.array([0, 1, 1, 0, 1, 0, 0, 0])
  series = np.array([0, 0, 1, 1, 1, 2, 2, 2])
  scores = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.95, 0.05, 0.15])
  found = anomaly.measure(scores, labels, threshold=0.5, series=series)
  assert found['auroc'] == pytest.approx(11 / 15)
  assert found['auprc'] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
  # Two of three events; of three runs of alarms one is false.
  assert found['f1_events'] == pytest.approx(2 / 3)


def test_a_threshold_lets_as_many_through_as_were_asked_for():
  scores = np.arange(100)
  assert (scores > anomaly.threshold(scores, 0.29)).sum() == 29
