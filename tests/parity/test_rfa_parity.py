"""RFA against the published code's arithmetic, restated in NumPy.

The code (Noahs-ARK/RFA) is not a package, and needs CUDA: what follows states
its steps again: features, its recurrence for decoding, and its masked form for
training, each with the bounds that it puts under the fraction.
"""

import functools

import jax
import numpy as np
import pytest

from repjax.layers import rfa
from repjax.layers.attention.linear import random_features

pytestmark = pytest.mark.parity

LENGTH, BATCH, HEADS, DIM, ROWS = 21, 2, 3, 16, 64


def inputs():
  rng = np.random.default_rng(0)
  arrays = rng.normal(size=(3, BATCH, LENGTH, HEADS, DIM))
  sigma = rng.uniform(0.8, 1.2, size=(HEADS, 1, DIM))
  draw = functools.partial(
    random_features.draw_projection, num_features=ROWS, dim=DIM
  )
  rows = jax.vmap(draw)(jax.random.split(jax.random.key(0), HEADS))
  # Learned bandwidths, and a temperature of 1.
  return arrays.astype(np.float32), (sigma * rows).astype(np.float32)


def features(x, rows):
  x = np.float64(x)
  x = x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-3)
  angles = np.einsum('blhd,hmd->blhm', x, np.float64(rows))
  return 0.1 * np.concatenate([np.sin(angles), np.cos(angles)], -1)


def decode(phi_q, phi_k, value):
  """Its loop for decoding (and its CUDA kernel): sums of at least 1."""
  outer = np.cumsum(phi_k[..., None] * value[..., None, :], axis=1)
  sums = np.cumsum(phi_k, axis=1)
  above = np.einsum('blhm,blhmv->blhv', phi_q, outer)
  below = np.einsum('blhm,blhm->blh', phi_q, sums)
  return above / np.maximum(below, 1.0)[..., None]


def masked(phi_q, phi_k, value, sees, bound):
  """Its quadratic form: absolute sums of at least `bound`."""
  scores = np.einsum('bthm,bshm->bhts', phi_q, phi_k) * sees
  below = np.maximum(np.abs(scores.sum(-1, keepdims=True)), bound)
  return np.einsum('bhts,bshv->bthv', scores / below, value)


@functools.partial(jax.jit, static_argnames=('causal', 'denominator'))
def run(arrays, rows, **settings):
  return rfa.rfa(*arrays, rows, norm_epsilon=1e-3, chunk_size=8, **settings)


def test_causal_form_is_its_recurrence_under_its_bound():
  arrays, rows = inputs()
  phi_q, phi_k = (features(x, rows) for x in arrays[:2])
  expected = decode(phi_q, phi_k, arrays[2])
  found = run(arrays, rows, causal=True, denominator='paper_code')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  # Its bound acts on the first positions, and only there.
  ours = run(arrays, rows, causal=True)
  assert np.abs(ours - expected)[:, 0].max() > 0.1
  np.testing.assert_allclose(ours[:, 8:], expected[:, 8:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_masked_form_is_its_quadratic_one_with_padding(causal):
  arrays, rows = inputs()
  phi_q, phi_k = (features(x, rows) for x in arrays[:2])
  mask = np.arange(LENGTH) < np.array([[15], [21]])
  sees = mask[:, None, None]
  if causal:
    sees = sees & np.tril(np.ones((LENGTH, LENGTH), bool))
  expected = masked(phi_q, phi_k, arrays[2], sees, 1e-3)
  found = run(
    arrays, rows, causal=causal, mask=mask, denominator='paper_code_masked'
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_cross_form_is_its_own_under_its_bound():
  arrays, rows = inputs()
  phi_q, phi_k = (features(x, rows) for x in arrays[:2])
  expected = masked(phi_q[:, :5], phi_k, arrays[2], 1.0, 1.0)
  found = run((arrays[0][:, :5], *arrays[1:]), rows, denominator='paper_code')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
