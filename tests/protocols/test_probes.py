"""Probes: votes by a loop, and a run's features measured once a state."""

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import in_order
from repjax.data.reading import source
from repjax.protocols import probes

RNG = np.random.default_rng(0)


def test_votes_are_those_of_a_loop():
  rows, labels = RNG.normal(size=(30, 4)), RNG.integers(0, 3, 30)
  queries = RNG.normal(size=(7, 4))
  found = probes.nearest(
    rows, labels, queries, num_classes=3, neighbours=5, temperature=0.2
  )
  for query, votes in zip(queries, found, strict=True):
    cosines = [
      query @ x / np.linalg.norm(x) / np.linalg.norm(query) for x in rows
    ]
    expected = np.zeros(3)
    for place in np.argsort(cosines)[-5:]:
      expected[labels[place]] += np.exp((cosines[place] - 1) / 0.2)
    np.testing.assert_allclose(votes, expected, rtol=1e-4)


def test_one_neighbour_is_the_nearest_and_many_are_all():
  rows, labels = np.eye(3), np.array([2, 0, 1])
  found = probes.nearest(rows, labels, rows, num_classes=3, neighbours=1)
  np.testing.assert_array_equal(found.argmax(-1), labels)
  everyone = probes.nearest(rows, labels, rows, num_classes=3, neighbours=99)
  assert (everyone > 0).all()


def test_chunks_change_nothing(monkeypatch):
  rows, labels = RNG.normal(size=(20, 4)), RNG.integers(0, 3, 20)
  queries = RNG.normal(size=(11, 4))
  whole = probes.nearest(rows, labels, queries, num_classes=3, neighbours=4)
  monkeypatch.setattr(probes, '_CHUNK', 4)
  parts = probes.nearest(rows, labels, queries, num_classes=3, neighbours=4)
  np.testing.assert_allclose(parts, whole, rtol=1e-5)


def _passes(num_rows, seed):
  """Rows whose class is the largest of three numbers; then their batches."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, num_rows)
  x = 0.3 * rng.normal(size=(num_rows, 3)) + 2 * np.eye(3)[label]
  made = source.from_arrays(
    'told', {'features': x.astype(np.float32), 'label': label}
  )
  return lambda: in_order.eval_batches(made, batch_size=16)


def _state(step, scale=1.0):
  return types.TrainState(np.int32(step), np.float32(scale), (), {}, ())


def test_a_state_is_measured_once_and_each_state_anew():
  counted, looked, rows = [], [], _passes(60, 0)

  def train():
    looked.append(1)
    return rows()

  def predict(state, batch):
    counted.append(1)  # When it is traced, and never again.
    return {'features': state.params * batch['features']}

  found = probes.measures(
    types.Predictor(predict),
    train,
    {'test': _passes(40, 1), 'val': _passes(30, 2)},
    num_classes=3,
    strengths=(0.1, 1.0),
  )
  assert list(found) == ['test/knn', 'test/linear', 'val/knn', 'val/linear']
  good, blind = _state(1), _state(2, 0.0)
  assert all(0.9 < found[x](good) <= 1 for x in found)
  assert len(looked) == 1
  again = _state(1, -1.0)
  assert found['test/knn'](again) > 0.9  # The negative of all is as good.
  with pytest.raises(types.InputError, match='All features are equal'):
    found['test/linear'](blind)
  # Of other parameters at the same step, too.
  found['test/knn'](good)
  with pytest.raises(types.InputError, match='All features are equal'):
    found['test/knn'](good.replace(params=np.float32(0)))


def test_without_strengths_there_is_no_probe():
  found = probes.measures(
    types.Predictor(lambda state, batch: {'features': batch['features']}),
    _passes(30, 0),
    {'test': _passes(30, 1)},
    num_classes=3,
    strengths=(),
  )
  assert list(found) == ['test/knn']


def test_labels_of_judged_rows_decide_nothing():
  # The probe never sees them: with labels in another order its head stays.
  rows, labels = RNG.normal(size=(50, 4)), RNG.integers(0, 3, 50)
  first = probes.fit_probe(rows, labels, num_classes=3)
  again = probes.fit_probe(rows, labels, num_classes=3)
  np.testing.assert_array_equal(first.kernel, again.kernel)
  with pytest.raises(types.InputError, match='ten rows'):
    probes.fit_probe(rows[:9], labels[:9], num_classes=3)


def test_features_and_labels_must_be_there():
  found = probes.measures(
    types.Predictor(lambda state, batch: {'logits': batch['features']}),
    _passes(30, 0),
    {'test': _passes(30, 1)},
    num_classes=3,
  )
  with pytest.raises(types.InputError, match='Probes need features'):
    found['test/knn'](_state(1))


def test_spread_tells_a_collapse():
  line = np.outer(RNG.normal(size=200), [1.0, 2.0, 0.0])
  cloud = RNG.normal(size=(2000, 4))
  point = np.ones((10, 3))
  assert probes.spread({'features': line}, {})['dimensions'] == pytest.approx(1)
  found = probes.spread({'features': cloud}, {})
  assert found['dimensions'] == pytest.approx(4, abs=0.1)
  assert found['spread'] == pytest.approx(1, abs=0.01)
  assert probes.spread({'features': point}, {})['spread'] == 0


def test_four_fifths_fit_and_the_fifth_chooses(monkeypatch):
  seen = []

  def fit(features, labels, *, val_features, val_labels, **settings):
    seen.extend((features[:, 0], val_features[:, 0]))
    np.testing.assert_array_equal(labels, features[:, 0] % 3)
    np.testing.assert_array_equal(val_labels, val_features[:, 0] % 3)
    return probes.linear_probe.Probe(*[None] * 5)

  monkeypatch.setattr(probes.linear_probe, 'fit', fit)
  probes.fit_probe(np.arange(50.0)[:, None], np.arange(50) % 3, num_classes=3)
  assert [len(x) for x in seen] == [40, 10]
  assert sorted(np.concatenate(seen)) == list(range(50))
