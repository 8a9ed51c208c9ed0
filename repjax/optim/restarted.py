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
    tx: A chain whose whole state is to be made anew, rates in it too.
    at: A whole number, which counts from 0; 0 changes nothing.

  Raises:
    InputError: If `at` is no such number or, at `init`, if the chain holds what
      must not begin anew: keys, whose noise would come twice, or where training
      started.
  """
  types.check_range('[0, inf)', at=at)
  if at != int(at):  # No update has such a number.
    raise types.InputError(f'at must be a whole number of updates; got {at=}')
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    inner = tx.init(params)
    names = [
      type(x).__name__
      for x in jax.tree.leaves(inner, is_leaf=_stays)
      if _stays(x)
    ]
    if names:
      raise types.InputError(
        f'restarted would make the state of {", ".join(names)} anew in the '
        'middle of training: put that link in front of it in the chain.'
      )
    return RestartedState(jnp.zeros((), jnp.int32), inner)

  def update_fn(updates, state, params=None, **extra):
    if params is None:
      raise types.InputError(
        'restarted needs params: call tx.update(grads, opt_state, params).'
      )
    if not at:
      updates, inner = tx.update(updates, state.inner, params, **extra)
      return updates, RestartedState(state.step + 1, inner)
    fresh = tx.init(params)
    inner = jax.tree.map(
      lambda new, old: jnp.where(state.step == at, new, old),
      fresh,
      state.inner,
    )
    updates, inner = tx.update(updates, inner, params, **extra)
    return updates, RestartedState(state.step + 1, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _stays(x):
  """Whether a link's state holds a key, or knows what was before."""
  known = ('key', 'rng_key', 'bases', 'fisher', 'started_at')
  return any(hasattr(x, name) for name in known)
