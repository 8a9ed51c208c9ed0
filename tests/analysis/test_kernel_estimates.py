"""Errors of kernel estimates against their closed forms, in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.analysis import kernel_estimates
from repjax.layers.attention.linear import random_features

DIM, FEATURES = 8, 8


def pair(cosine, length):
  x, y = np.eye(DIM, dtype=np.float32)[:2]
  return length * x, length * (cosine * x + (1 - cosine**2) ** 0.5 * y)


def variance(x, y):
  """Of one positive feature over exp(x . y)^2: Choromanski et al., lemma 2."""
  return np.exp(np.square(np.float64(x) + y).sum(-1)) - 1


def error(x, y, kind='iid', features=random_features.positive):
  return kernel_estimates.squared_error(
    jax.random.key(0),
    x,
    y,
    features=features,
    kind=kind,
    num_features=FEATURES,
    draws=8000,
  )


@pytest.mark.parametrize('cosine', [-0.9, 0.0])
def test_error_of_independent_rows_is_the_lemmas(cosine):
  x, y = pair(cosine, 0.7)
  expected = np.exp(2 * x @ y) * variance(x, y) / FEATURES
  np.testing.assert_allclose(error(x, y), expected, rtol=0.15)


def test_orthogonal_rows_err_less():
  x, y = pair(0.2, 1.0)
  assert error(x, y, 'orthogonal') < 0.95 * error(x, y)


def test_errors_are_of_unit_vectors_and_of_nearly_opposite_ones():
  found = kernel_estimates.errors(
    jax.random.key(1), dim=DIM, sizes=(8, 32), draws=4000
  )
  for kind in ('orthogonal', 'iid'):
    assert found[kind][1] < found[kind][0] / 2
  # |u + v|^2 = 8 (1 - 0.95), and 64 features.
  u, v = pair(-0.95, 2.0)
  expected = np.exp(2 * u @ v) * variance(u, v) / 64
  np.testing.assert_allclose(found['positive'], expected, rtol=0.15)
  assert found['trigonometric'] > 100 * found['positive']


def share(query, key, num_features):
  """By its definition, in float64."""
  root = DIM**0.5
  query, key = np.float64(query), np.float64(key)
  shares = []
  for row in range(query.shape[0]):
    for head in range(query.shape[2]):
      for at, q in enumerate(query[row, :, head]):
        keys = key[row, : at + 1, head]
        weights = np.exp(keys @ q / root)
        known = variance(q / root**0.5, keys / root**0.5) / num_features < 1
        shares.append((weights * known).sum() / weights.sum())
  return np.mean(shares)


@pytest.mark.parametrize('num_features', [4, 16, 10**4])
def test_share_is_that_of_weights_with_a_small_variance(num_features):
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 2, 6, 3, DIM)).astype(np.float32)
  found = kernel_estimates.estimable_share(
    query, key, num_features=num_features
  )
  expected = share(query, key, num_features)
  assert 0 < expected < 1 or num_features == 10**4
  np.testing.assert_allclose(found, expected, rtol=1e-5)


class TwoLayers(nn.Module):
  """Attention of the inputs to themselves, and of the same, `scale` times."""

  attention_fn: object

  @nn.compact
  def __call__(self, x, train):
    assert not train
    big = self.param('scale', nn.initializers.ones, ()) * x
    return self.attention_fn(x, x, x) + self.attention_fn(big, big, big)


def test_share_of_a_network_is_the_mean_of_its_layers():
  x = np.random.default_rng(1).normal(size=(2, 5, 2, DIM)).astype(np.float32)
  found = kernel_estimates.share_of_network(
    TwoLayers, {'scale': jnp.float32(2.0)}, x, num_features=4
  )
  expected = (share(x, x, 4) + share(2 * x, 2 * x, 4)) / 2
  assert share(2 * x, 2 * x, 4) < expected < share(x, x, 4)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
