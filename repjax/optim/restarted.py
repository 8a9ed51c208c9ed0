"""An optimizer that begins anew at a step, for losses that jump there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import types


class RestartedState(NamedTuple):
  """State of `restarted`.

  Attributes:
    step: Updates so far, int32 scalar.
    inner: State of the optimizer.
  """

  step: jax.Array
  inner: types.PyTree


def restarted(
  tx: optax.GradientTransformation, at: int
) -> optax.GradientTransformationExtraArgs:
  """Forgets moments and counts of an optimizer before its update number `at`.

  DomainBed and WILDS make a new Adam where the weight of IRM's or V-REx's
  penalty jumps, since its second moments are those of another loss. Schedules
  inside of `tx` begin anew, too: put them behind it.

  Args:
    tx: Any chain; must not hold keys, which would come twice.
    at: Counts from 0, which begins what has just begun.
  """
  types.check_range('[0, inf)', at=at)
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return RestartedState(jnp.zeros((), jnp.int32), tx.init(params))

  def update_fn(updates, state, params, **extra):
    fresh = tx.init(params)
    inner = jax.tree.map(
      lambda new, old: jnp.where(state.step == at, new, old),
      fresh,
      state.inner,
    )
    updates, inner = tx.update(updates, inner, params, **extra)
    return updates, RestartedState(state.step + 1, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
