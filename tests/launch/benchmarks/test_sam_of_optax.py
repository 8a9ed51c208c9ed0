"""SAM of optax.contrib makes the step of ours, so that their times compare."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.benchmarks import training
from repjax import optim

SLOPES = jnp.array([1.0, 10.0])


def grad_fn(params):
  """Of the sum of SLOPES w^2 / 2, as `gradients.GradFn` gives it."""
  return SLOPES * params, None


def step(tx, params):
  updates, _ = tx.update(
    grad_fn(params)[0], tx.init(params), params, grad_fn=grad_fn
  )
  return optax.apply_updates(params, updates)


def test_a_step_is_that_of_our_sam_before_adamw(monkeypatch):
  # Adam's first step keeps but the signs: SGD shows where the gradient was.
  monkeypatch.setattr(optax, 'adamw', optax.sgd)
  params = jnp.array([3.0, -1.0])
  slope = SLOPES * params
  climbed = params + training._RHO * slope / np.linalg.norm(slope)
  expected = params - 0.1 * SLOPES * climbed
  ours = optax.chain(optim.sam(rho=training._RHO), optax.sgd(0.1))
  chex.assert_trees_all_close(step(ours, params), expected, rtol=1e-6)
  theirs = step(training._sam_of_optax(0.1), params)
  chex.assert_trees_all_close(theirs, expected, rtol=1e-6)
  plain = jax.tree.map(lambda w: w - 0.1 * SLOPES * w, params)
  assert abs(theirs - plain).max() > 1e-3
