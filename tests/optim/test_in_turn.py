"""Blocks in turn are optimizers of one block each, one after the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types

# One block has a parameter by the other's name.
PARAMS = {
  'second': {'w': jnp.array([1.0, -2.0])},
  'first': {'w': jnp.ones(3), 'second': jnp.array(4.0)},
}
ORDER = ('first', 'second')


def run(tx, params, steps):
  """Parameters and state after each step on gradients of sums of squares."""
  state, seen = tx.init(params), []
  for _ in range(steps):
    grads = jax.tree.map(lambda x: 2 * x + 1, params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    seen.append((params, state))
  return seen


@pytest.mark.parametrize(
  'make',
  [
    lambda: optax.chain(
      optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
    lambda: optax.chain(optax.trace(0.5, nesterov=True), optax.scale(-0.2)),
    lambda: optax.adamw(0.1),
    lambda: optax.chain(optax.adabelief(0.1), optax.ema(0.9)),
  ],
)
def test_each_block_is_trained_as_if_alone(make):
  seen = run(optim.in_turn(make(), ORDER, steps_per_block=3), PARAMS, 8)
  for name, begin, end in (('first', 0, 3), ('second', 3, 8)):
    alone = [x[0] for x in run(make(), PARAMS[name], end - begin)]
    expected = [PARAMS[name]] * begin + alone + alone[-1:] * (8 - end)
    chex.assert_trees_all_close([x[0][name] for x in seen], expected)


def test_moments_wait_and_their_counts_begin_anew():
  tx = optim.in_turn(optax.adamw(0.1), ORDER, steps_per_block=2)
  seen = run(tx, PARAMS, 4)
  adam = [state.inner[0] for _, state in seen]
  assert [int(x.count) for x in adam] == [1, 2, 1, 2]
  for moment in ('mu', 'nu'):
    each = [getattr(x, moment) for x in adam]
    np.testing.assert_array_equal(each[1]['second']['w'], 0)
    assert (each[2]['second']['w'] != 0).all()
    chex.assert_trees_all_equal(each[1]['first'], each[3]['first'])


def test_schedules_count_the_steps_of_all_blocks():
  tx = optim.in_turn(
    optax.sgd(lambda count: 0.1 * (count + 1)), ORDER, steps_per_block=1
  )
  (_, _), (params, _) = run(tx, PARAMS, 2)
  before = PARAMS['second']['w']
  np.testing.assert_allclose(
    params['second']['w'], before - 0.2 * (2 * before + 1), rtol=1e-6
  )


def test_blocks_out_of_turn_count_in_no_norm():
  params = {'a': jnp.ones(()), 'b': jnp.ones(())}
  tx = optim.in_turn(
    optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
    ('a', 'b'),
    steps_per_block=2,
  )
  updates, _ = tx.update({'a': 1.0, 'b': 1000.0}, tx.init(params), params)
  np.testing.assert_allclose(updates['a'], -1.0)
  assert updates['b'] == 0


def test_one_block_is_the_plain_optimizer():
  make, params = lambda: optax.adamw(0.1), {'first': PARAMS['first']}
  found = run(optim.in_turn(make(), ['first'], steps_per_block=1), params, 3)
  chex.assert_trees_all_equal(
    [x[0] for x in found], [x[0] for x in run(make(), params, 3)]
  )


def test_other_blocks_than_the_parameters_are_refused():
  for blocks in (('first',), ('first', 'third'), ('first', 'second', 'first')):
    with pytest.raises(types.InputError, match='blocks are'):
      optim.in_turn(optax.sgd(0.1), blocks, steps_per_block=1).init(PARAMS)
  for steps in (0, 2.5):
    with pytest.raises(types.InputError, match='steps_per_block'):
      optim.in_turn(optax.sgd(0.1), ORDER, steps_per_block=steps)


def test_counts_of_a_part_that_is_called_as_a_block_go_on():
  parts = {x: optax.sgd(lambda count: 0.1 * (count + 1)) for x in ORDER}
  labels = {
    name: jax.tree.map(lambda _, n=name: n, PARAMS[name]) for name in ORDER
  }
  tx = optim.in_turn(optax.partition(parts, labels), ORDER, steps_per_block=2)
  plain = optim.in_turn(parts['first'], ORDER, steps_per_block=2)
  for one, other in zip(run(tx, PARAMS, 4), run(plain, PARAMS, 4), strict=True):
    chex.assert_trees_all_close(one[0], other[0])
