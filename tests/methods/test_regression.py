"""Least squares against its formula."""

import jax
import numpy as np
import optax

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
