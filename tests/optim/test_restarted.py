"""A restarted optimizer is a new one from its step on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types
from repjax.optim import rehearsal
from repjax.protocols import side_by_side


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


@pytest.mark.parametrize(
  'link', [optim.restarted(optax.sgd(0.1), 2), optim.l2_sp(1.0)]
)
def test_without_parameters_it_says_what_is_missing(link):
  params = {'head': jnp.ones(2), 'body': jnp.ones(2)}
  tx = optax.chain(link, optax.sgd(0.1))
  with pytest.raises(types.InputError, match='needs params'):
    tx.update(params, tx.init(params))


def test_what_is_no_step_is_refused():
  with pytest.raises(types.InputError, match='at must be in'):
    optim.restarted(optax.adam(0.1), -1)
  with pytest.raises(types.InputError, match='at must be a whole number'):
    optim.restarted(optax.adam(0.1), 0.5)


@pytest.mark.parametrize(
  ('link', 'name'),
  [
    (
      optim.dp_sgd(1.0, 1.0, expected_batch_size=2.0, key=jax.random.key(0)),
      'DpSgdState',
    ),
    (optim.l2_sp(1.0), 'L2SpState'),
    (optax.add_noise(0.1, 0.5, jax.random.key(0)), 'AddNoiseState'),
    (rehearsal.ewc(1.0), 'EwcState'),
  ],
)
def test_what_must_not_begin_anew_is_refused(link, name):
  tx = optim.restarted(optax.chain(link, optax.sgd(0.1)), 3)
  with pytest.raises(types.InputError, match=name):
    tx.init({'head': jnp.ones(2), 'body': jnp.ones(2)})


def test_a_rate_in_the_state_stays_where_nothing_is_restarted():
  tx = optim.restarted(side_by_side.swept(optax.sgd(1.0)), 0)
  begun = types.TrainState(0, jnp.ones(2), tx.init(jnp.ones(2)), {}, ())
  state = side_by_side.with_rate(begun, 0.1).opt_state
  updates, _ = tx.update(jnp.ones(2), state, jnp.ones(2))
  np.testing.assert_allclose(updates, -0.1)
