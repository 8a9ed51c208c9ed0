"""Device code: the step that methods with one loss and one optimizer share."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import types


class EmaState(NamedTuple):
  """Exponential moving average of the parameters.

  Attributes:
    params: Like `TrainState.params`.
  """

  params: types.PyTree


class Step(NamedTuple):
  """What a method is made of, besides its loss.

  Attributes:
    init: (the model's variables) -> TrainState.
    update: As in `types.Method`.
    variables: (state) -> the variables to predict with; averaged parameters
      where an average is kept.
  """

  init: Callable[[types.PyTree], types.TrainState]
  update: Callable[
    [types.TrainState, types.Batch, jax.Array],
    tuple[types.TrainState, types.Sums],
  ]
  variables: Callable[[types.TrainState], types.PyTree]


def make(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  compute_dtype: str = 'float32',
  ema_decay: float = 0.0,
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  finish: Callable[[types.Sums], types.Sums] | None = None,
) -> Step:
  """One gradient of a mean loss, handed to an optax chain.

  Args:
    loss_fn: (params, model_state, batch, rng) -> `types.Losses`.
    tx: Optax chain; links that take `grad_fn` get it.
    microbatches: Parts in which each device goes through its rows.
    compute_dtype: 'float32' or 'bfloat16'. Parameters, optimizer and losses
      stay float32; the model sees parameters in this type.
    ema_decay: Decay of an average of the parameters that `Step.variables`
      gives, in [0, 1); 0 keeps none.
    transform: (batch, rng) -> batch on the devices, before the loss; `rng` is
      equal on all devices.
    finish: Makes what is reported of the sums over all devices.
  """
  if not 0 <= ema_decay < 1:
    raise ValueError(f'Need 0 <= ema_decay < 1; got {ema_decay=}')
  if compute_dtype not in ('float32', 'bfloat16'):
    raise ValueError(
      f"compute_dtype is 'float32' or 'bfloat16'; got {compute_dtype=}"
    )
  tx = optax.with_extra_args_support(tx)

  def init(variables):
    model_state, params = pop_params(variables)
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      model_state=model_state,
      extra=EmaState(params) if ema_decay else (),
    )

  def update(state, batch, rng):
    rng_transform, rng_model = jax.random.split(rng)
    if transform is not None:
      batch = transform(batch, rng_transform)
    grad_fn = gradients.GradFn(
      loss_fn,
      batch,
      parallel.device_rng(rng_model),
      state.model_state,
      microbatches=microbatches,
      compute_dtype=jnp.dtype(compute_dtype),
    )
    grads, aux = grad_fn(state.params)
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, grad_fn=grad_fn
    )
    # A link that clips single rows has made a forward pass of its own.
    aux = grad_fn.clipped_aux or aux
    params = optax.apply_updates(state.params, updates)
    extra = state.extra
    if ema_decay:
      extra = EmaState(
        optax.incremental_update(params, extra.params, 1 - ema_decay)
      )
    state = types.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      model_state=aux.model_state,
      extra=extra,
    )
    return state, aux.sums if finish is None else finish(aux.sums)

  def variables(state):
    params = state.extra.params if ema_decay else state.params
    return {'params': params, **state.model_state}

  return Step(init, update, variables)


def l2_penalty(params: types.PyTree, l2: float) -> jax.Array:
  """l2 / 2 * |params|^2 in float32."""
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return l2 / 2 * optax.tree.norm(params, squared=True)


def pop_params(variables: types.PyTree) -> tuple[types.PyTree, types.PyTree]:
  """(other collections, parameters) of a model's variables."""
  rest: dict[str, Any] = {
    name: tree for name, tree in variables.items() if name != 'params'
  }
  # What a module sows (attention maps) is no state.
  rest.pop('intermediates', None)
  return rest, variables['params']
