"""Sharpness-aware minimization as one link of an `optax.chain`.

Foret, Kleiner, Mobahi and Neyshabur, 'Sharpness-Aware Minimization for
Efficiently Improving Generalization', ICLR 2021
(https://arxiv.org/abs/2010.01412). ASAM: Kwon, Kim, Park and Choi, ICML 2021
(https://arxiv.org/abs/2102.11600).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.optim import link


class SamState(NamedTuple):
  """State of `sam`.

  Attributes:
    count: Number of updates so far, int32 scalar, where the radius is a
      schedule; else ().
  """

  count: jax.Array | tuple[()]  # type: ignore[assignment]  # Hides tuple.count.

  def asks(self) -> str:
    """Name of the link, which asks `grad_fn`."""
    return 'sam'


def sam(
  rho: optax.ScalarOrSchedule,
  *,
  adaptive: bool = False,
  eta: float = 0.01,
  sync: bool = True,
  groups: int | None = None,
  mask: Callable[[trees.Path], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient by the one at the worst nearby point (eq. 2 and 3).

  The parameters move to w + e, e = rho * g / |g|, the gradient is taken there
  and applied at w; second-order terms are dropped as in the paper. Two
  gradients a step, the plain one included. Put it first in the chain: what
  follows (clipping, momentum, Adam) then sees SAM's gradient.

  Batch statistics and metrics are those of the first pass, at w, because the
  caller keeps what came with the plain gradient (the authors keep statistics
  of the first pass, too, but print metrics of the second). Both passes use
  the same dropout masks.

  A zero gradient gives e = 0 (the authors' code and `optax.contrib.sam` give
  NaN there).

  Args:
    rho: Radius of the neighbourhood, >= 0, in units of the parameters' l2
      norm; 0 is the base optimizer. A schedule is a function of the number of
      updates so far.
    adaptive: Whether the neighbourhood scales with the parameters (ASAM):
      e = rho * T^2 g / |T g| with T = |w| + eta. T covers every parameter, as
      in the paper; the authors' code leaves out biases, which `mask` does not
      do (it keeps what it leaves out from moving at all).
    eta: Added to |w| in T.
    sync: Whether all devices climb along the same direction. False is
      m-sharpness with one group a device, the authors' default.
    groups: Groups on each device that climb on their own (m-sharpness with
      m = rows of a device / groups); more than 1 implies `sync=False`. None
      is 1 (and no number, which `optax.inject_hyperparams` would trace).
    mask: Path of a parameter -> whether it is moved to the worst point; the
      gradient is applied to all of them. None moves all. (A function: name it
      in `static_args` of `optax.inject_hyperparams`, which calls it else.)

  Returns:
    A transformation with a `SamState` whose `update` needs `params` and the
    extra argument `grad_fn`, a `repjax.types.GradFn`.

  Raises:
    ValueError: At `update`, if the mask selects no parameter or `params` or
      `grad_fn` is missing.
    InputError: If an argument is out of range, or the link cannot stand where
      it does: see `optim.link`.
  """
  link.check_fixed('sam', groups=groups)
  groups = 1 if groups is None else groups
  for name, x in (('rho', rho), ('eta', eta)):
    if not callable(x) and link.is_known(x):
      types.check_range('[0, inf)', **{name: float(x)})
  types.check_range('[1, inf)', groups=groups)
  if groups != int(groups):
    raise types.InputError(f'groups must be a whole number; got {groups=}')
  groups = int(groups)

  def worst_point(params, grads, rho):
    moved = (
      jax.tree.map(lambda _: True, params)
      if mask is None
      else trees.mask(params, mask)
    )
    scale = jax.tree.map(
      lambda p: jnp.abs(p) + eta if adaptive else jnp.ones((), p.dtype),
      params,
    )
    scaled = jax.tree.map(
      lambda g, t, m: g * t if m else jnp.zeros_like(g), grads, scale, moved
    )
    norm = _norm(scaled)
    radius = rho / jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(
      lambda p, s, t: p + (radius * s * t).astype(p.dtype),
      params,
      scaled,
      scale,
    )

  def init_fn(params):
    link.begin('sam', params)
    return SamState(jnp.zeros((), jnp.int32) if callable(rho) else ())

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    alone = sync and groups == 1
    question = '__call__' if alone else 'over_groups'
    link.ask('sam', grad_fn, params=params, question=question, updates=updates)
    radius = rho
    if callable(rho):
      radius = rho(state.count)
      state = SamState(optax.safe_increment(state.count))
    if alone:
      return grad_fn(worst_point(params, updates, radius))[0], state

    def climb(group_fn: types.GradFn):
      grads, _ = group_fn(params, sync=False)
      return group_fn(worst_point(params, grads, radius), sync=False)[0]

    return grad_fn.over_groups(groups, climb), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norm(tree: types.PyTree) -> jax.Array:
  """Global l2 norm in float32, without overflow of half precision."""
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares))
