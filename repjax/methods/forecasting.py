"""Forecasting: a network that predicts the rows behind those it reads."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps


def past(batch: types.Batch):
  """'series' [B, L, C], 'covariates' [B, L + H, F], which series it is."""
  return (batch['series'], batch['covariates']), {
    'mask': batch['mask'],
    'entity': batch['entity'],
  }


def past_with_gaps(batch: types.Batch):
  """As `past`, with 'observed' [B, L, C] as further inputs of the model."""
  args, named = past(batch)
  return args, {**named, 'observed': batch['observed']}


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  squared_weight: float = 0.0,
  inputs: model_inputs.Inputs = past,
  **settings: Any,
) -> types.Method:
  """Minimizes the squared error of forecasts, or their negative likelihood.

  Which of the two is the model's choice: a `models.forecast.Forecast` with
  deviations is one of Gaussians. Numbers that were not measured
  ('target_observed') count for nothing.

  Args:
    model: Called with what `inputs` gives; returns a `Forecast`.
    tx: Optax chain; links that take `grad_fn` get it.
    squared_weight: Weight of the squared error beside the negative likelihood,
      >= 0; it is 100 in the single-step code of Pyraformer (Liu et al., ICLR
      2022, https://openreview.net/forum?id=0EXmFzUn5I).
    inputs: What the model is called with: `past`, or `past_with_gaps`.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of `data.series.windows`. `predict` gives
    'forecast' [B, H, C] and perhaps 'deviation', in the units of the batch, and
    what they are judged by: 'target', 'target_observed', 'centre', 'scale'.
  """
  types.check_range('[0, inf)', squared_weight=squared_weight)

  def loss_fn(params, model_state, batch, rng):
    said, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    observed = batch['target_observed']
    counts = jnp.maximum(observed.sum((1, 2)), 1.0)

    def mean(x):
      return jnp.where(observed > 0, x, 0.0).sum((1, 2)) / counts

    error = said.mean.astype(jnp.float32) - batch['target']
    # Before the square, whose gradient at a missing number may be NaN.
    error = jnp.where(observed > 0, error, 0.0)
    squared = mean(jnp.square(error))
    metrics = {'mse': squared}
    loss = squared
    if said.deviation is not None:
      deviation = said.deviation.astype(jnp.float32)
      nll = mean(
        0.5 * jnp.square(error / deviation)
        + jnp.log(deviation)
        + 0.5 * jnp.log(2 * jnp.pi)
      )
      metrics['nll'] = nll
      loss = nll + squared_weight * squared
    return types.Losses(loss, model_state, {'loss': loss, **metrics})

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(model, inputs, rng, batch))

  def predict(state, batch):
    said = model_inputs.evaluate(model, inputs, steps.variables(state), batch)
    outputs = {'forecast': said.mean.astype(jnp.float32), **judged_by(batch)}
    if said.deviation is not None:
      outputs['deviation'] = said.deviation.astype(jnp.float32)
    return outputs

  return types.Method(init, step.update, predict)


def judged_by(batch: types.Batch) -> dict[str, Any]:
  """What of a batch forecasts are judged by."""
  names = ('target', 'target_observed', 'centre', 'scale')
  return {name: batch[name] for name in names}
