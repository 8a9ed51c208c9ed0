"""The pull towards the start against its formula."""

import jax
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types

RNG = np.random.default_rng(0)


def tree():
  return {
    'body': {'kernel': RNG.normal(size=(2, 3)).astype(np.float32)},
    'head': {'kernel': RNG.normal(size=3).astype(np.float32)},
  }


def test_the_gradient_is_that_of_both_penalties():
  start, at, grads = tree(), tree(), tree()
  tx = optim.l2_sp(0.5, head_strength=0.25)
  found, state = jax.jit(tx.update)(grads, tx.init(start), at)
  np.testing.assert_allclose(
    found['body']['kernel'],
    grads['body']['kernel']
    + 0.5 * (at['body']['kernel'] - start['body']['kernel']),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    found['head']['kernel'],
    grads['head']['kernel'] + 0.25 * at['head']['kernel'],
    rtol=1e-6,
  )
  # It holds on to the start, whatever comes.
  jax.tree.map(np.testing.assert_array_equal, state.start, start)


def test_the_start_is_a_copy():
  params = jax.tree.map(jax.numpy.asarray, tree())
  state = optax.chain(optim.l2_sp(0.5), optax.sgd(0.1)).init(params)[0]
  kernel = params['body']['kernel']
  held = state.start['body']['kernel']
  assert held.unsafe_buffer_pointer() != kernel.unsafe_buffer_pointer()


def test_what_cannot_pull_is_refused():
  with pytest.raises(types.InputError, match='strength=-1'):
    optim.l2_sp(-1.0)
  with pytest.raises(types.InputError, match='strength=nan'):
    optim.l2_sp(float('nan'))
  with pytest.raises(types.InputError, match="Did you mean 'head'"):
    optim.l2_sp(0.5, head='haed').init(tree())
