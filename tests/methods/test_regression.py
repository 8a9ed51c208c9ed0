"""Least squares against its formula."""

import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import regression
from repjax.models import mlp


def test_a_linear_model_comes_to_the_least_squares_solution():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(32, 2, 2, 1)).astype(np.float32)
  target = rng.normal(size=(32, 3)).astype(np.float32) + 2.0
  batch = {'image': image, 'target': target, 'mask': np.ones(32, np.float32)}
  batch['mask'][30:] = 0.0  # Padding counts for nothing.
  batch['target'][30:] = 1e6
  method = regression.make(mlp.Mlp(3, features=()), optax.sgd(0.2))
  state = method.init(jax.random.key(0), batch)
  end = jax.jit(
    lambda state: jax.lax.fori_loop(
      0,
      2000,
      lambda _, s: method.update(s, batch, jax.random.key(0))[0],
      state,
    )
  )(state)
  inputs = np.concatenate([image.reshape((32, 4)), np.ones((32, 1))], 1)
  best, *_ = np.linalg.lstsq(inputs[:30], target[:30], rcond=None)
  outputs = method.predict(end, batch)
  np.testing.assert_allclose(outputs['prediction'], inputs @ best, atol=1e-3)


def test_the_mean_explains_nothing_and_the_truth_all():
  target = np.random.default_rng(0).normal(size=(9, 2))
  guesses = np.stack([np.tile(target.mean(0), (9, 1)), target])
  found = regression.unexplained({'prediction': guesses}, {'target': target})
  np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize('shape', [(8,), (8, 1)])
def test_targets_of_another_shape_are_refused_not_spread(shape):
  width = 3 if len(shape) == 2 else 1
  method = regression.make(mlp.Mlp(width, features=()), optax.sgd(0.1))
  batch = {
    'image': np.zeros((8, 2, 2, 1), np.float32),
    'target': np.zeros(shape, np.float32),
    'mask': np.ones(8, np.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  with pytest.raises(types.InputError, match=rf"'target' \[B, {width}\]"):
    jax.eval_shape(method.update, state, batch, jax.random.key(0))
