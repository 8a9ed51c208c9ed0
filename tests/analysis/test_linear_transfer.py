"""The linear theory against finite differences, samples and its statements."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import linear_transfer as transfer

SIZES = dict(dim=30, num_features=3, subspace_dim=8, num_rows=40)


def problem(seed=0, feature_error=0.0):
  return transfer.problem(seed, feature_error=feature_error, **SIZES)


def training_loss(task, network):
  error = network.features.T @ network.head - task.weights
  return error @ task.covariance @ error / 2


def test_a_step_follows_the_gradient():
  task = problem(feature_error=0.5)
  start = transfer.random_head(task, 1)
  end = transfer.fine_tune(task, start, learning_rate=0.1, steps=1)
  rng = np.random.default_rng(0)
  for direction in (
    transfer.Network(rng.normal(size=3), 0 * start.features),
    transfer.Network(0 * start.head, rng.normal(size=(3, 30))),
  ):

    def loss(t, direction=direction):
      return training_loss(
        task,
        transfer.Network(
          *(x + t * d for x, d in zip(start, direction, strict=True))
        ),
      )

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    step = sum(
      float(((e - s) * d).sum())
      for e, s, d in zip(end, start, direction, strict=True)
    )
    np.testing.assert_allclose(step, -0.1 * slope, rtol=1e-6)


def test_the_feature_error_is_what_was_asked_for():
  for error in (0.0, 0.1, 1.0, 2**0.5):
    task = problem(feature_error=error)
    rows = task.features
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    # All principal angles are equal: w* keeps cos of its length, and
    # the chord of that angle is the error.
    kept = np.clip(np.linalg.norm(rows @ task.weights), 0, 1)
    chord = 2 * np.sin(np.arccos(kept) / 2)
    np.testing.assert_allclose(chord, error, atol=1e-6)


def test_the_losses_are_those_of_many_samples():
  task = problem(feature_error=0.3)
  network = transfer.random_head(task, 2)
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(100_000, 30))
  inside = rng.normal(size=(100_000, 8)) @ task.subspace.T
  found = transfer.losses(task, network)
  for name, x in (('ood', rows), ('id', inside)):
    error = x @ network.features.T @ network.head - x @ task.weights
    np.testing.assert_allclose(found[name], np.square(error).mean(), rtol=0.03)


def test_the_probe_is_the_best_head():
  task = problem(feature_error=0.5)
  probe = transfer.probe(task)
  best = training_loss(task, probe)
  rng = np.random.default_rng(0)
  for _ in range(20):
    other = probe._replace(head=probe.head + 1e-3 * rng.normal(size=3))
    assert training_loss(task, other) > best


def test_with_perfect_features_only_fine_tuning_fails_elsewhere():
  task = problem()
  start = transfer.probe(task)
  tuning = dict(learning_rate=0.1, steps=3000)
  tuned = transfer.fine_tune(task, start, **tuning)
  fresh = transfer.fine_tune(task, transfer.random_head(task, 0), **tuning)
  for network in (start, tuned, fresh):
    assert transfer.losses(task, network)['id'] < 1e-12
    # Inputs orthogonal to the data are seen as before.
    assert transfer.movement(task, network)['orthogonal'] < 1e-12
  assert transfer.losses(task, start)['ood'] < 1e-12
  assert transfer.losses(task, tuned)['ood'] < 1e-12
  assert transfer.losses(task, fresh)['ood'] > 0.05
  assert transfer.movement(task, fresh)['id'] > 0.1


@pytest.mark.parametrize(
  'settings, word',
  [
    ({'feature_error': 1.5}, r'feature_error=1\.5'),
    ({'subspace_dim': 3}, 'subspace_dim=3'),
    ({'subspace_dim': 27}, 'subspace_dim=27'),
    ({'num_rows': 7}, 'num_rows=7'),
  ],
)
def test_impossible_problems_are_refused(settings, word):
  with pytest.raises(types.InputError, match=word):
    transfer.problem(0, **{'feature_error': 0.0, **SIZES, **settings})


def test_the_table_has_each_way_from_its_own_start():
  how = dict(learning_rate=0.1, steps=40)
  found = transfer.compare(feature_error=0.3, seeds=2, **how, **SIZES)
  assert list(found) == ['LP', 'FT', 'LP-FT']
  for seed in range(2):
    task = problem(seed, 0.3)
    start, other = transfer.probe(task), transfer.random_head(task, seed)
    for name, network in (
      ('LP', start),
      ('FT', transfer.fine_tune(task, other, **how)),
      ('LP-FT', transfer.fine_tune(task, start, **how)),
    ):
      expected = transfer.losses(task, network)
      for inputs, x in transfer.movement(task, network).items():
        expected[f'moved {inputs}'] = x
      own = {key: x[seed] for key, x in found[name].items()}
      assert own == pytest.approx(expected)
