"""A restarted optimizer is a new one from its step on."""

import chex
import jax.numpy as jnp
import optax
import pytest

from repjax import optim
from repjax import types


def _trajectory(tx, params, grads):
  state, seen = tx.init(params), []
  for grad in grads:
    updates, state = tx.update(grad, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


def test_it_is_two_optimizers_one_after_the_other():
  params = jnp.array([1.0, -2.0])
  grads = [jnp.array([i + 1.0, 3.0 - i]) for i in range(5)]
  seen = _trajectory(optim.restarted(optax.adam(0.1), 3), params, grads)
  first = _trajectory(optax.adam(0.1), params, grads[:3])
  second = _trajectory(optax.adam(0.1), first[-1], grads[3:])
  chex.assert_trees_all_close(seen, [*first, *second], rtol=1e-6)
  alone = _trajectory(optax.adam(0.1), params, grads)
  assert abs(seen[-1] - alone[-1]).max() > 1e-3


def test_a_restart_at_the_start_is_none():
  params, grads = jnp.ones(2), [jnp.array([1.0, 2.0])] * 3
  chex.assert_trees_all_close(
    _trajectory(optim.restarted(optax.adam(0.1), 0), params, grads),
    _trajectory(optax.adam(0.1), params, grads),
  )


def test_a_step_before_the_first_is_refused():
  with pytest.raises(types.InputError, match='at must be in'):
    optim.restarted(optax.adam(0.1), -1)
