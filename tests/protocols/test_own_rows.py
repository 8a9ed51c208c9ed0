"""Seeds see their own rows, in training and in tests."""

import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import erm
from repjax.methods import model_inputs
from repjax.models import mlp
from repjax.protocols import own_rows
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

SEEDS = (3, 4)
METHOD = erm.make(
  mlp.Mlp(2, features=()), optax.sgd(0.5), inputs=model_inputs.features
)


def _rows(num_rows):
  # The second seed's labels are the opposite of the first one's.
  x = np.random.default_rng(num_rows).normal(size=(num_rows, 2))
  label = (x[:, 0] > 0).astype(np.int32)
  return {
    'features': np.stack([x, x]).astype(np.float32),
    'label': np.stack([label, 1 - label]),
  }


def test_each_model_learns_and_is_tested_on_its_own_rows():
  train, test = _rows(64), _rows(40)
  order = seed_loop.epochs(64, SEEDS, steps=40, batch_size=16)
  start = side_by_side.begin(METHOD, train, SEEDS)
  states, (at, scores) = own_rows.fit(
    'test', METHOD, start, train, order, seeds=SEEDS, points=4, test=test
  )
  np.testing.assert_array_equal(at, [10, 20, 30, 40])
  assert scores.shape == (4, 2) and scores[-1].min() > 0.9
  outputs = own_rows.predict(METHOD.predict, states, test)
  for seed in range(2):
    state = jax.tree.map(lambda x, at=seed: x[at], states)
    batch = {**{k: x[seed] for k, x in test.items()}, 'mask': np.ones(40)}
    np.testing.assert_allclose(
      outputs['logits'][seed], METHOD.predict(state, batch)['logits'], rtol=1e-5
    )
  # On the other's rows each model is wrong.
  swapped = {k: x[::-1] for k, x in test.items()}
  outputs = own_rows.predict(METHOD.predict, states, swapped)
  assert side_by_side.accuracy(outputs, swapped).max() < 0.1
  with pytest.raises(types.InputError, match='2 states need rows of as many'):
    own_rows.predict(
      METHOD.predict, states, {k: x[:1] for k, x in test.items()}
    )


def test_without_tests_nothing_is_followed():
  train = _rows(8)
  order = seed_loop.epochs(8, SEEDS, steps=2, batch_size=8)
  start = side_by_side.begin(METHOD, train, SEEDS)
  _, (at, scores) = own_rows.fit(
    'test', METHOD, start, train, order, seeds=SEEDS, points=1
  )
  assert len(at) == len(scores) == 0
