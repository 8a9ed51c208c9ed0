"""Learning several tasks at once, from batches that mix their rows.

How the tasks are weighed: by rows, alike ('uniform'), by learnt uncertainties
(Kendall, Gal and Cipolla, 'Multi-Task Learning Using Uncertainty to Weigh
Losses', CVPR 2018, https://arxiv.org/abs/1705.07115), or by surgery on their
gradients (PCGrad, Gradient Vaccine; see `repjax.optim.gradient_vaccine`).
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.optim.gradient_vaccine import Groups
from repjax.types import InputError

Weighting = Literal['rows', 'uniform', 'uncertainty', 'pcgrad', 'gradvac']


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_tasks: int,
  weighting: Weighting = 'uniform',
  heads: Literal['each', 'one'] = 'each',
  decay: float = 0.01,
  groups: Groups | None = None,
  seed: int = 0,
  inputs: model_inputs.Inputs = model_inputs.image,
  microbatches: int = 1,
  compute_dtype: str = 'float32',
  ema_decay: float = 0.0,
) -> types.Method:
  """Minimizes the cross-entropies of several classification tasks.

  All but 'rows' count the tasks of a batch alike, however many rows they have.
  Where the gradients of all tasks agree, surgery gives the gradient of
  'uniform'.

  Args:
    model: Called as `model.apply(variables, image, train=..., mask=...)`; gives
      logits [B, T * C] of all heads with heads='each', else [B, C].
    tx: Optax chain. With 'uniform' and 'uncertainty' it must not clip single
      rows, which weigh by how many others their task has.
    num_tasks: T.
    weighting: 'rows': the mean over rows; 'uniform': the mean over the tasks of
      the batch of their means over rows; 'uncertainty': the same mean of
      exp(-s_t) * loss_t + s_t / 2 with a learnt s_t = log sigma_t^2 a task
      (Kendall et al.), from s_t = 0 on; 'pcgrad' and 'gradvac': the
      mean over tasks of the gradients after surgery.
    heads: 'each' task has its own head, or all share 'one'.
    decay: Of 'gradvac'.
    groups: Of 'gradvac' (by default 'all_layer') and 'pcgrad' ('whole_model').
    seed: Of the visiting orders of 'gradvac' and 'pcgrad'.
    inputs: What the model is called with, in place of images.
    microbatches: Parts in which each device goes through its rows.
    compute_dtype: 'float32' or 'bfloat16', of the model.
    ema_decay: Of an average, see `steps.make`; 0 for none.

  Returns:
    A `types.Method` over batches of 'image', 'label' [B] (counted inside the
    task with heads='each') and 'task' [B] in [0, T). The loss of a row of any
    other task is NaN, which ends a run, and so are its logits with
    heads='each'. `predict` gives 'logits' [B, C] of each row's own task. With
    'pcgrad' and 'gradvac' its sums have 'corrected', the part of the pairs of
    tasks that surgery changed; with 'uncertainty' its parameters are {'model':
    ..., 'log_variance': [T]}.

  Raises:
    InputError: If an argument is out of range, or, when the step is traced, if
      the logits cannot be divided into heads.
  """
  if weighting not in ('rows', 'uniform', 'uncertainty', 'pcgrad', 'gradvac'):
    raise InputError(
      "weighting is 'rows', 'uniform', 'uncertainty', 'pcgrad' or 'gradvac'; "
      f'got {weighting=}'
    )
  if heads not in ('each', 'one') or num_tasks < 1:
    raise InputError(
      f"heads is 'each' or 'one', num_tasks >= 1; got {heads=}, {num_tasks=}"
    )
  if weighting == 'gradvac':
    link = optim.gradient_vaccine(
      num_tasks,
      decay=decay,
      groups=groups or 'all_layer',
      reduce='mean',
      seed=seed,
    )
    tx = optax.chain(link, tx)
  elif weighting == 'pcgrad':
    link = optim.pcgrad(
      num_tasks, groups=groups or 'whole_model', reduce='mean', seed=seed
    )
    tx = optax.chain(link, tx)

  def own(logits, batch):
    logits = logits.astype(jnp.float32)
    if heads == 'one':
      return logits
    return own_head(logits, batch['task'], num_tasks)

  def of_model(variables):
    if weighting != 'uncertainty':
      return variables
    return {**variables, 'params': variables['params']['model']}

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model, inputs, of_model({'params': params, **model_state}), batch, rng
    )
    logits = own(logits, batch)
    nll = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    nll = jnp.where(_is_known(batch['task'], num_tasks), nll, jnp.nan)
    loss = nll
    if weighting == 'uncertainty':
      log_variance = params['log_variance'].astype(jnp.float32)[batch['task']]
      loss = jnp.exp(-log_variance) * nll + log_variance / 2
    hits = logits.argmax(-1) == batch['label']
    return types.Losses(
      loss=loss * batch['weight'],
      model_state=model_state,
      metrics={'loss': nll, 'accuracy': hits.astype(jnp.float32)},
    )

  alike = weighting in ('uniform', 'uncertainty')
  step = steps.make(
    loss_fn,
    tx,
    microbatches=microbatches,
    compute_dtype=compute_dtype,
    ema_decay=ema_decay,
    whole=f'weighting={weighting!r}' if alike else '',
    refuses='rows',
  )

  def init(rng, batch):
    variables = model_inputs.init(model, inputs, rng, batch)
    if weighting == 'uncertainty':
      params = {
        'model': variables['params'],
        'log_variance': jnp.zeros(num_tasks),
      }
      variables = {**variables, 'params': params}
    return step.init(variables)

  def update(state, batch, rng):
    if alike:
      weight = equal_weights(batch['task'], batch['mask'], num_tasks)
    else:
      weight = jnp.ones_like(batch['mask'])
    state, sums = step.learn(state, {**batch, 'weight': weight}, rng)
    if weighting in ('gradvac', 'pcgrad'):
      sums = {**sums, 'corrected': (state.opt_state[0].corrected, jnp.ones(()))}
    return state, sums

  def predict(state, batch):
    logits = model_inputs.evaluate(
      model, inputs, of_model(steps.variables(state)), batch
    )
    return {'logits': own(logits, batch)}

  return types.Method(init, update, predict)


def own_head(logits: jax.Array, task: Any, num_tasks: int) -> jax.Array:
  """Each row's logits of its own task's head.

  Args:
    logits: Of all heads, one after the other, [B, T * C].
    task: [B] in [0, T).
    num_tasks: T.

  Returns:
    [B, C]; NaN where there is no such task.

  Raises:
    InputError: If the logits cannot be divided into T heads.
  """
  width = logits.shape[-1]
  if width % num_tasks:
    raise InputError(
      f'{width} logits cannot be divided into heads of {num_tasks} tasks: give '
      'the model num_tasks * num_classes outputs.'
    )
  heads = logits.reshape(len(logits), num_tasks, -1)
  found = jnp.take_along_axis(heads, task[:, None, None], axis=1)[:, 0]
  # By itself -1 would be the last head.
  return jnp.where(_is_known(task, num_tasks)[:, None], found, jnp.nan)


def equal_weights(
  task: jax.Array, mask: jax.Array, num_tasks: int
) -> jax.Array:
  """Weights [B] whose weighted mean over rows is a mean over tasks.

  (1 / number of tasks in the batch) * sum of the tasks' means over rows, over
  all devices' rows; weights have mean 1. Rows of no task in [0, T) have 0.
  """
  counts = jax.ops.segment_sum(mask, task, num_tasks)
  counts = parallel.psum(counts)
  share = counts.sum() / jnp.maximum((counts > 0).sum(), 1)
  weight = share / jnp.maximum(counts, 1)[task]
  return jnp.where(_is_known(task, num_tasks), weight, 0)


def _is_known(task, num_tasks):
  return (task >= 0) & (task < num_tasks)
