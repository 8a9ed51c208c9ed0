"""What gradient projection is compared with: A-GEM and EWC as optax links.

A-GEM: Chaudhry et al., 'Efficient Lifelong Learning with A-GEM', ICLR 2019,
https://arxiv.org/abs/1812.00420. EWC: Kirkpatrick et al., 'Overcoming
catastrophic forgetting in neural networks', PNAS 2017,
https://arxiv.org/abs/1612.00796.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.optim import link


class AGemState(NamedTuple):
  """Nothing: what is remembered comes with the batch."""

  def asks(self) -> str:
    """Name of the link, which asks `grad_fn`."""
    return 'a_gem'


def a_gem(*, column: str = 'memory') -> optax.GradientTransformationExtraArgs:
  """Takes out of the gradient what would raise the loss on remembered rows.

  With g of the current rows and r of the remembered ones:
  g - (g'r / r'r) r where g'r < 0, else g. Put it first in the chain.

  Args:
    column: Of the batch: 0 for a current row, 1 for a remembered one. Without
      remembered rows g passes unchanged.

  Returns:
    A transformation whose `update` needs `params` and the extra argument
    `grad_fn`, a `repjax.types.GradFn`.

  Raises:
    InputError: If it cannot stand where it does: see `optim.link`.
  """

  def init_fn(params):
    link.begin('a_gem', params)
    return AGemState()

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    link.ask(
      'a_gem', grad_fn, params=params, question='per_task', updates=updates
    )
    grads, num_rows, _ = grad_fn.per_task(params, 2, column=column)
    now, past = (jax.tree.map(lambda x, i=i: x[i], grads) for i in (0, 1))
    wide = jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), (now, past)
    )  # Squares of half precision overflow.
    product = optax.tree.vdot(*wide)
    square = optax.tree.norm(wide[1], squared=True)
    opposed = (product < 0) & (num_rows[1] > 0) & (square > 0)
    scale = jnp.where(opposed, product / jnp.where(square > 0, square, 1), 0)
    found = jax.tree.map(
      lambda g, r: (g - scale * r).astype(g.dtype), now, past
    )
    return found, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class EwcState(NamedTuple):
  """The sum of all old tasks' penalties, which is one quadratic form.

  sum_t F_t (w - w_t)^2 / 2 has the gradient (sum_t F_t) w - sum_t F_t w_t, so
  its size does not grow with the number of tasks.

  Attributes:
    fisher: sum_t F_t, like the parameters.
    centre: sum_t F_t w_t, like the parameters.
  """

  fisher: types.PyTree
  centre: types.PyTree


def ewc(
  strength: float, *, learning_rate: float = 0.0
) -> optax.GradientTransformation:
  """Adds the gradient of strength / 2 * sum_t F_t (w - w_t)^2.

  Put it first in the chain. `consolidate` adds a task to the sum. The penalty
  is stiff: a step of SGD overshoots, and diverges, where learning_rate *
  strength * sum_t F_t > 2. With `learning_rate` its step is implicit, taken at
  the new parameters, (g + s (F w - c)) / (1 + learning_rate s F): stable for
  every strength.

  Args:
    strength: lambda >= 0.
    learning_rate: Of the plain SGD that follows; 0 for the explicit step.

  Returns:
    A transformation with an `EwcState` whose `update` needs `params`.
  """
  known = filter(link.is_known, (strength, learning_rate))
  if not all(x >= 0 for x in known):
    raise ValueError(
      f'Need strength, learning_rate >= 0; got {strength=}, {learning_rate=}'
    )

  def init_fn(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return EwcState(zeros, jax.tree.map(jnp.zeros_like, params))

  def update_fn(updates, state, params=None):
    link.check('ewc', params=params)
    penalised = jax.tree.map(
      lambda g, f, c, w: (
        (g + strength * (f * w - c)) / (1 + learning_rate * strength * f)
      ),
      updates,
      state.fisher,
      state.centre,
      params,
    )
    return penalised, state

  return optax.GradientTransformation(init_fn, update_fn)


def consolidate(
  opt_state: types.PyTree, params: types.PyTree, fisher: types.PyTree
) -> types.PyTree:
  """The state after a task that ended at `params` with this Fisher diagonal.

  Args:
    opt_state: An `EwcState`, or the state of a chain that holds them.
    params: w_t.
    fisher: F_t, the mean over rows of squared gradients of log p(y | x).

  Raises:
    InputError: If there is no `EwcState` in the state.
  """
  is_ours = lambda x: isinstance(x, EwcState)  # noqa: E731
  if not any(map(is_ours, jax.tree.leaves(opt_state, is_leaf=is_ours))):
    raise types.InputError(
      'consolidate needs an opt_state with an EwcState, of rehearsal.ewc; it '
      'has none.'
    )

  def over(fn, own, *others):  # What `optax.masked` has taken out stays out.
    is_out = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
      lambda x, *rest: x if is_out(x) else fn(x, *rest),
      *(own, *others),
      is_leaf=is_out,
    )

  def add(state):
    if not is_ours(state):
      return state
    return EwcState(
      over(jnp.add, state.fisher, fisher),
      over(lambda c, f, w: c + f * w, state.centre, fisher, params),
    )

  return jax.tree.map(add, opt_state, is_leaf=is_ours)
