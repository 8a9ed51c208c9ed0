"""What is contrasted has a direction, whatever the features are."""

import functools

import jax
import numpy as np

from repjax.layers import projector


def test_it_is_two_layers_whose_biases_begin_as_the_authors_do():
  layer = projector.Projector(3)
  features = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
  params = jax.device_get(
    jax.jit(layer.init)(jax.random.key(0), features)['params']
  )
  hidden, out = params['hidden'], params['out']
  # Uniform in +- 1 / sqrt(inputs), of both layers.
  for bias in (hidden['bias'], out['bias']):
    assert bias.min() >= -0.25
    assert bias.max() <= 0.25
    assert bias.std() > 0.05
  apply = jax.jit(functools.partial(layer.apply, {'params': params}))
  seen = np.maximum(features @ hidden['kernel'] + hidden['bias'], 0)
  expected = seen @ out['kernel'] + out['bias']
  np.testing.assert_allclose(apply(features), expected, rtol=1e-5, atol=1e-5)
