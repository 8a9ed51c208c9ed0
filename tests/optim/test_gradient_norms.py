"""Norms of the last steps, in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types


def test_the_last_norms_are_kept_and_updates_are_as_they_were():
  tx = optax.chain(optim.gradient_norms(3), optax.sgd(1.0))
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(())}
  state, seen = tx.init(params), []
  for length in (5.0, 10.0, 0.0, 20.0, 15.0):
    grads = {'a': length * jnp.array([0.6, 0.0]), 'b': jnp.array(0.8 * length)}
    updates, state = tx.update(grads, state, params)
    np.testing.assert_array_equal(updates['a'], -grads['a'])
    seen.append(length)
    np.testing.assert_allclose(state[0].history(), seen[-3:], rtol=1e-6)


def test_states_of_many_seeds_have_a_history_each():
  link = optim.gradient_norms(4)
  state = jax.vmap(link.init)(jnp.zeros((2, 3)))
  for _ in range(6):
    grads = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    _, state = jax.vmap(link.update)(grads, state)
  np.testing.assert_allclose(state.history(), [[5.0] * 4, [1.0] * 4])


def test_it_keeps_at_least_one():
  with pytest.raises(types.InputError, match='num_steps must be in'):
    optim.gradient_norms(0)


def test_norms_of_half_precision_do_not_overflow():
  link = optim.gradient_norms(1)
  grads = jnp.full(4, 300.0, jnp.float16)
  _, state = link.update(grads, link.init(grads))
  np.testing.assert_allclose(state.history(), [600.0])
