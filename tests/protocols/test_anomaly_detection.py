"""Detectors are trained and judged as each of them would be alone."""

import jax
import numpy as np
import optax
import pytest

from configs import anomaly_transformer as recipe
from repjax.experiments import anomaly_data
from repjax.experiments import of_anomalies
from repjax.methods import anomaly_transformer
from repjax.metrics import anomaly
from repjax.protocols import anomaly_detection

SEEDS = (3, 4)
WINDOWS = dict(length=40, stride=20, eval_stride=20)


@pytest.fixture(scope='module')
def trained():
  config = recipe.get_config('smoke')
  method = anomaly_transformer.make(
    recipe.network(config), optax.adam(1e-2), temperature=1.0
  )
  data = []
  for seed in SEEDS:
    config.seed = seed
    data.append(anomaly_data.read(config))
  models = anomaly_detection.train(
    'both', method, data, windows=WINDOWS, seeds=SEEDS, batch_size=4, steps=6
  )
  return method, data, models


def test_outputs_are_those_of_each_seeds_network_on_its_own_series(trained):
  method, data, models = trained
  windows = anomaly_data.eval_windows(data[1], 'test', **WINDOWS)
  rows = windows.read(np.arange(len(windows)))
  state = jax.tree.map(lambda x: x[1], models.states)
  expected = method.predict(
    state, {**rows, 'mask': np.ones(len(windows), np.float32)}
  )
  assert set(models.outputs[1]) == {'score', 'error', 'discrepancy'}
  for name, values in expected.items():
    np.testing.assert_allclose(
      models.outputs[1][name], values, rtol=1e-4, atol=1e-6
    )
  np.testing.assert_array_equal(models.columns[1]['position'], rows['position'])
  assert (models.outputs[0]['error'] != models.outputs[1]['error']).all()


def test_detectors_are_judged_by_their_own_validation_scores(trained):
  _, data, models = trained
  scored = anomaly_detection.score(
    models, data, {'plain': lambda x: x['error']}, seeds=SEEDS
  )
  table = anomaly_detection.judge(scored, rate=0.05)
  assert set(table) == {'plain', 'input_norm', 'random'}
  for i, (known, test) in enumerate(scored):
    assert len(known.labels) == 2000
    assert not known.labels.any()
    limit = np.sort(known.scores['plain'])[-101]  # 100 are above it.
    expected = anomaly.measure(
      test.scores['plain'], data[i].kinds > 0, threshold=limit
    )
    assert {k: x[i] for k, x in table['plain'].items()} == expected
  assert (table['random']['auroc'][0] != table['random']['auroc'][1]).all()


def test_random_scores_find_long_segments_as_chance_says():
  labels = np.arange(20_000) % 2_000 < 200
  points = of_anomalies.Points(
    {}, np.zeros(20_000), np.arange(20_000), labels, np.ones(20_000, bool)
  )
  (found,) = anomaly_detection.adjusted_at_random(
    [(points, points)], rate=0.01, draws=40
  )
  # A segment is hit with probability 1 - .99^200; the rest raises 1 % alarms.
  recall = 1 - 0.99**200
  precision = 0.1 * recall / (0.1 * recall + 0.9 * 0.01)
  expected = 2 * precision * recall / (precision + recall)
  assert found == pytest.approx(expected, abs=0.02)


def test_random_scores_in_gaps_count_for_nothing():
  number = np.arange(2_000)
  labels, measured = number % 500 < 50, number % 500 < 100
  gapped = of_anomalies.Points({}, np.zeros(2_000), number, labels, measured)
  found, expected = (
    anomaly_detection.adjusted_at_random([(x, x)], rate=0.1, draws=3)
    for x in (gapped, gapped.judged())
  )
  np.testing.assert_array_equal(found, expected)


def test_random_scores_of_equal_series_are_drawn_for_each_seed():
  labels = np.arange(2_000) % 500 < 50
  points = of_anomalies.Points(
    {}, np.zeros(2_000), np.arange(2_000), labels, np.ones(2_000, bool)
  )
  found = anomaly_detection.adjusted_at_random(
    [(points, points)] * 3, rate=0.01, draws=3
  )
  assert len(set(found)) == 3
