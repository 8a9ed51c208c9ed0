"""Sums over keys in units of their largest weight, against plain sums."""

import jax.numpy as jnp
import numpy as np

from repjax.layers.attention.linear import attention_sums


def test_denominators_keep_their_distance_from_zero():
  totals = attention_sums.Totals(
    numerator=jnp.ones((4, 1, 1)),
    denominator=jnp.array([[2.0], [1e-9], [-1e-9], [0.0]]),
    weight=jnp.array([[2.0], [2.0], [2.0], [0.0]]),
    log_scale=jnp.zeros((4, 1)),
  )
  found = attention_sums.divide(totals, floor=0.1)[:, 0, 0]
  np.testing.assert_allclose(found, [0.5, 5.0, -5.0, 1.0], rtol=1e-6)


def test_absorbed_keys_are_plain_sums_whatever_their_scale():
  rng = np.random.default_rng(0)
  k, value = rng.random((2, 5, 3)), rng.normal(size=(2, 5, 4))
  k, value = np.float32(k), np.float32(value)
  logs = np.float32(rng.normal(size=(2, 5)))
  counts = np.float32([[1, 1, 0, 1, 1]])
  for shift in (0.0, 300.0, -300.0):
    state = attention_sums.empty_state((), 2, 3, 4)
    for _ in range(2):
      state = attention_sums.absorb(
        state, k, value, logs=logs + np.float32(shift), counts=counts
      )
    factor = np.exp(np.float64(state.log_scale) - shift)
    weights = 2 * np.exp(np.float64(logs)) * counts
    np.testing.assert_allclose(
      state.values * factor[:, None, None],
      np.einsum('hc,hcm,hcv->hmv', weights, k, value),
      rtol=1e-4,
    )
    np.testing.assert_allclose(
      state.weight * factor, weights.sum(-1), rtol=1e-4
    )


def test_one_unit_is_the_largest_weight():
  weights, carried, unit = attention_sums.weigh(
    jnp.array([1.0, attention_sums.EMPTY, 3.0]), jnp.array(2.0)
  )
  assert unit == 3
  np.testing.assert_allclose(weights, np.exp([-2, -np.inf, 0]), rtol=1e-6)
  np.testing.assert_allclose(carried, np.exp(-1), rtol=1e-6)
  nothing = attention_sums.weigh(
    jnp.full((3,), attention_sums.EMPTY), jnp.array(attention_sums.EMPTY)
  )
  np.testing.assert_array_equal(nothing[0], 0)


def test_leaves_of_a_state_begin_with_the_batch():
  state = attention_sums.empty_state((3,), 2, 5, 4)
  shapes = [(3, 2, 5, 4), (3, 2, 5), (3, 2), (3, 2)]
  assert [leaf.shape for leaf in state] == shapes
