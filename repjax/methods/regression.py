"""Least squares: a network that predicts numbers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean squared error of predicted targets.

  Args:
    model: Called as in `supervised.make`; gives predictions [B, T].
    tx: Optax chain; links that take `grad_fn` get it.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' and 'target' [B, T]. `predict`
    gives 'prediction' [B, T].

  Raises:
    InputError: When the step is traced, if targets have another shape than
      predictions.
  """

  def loss_fn(params, model_state, batch, rng):
    prediction, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    if batch['target'].shape != prediction.shape:
      raise InputError(
        f"A target is a column 'target' [B, {prediction.shape[-1]}], a number "
        f'for each output of the model; got {batch["target"].shape}.'
      )
    error = prediction.astype(jnp.float32) - batch['target']
    loss = jnp.square(error).mean(-1)
    return types.Losses(loss, model_state, {'loss': loss})

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(model, inputs, rng, batch))

  def predict(state, batch):
    prediction = model_inputs.evaluate(
      model, inputs, steps.variables(state), batch
    )
    return {'prediction': prediction.astype(jnp.float32)}

  return types.Method(init, step.update, predict)


def unexplained(
  outputs: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Part of the variance of the targets that is left, one a seed (`Score`).

  Args:
    outputs: 'prediction', [S, N, T].
    rows: 'target', [N, T].

  Returns:
    [S]; 0 is perfect and 1 is no better than the mean.
  """
  target = np.asarray(rows['target'])
  error = np.square(outputs['prediction'] - target).mean((1, 2))
  return error / np.square(target - target.mean(0)).mean()
