"""Watches how much the gradients of tasks agree, and changes nothing.

What Wang, Tsvetkov, Firat and Cao, 'Gradient Vaccine', ICLR 2021
(https://arxiv.org/abs/2010.05874), look at along the training of one model of
many languages.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax.optim import link
from repjax.optim.gradient_vaccine import Groups
from repjax.optim.gradient_vaccine import check_groups
from repjax.optim.gradient_vaccine import gram
from repjax.optim.gradient_vaccine import group_indices


class CosinesState(NamedTuple):
  """Sums over steps.

  Attributes:
    total: Sum of the cosines of tasks i and j in the whole model (first) and in
      each of K groups of parameters, [1 + K, T, T] float32.
    count: In how many steps both had a gradient that was not 0, [1 + K, T, T].
  """

  total: jax.Array
  count: jax.Array  # type: ignore[assignment]  # Hides tuple.count.

  def asks(self) -> str:
    """Name of the link, which asks `grad_fn`."""
    return 'task_cosines'

  def mean(self) -> jax.Array:
    """Mean cosines, [..., 1 + K, T, T]; 0 for pairs that never met."""
    return self.total / jnp.maximum(self.count, 1)


def task_cosines(
  num_tasks: int, *, groups: Groups = 'all_layer'
) -> optax.GradientTransformationExtraArgs:
  """Adds up the cosines of the tasks' gradients, step by step.

  The gradient goes through as it is. Put it anywhere in the chain. Cost: one
  backward pass a task.

  Args:
    num_tasks: T >= 1; batches carry 'task' [B], ids in [0, T).
    groups: What has cosines of its own beside the whole model; see
      `gradient_vaccine.gradient_vaccine`.

  Returns:
    A transformation with a `CosinesState` whose `update` needs `params` and the
    extra argument `grad_fn`, a `repjax.types.GradFn`.

  Raises:
    ValueError: If `num_tasks` is out of range, `groups` is a word for none, or,
      at `update`, if `params` or `grad_fn` is missing.
  """
  link.check_fixed('task_cosines', num_tasks=num_tasks)
  if num_tasks < 1:
    raise ValueError(f'Need num_tasks >= 1; got {num_tasks=}')
  check_groups(groups)

  def init_fn(params):
    link.begin('task_cosines', params)
    num_groups = max(group_indices(params, groups)) + 1
    shape = (1 + num_groups, num_tasks, num_tasks)
    # Two arrays: a donated state must not hold one buffer twice.
    return CosinesState(jnp.zeros(shape), jnp.zeros(shape))

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    link.ask('task_cosines', grad_fn, params=params, question='per_task')
    grads, _, _ = grad_fn.per_task(params, num_tasks)
    products = gram(jax.tree.leaves(grads), group_indices(params, groups))
    products = jnp.concatenate([products.sum(0, keepdims=True), products])
    norms = jnp.sqrt(jnp.diagonal(products, axis1=1, axis2=2))
    scale = norms[:, :, None] * norms[:, None, :]
    real = scale > 0
    cosines = jnp.where(real, products / jnp.where(real, scale, 1), 0)
    new_state = CosinesState(
      state.total + jnp.clip(cosines, -1, 1), state.count + real
    )
    return updates, new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
