"""What is planted is where its labels say, and nowhere else."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import planted_anomalies
from repjax.metrics import anomaly

SMALL = dict(
  num_train=400,
  num_validation=100,
  num_test=1500,
  num_points=6,
  num_contextual=5,
  num_collective=2,
  lengths=(60, 80),
)


@pytest.fixture(scope='module')
def planted():
  return planted_anomalies.make(**SMALL, noise=0.0)


def test_what_is_before_the_test_rows_is_normal(planted):
  assert planted.rows == (400, 100, 1500)
  assert not planted.kinds[:500].any()
  assert len(planted.series) == 2000
  np.testing.assert_array_equal(planted.series.labels, planted.kinds > 0)


def test_normal_rows_repeat_after_the_common_period(planted):
  # 300 is a multiple of both periods.
  values, normal = planted.series.values, planted.kinds == 0
  both = normal[:-300] & normal[300:]
  assert both.mean() > 0.5
  np.testing.assert_allclose(values[:-300][both], values[300:][both], atol=1e-4)


def test_anomalies_are_what_they_are_called(planted):
  values = planted.series.values
  clean = np.tile(values[:300], (7, 1))[:2000]
  top = abs(clean).max(0)
  changed = (abs(values - clean) > 1e-3).any(1)
  normal = planted.kinds == 0
  assert not changed[normal].any()
  found = anomaly.segments(planted.series.labels)
  kinds = [planted.kinds[start] for start, _ in found]
  assert [kinds.count(kind) for kind in (1, 2, 3)] == [6, 5, 2]
  for kind, (start, stop) in zip(kinds, found, strict=True):
    assert (planted.kinds[start:stop] == kind).all()
    rows = slice(start, stop)
    channels = (abs(values[rows] - clean[rows]) > 1e-3).any(0)
    assert 1 <= channels.sum() <= 2
    if kind == 1:
      assert stop - start == 1
      assert (abs(values[start]) > top).sum() == 2
    elif kind == 2:
      assert stop - start <= 3
      assert (abs(values[rows]) <= top + 1e-4).all()
      gap = abs(values[rows] - clean[rows])[:, channels]
      assert (gap >= 0.95 * clean.std(0)[channels]).all()
    else:
      assert 60 <= stop - start <= 80
      assert (abs(values[rows]) <= top + 1e-4).all()


def test_anomalies_do_not_touch(planted):
  found = anomaly.segments(planted.series.labels)
  assert (found[1:, 0] - found[:-1, 1] >= 20).all()
  assert found[0, 0] >= 520


def test_seeds_differ_and_repeat(planted):
  again = planted_anomalies.make(**SMALL, noise=0.0)
  np.testing.assert_array_equal(again.series.values, planted.series.values)
  other = planted_anomalies.make(**SMALL, noise=0.0, seed=1)
  assert (other.kinds != planted.kinds).any()


def test_noise_has_its_deviation():
  noisy = planted_anomalies.make(**SMALL, noise=0.2).series.values[:500]
  quiet = planted_anomalies.make(**SMALL, noise=0.0).series.values[:500]
  assert (noisy - quiet).std() == pytest.approx(0.2, rel=0.05)


def test_what_does_not_fit_is_refused():
  with pytest.raises(types.InputError, match='do not fit into 100 test rows'):
    planted_anomalies.make(**{**SMALL, 'num_test': 100})
  with pytest.raises(types.InputError, match='num_channels must be in'):
    planted_anomalies.make(num_channels=0)
  with pytest.raises(types.InputError, match='shortest and the longest'):
    planted_anomalies.make(lengths=(5, 4))
