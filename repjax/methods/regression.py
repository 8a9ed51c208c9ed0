"""Least squares: a network that predicts numbers."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import step as steps
from repjax.methods import supervised


def make(model: nn.Module, tx: optax.GradientTransformation) -> types.Method:
  """Minimizes the mean squared error of predicted targets.

  Args:
    model: As for `supervised.make`; gives [B, T].
    tx: Optax chain; links that take `grad_fn` get it.

  Returns:
    A `types.Method` over batches of 'image' and 'target' [B, T]. `predict`
    gives 'prediction' [B, T].
  """

  def loss_fn(params, model_state, batch, rng):
    prediction, model_state = supervised.forward(
      model, {'params': params, **model_state}, batch, rng
    )
    loss = jnp.square(prediction - batch['target']).mean(-1)
    return types.Losses(loss, model_state, {'loss': loss})

  step = steps.make(loss_fn, tx)
  classifier = supervised.make(model, tx)

  def predict(state, batch):
    return {'prediction': classifier.predict(state, batch)['logits']}

  return types.Method(classifier.init, step.update, predict)


def unexplained(outputs, rows) -> np.ndarray:
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
