"""Device code: a policy that does what a teacher did, with a task beside it.

The quick way to an agent whose encoder a self-supervised task shares: the
teacher's actions take the place of rewards.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import step as steps


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  task: types.LossFn | None = None,
  task_weight: float = 1.0,
  column: str = 'image',
  **settings: Any,
) -> types.Method:
  """Minimizes |tanh(mean) - target|^2 / A plus a task's loss, in one.

  Args:
    model: `models.agent.Agent`.
    tx: Optax chain; links that take `grad_fn` get it.
    task: The self-supervised loss, or None for none.
    task_weight: What it is multiplied with, >= 0.
    column: Of observations.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of `column`, 'target' [B, A], what the teacher
    would do, 'action' [B, A], what was done, and what else the task reads.
    `predict` gives 'action' [B, A] in [-1, 1] and 'error' [B], its mean squared
    difference to the target.

  Raises:
    InputError: If a setting is out of range.
  """
  types.check_range('[0, inf)', task_weight=task_weight)

  def act(params, model_state, observation):
    variables = {'params': params, **model_state}
    return jnp.tanh(model.apply(variables, observation, method='policy').mean)

  def loss_fn(params, model_state, batch, rng):
    action = act(params, model_state, batch[column])
    loss = jnp.square(action - batch['target']).mean(-1)
    metrics = {'loss': loss}
    if task is not None:
      of_task = task(params, model_state, batch, rng)
      loss = loss + task_weight * of_task.loss
      metrics.update(of_task.metrics)
    return types.Losses(loss, model_state, metrics)

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model.init(rng, batch[column], batch['action']))

  def predict(state, batch):
    variables = steps.variables(state)
    model_state, params = steps.pop_params(variables)
    action = act(params, model_state, batch[column])
    error = jnp.square(action - batch['target']).mean(-1)
    return {'action': action, 'error': error}

  return types.Method(init, step.update, predict)


def error(
  outputs: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Mean squared difference to the teacher, one a seed, [S] (`Score`)."""
  del rows  # `predict` has seen the teacher's actions.
  return np.asarray(outputs['error']).mean(-1)
