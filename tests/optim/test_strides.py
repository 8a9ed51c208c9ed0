"""Strides have an optimizer of their own, bounds and a price."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.optim import strides
from repjax.types import InputError

PARAMS = {
  'stage_2': {'pool': {'strides': jnp.array([2.0, 4.0])}},
  'stage_10': {'pool': {'strides': jnp.array([3.0])}},
  'head': {'kernel': jnp.ones((2, 2))},
}


def test_each_group_moves_by_its_own_rule_and_strides_stay_in_bounds():
  tx = strides.stride_group(
    optax.sgd(0.1), optax.sgd(1.0), lowest=1.5, highest=4.0
  )
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  grads['stage_2']['pool']['strides'] = jnp.array([0.25, -1.0])
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  moved = optax.apply_updates(PARAMS, updates)
  np.testing.assert_allclose(moved['head']['kernel'], 0.9)
  np.testing.assert_allclose(moved['stage_2']['pool']['strides'], [1.75, 4.0])
  np.testing.assert_allclose(moved['stage_10']['pool']['strides'], [2.0])
  grads['stage_10']['pool']['strides'] = jnp.array([9.0])
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  moved = optax.apply_updates(PARAMS, updates)
  np.testing.assert_allclose(moved['stage_10']['pool']['strides'], [1.5])


def test_without_strides_it_is_the_optimizer_of_the_weights():
  params = {'head': PARAMS['head']}
  tx = strides.stride_group(optax.sgd(0.1), optax.sgd(1.0))
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates['head']['kernel'], -0.1)


def test_the_cost_is_a_sum_of_products_in_the_order_of_stages():
  # Stage 10 comes behind stage 2, and its one stride counts for both axes.
  expected = 1 / 8 + 1 / 8 / 9
  np.testing.assert_allclose(
    strides.relative_places(PARAMS), expected, rtol=1e-6
  )
  names = [path[0] for path, _ in strides.in_order(PARAMS)]
  assert names == ['stage_2', 'stage_10']
  assert strides.relative_places({'head': PARAMS['head']}) == 0
  series = {'pool': {'strides': jnp.array([2.0])}}
  assert strides.relative_places(series, axes=1) == 0.5


def test_the_price_drives_strides_up_and_leaves_weights_alone():
  strength = 0.5
  tx = strides.stride_cost(strength)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  assert not updates['head']['kernel'].any()
  # d/dS of 1 / (2 S) (1 + 1 / 9) at 4, and of 1 / (8 S^2) at 3.
  np.testing.assert_allclose(
    updates['stage_2']['pool']['strides'][1], -strength / 32 * 10 / 9, rtol=1e-5
  )
  np.testing.assert_allclose(
    updates['stage_10']['pool']['strides'], -strength / 4 / 27, rtol=1e-5
  )


@pytest.mark.parametrize(
  'make',
  [
    lambda: strides.stride_cost(-1.0),
    lambda: strides.stride_group(optax.sgd(0.1), optax.sgd(0.1), lowest=0.5),
    lambda: strides.stride_group(
      optax.sgd(0.1), optax.sgd(0.1), lowest=3.0, highest=2.0
    ),
  ],
)
def test_numbers_out_of_range_are_refused(make):
  with pytest.raises(InputError):
    make()


def test_price_and_bounds_may_be_schedules():
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  one, _ = strides.stride_cost(1.0).update(zeros, (), PARAMS)
  tx = optax.inject_hyperparams(strides.stride_cost, static_args='axes')(
    optax.linear_schedule(0.0, 1.0, 2)
  )
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for strength in (0.0, 0.5, 1.0):
    found, state = update(zeros, state, PARAMS)
    jax.tree.map(
      lambda x, y, s=strength: np.testing.assert_allclose(x, s * y, rtol=1e-6),
      found,
      one,
    )
  group = optax.inject_hyperparams(strides.stride_group)(
    optax.sgd(0.1), optax.sgd(1.0), lowest=1.5, highest=4.0
  )
  group.update(zeros, group.init(PARAMS), PARAMS)
  with pytest.raises(InputError, match='stride_cost needs axes as a number'):
    optax.inject_hyperparams(strides.stride_cost)(0.1).init(PARAMS)
