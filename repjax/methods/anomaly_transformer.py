"""Anomaly Transformer: reconstruction, and a discrepancy that two sides pull.

Xu, Wu, Wang and Long, 'Anomaly Transformer: Time Series Anomaly Detection with
Association Discrepancy', ICLR 2022. https://arxiv.org/abs/2110.02642
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.layers import association
from repjax.methods import model_inputs
from repjax.methods import step as steps

# The column that a step adds: the series as it is, whatever the type of the
# computation rounds.
_TARGET = 'whole_series'


class Phases(NamedTuple):
  """The discrepancy as either side sees it; equal numbers, other gradients.

  Attributes:
    prior_moves: What the prior alone makes smaller, [B, L].
    series_moves: What the series association alone makes larger, [B, L].
  """

  prior_moves: jax.Array
  series_moves: jax.Array


def phases(associations: Sequence[association.Associations]) -> Phases:
  """The discrepancy of both phases (eq. 5), averaged over layers (eq. 4).

  Args:
    associations: Of each layer.
  """
  fixed = jax.lax.stop_gradient
  return Phases(
    *(
      jnp.stack([association.discrepancy(*pair) for pair in pairs]).mean(0)
      for pairs in (
        [(x.prior, fixed(x.series)) for x in associations],
        [(fixed(x.prior), x.series) for x in associations],
      )
    )
  )


def score(
  error: jax.Array, discrepancy: jax.Array, *, temperature: float
) -> jax.Array:
  """Anomaly score of each position of windows (eq. 6).

  softmax(-discrepancy / temperature) over the window, times the error. The
  paper has temperature 1. The authors' code multiplies the SUM over layers by a
  'temperature' of 50, so that its N layers are temperature 1 / (50 N) here, at
  which a window's softmax is nearly one at one position.

  Args:
    error: Squared error of the reconstruction, [B, L].
    discrepancy: Averaged over layers, [B, L].
    temperature: > 0.

  Returns:
    [B, L].
  """
  return jax.nn.softmax(-discrepancy / temperature) * error


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  weight: float = 3.0,
  temperature: float = 1.0,
  **settings: Any,
) -> types.Method:
  """Reconstructs windows while prior and series association play minimax.

  The authors' code adds up the gradients of two losses before each step:
  error - weight * discrepancy, of which the prior gets nothing ('maximize'),
  and error + weight * discrepancy, of which the series association gets nothing
  ('minimize'). That is the gradient of their sum, one backward pass. The value
  of the sum is 2 * error, whatever associations do, so that it tells nothing of
  the game: both losses are reported apart.

  Args:
    model: Called as `model.apply(variables, series, train=..., mask=...)`;
      gives a `repjax.models.anomaly_transformer.Reconstruction`.
    tx: Optax chain; links that take `grad_fn` get it.
    weight: Of the discrepancy, >= 0 (the paper's lambda, 3); 0 is a plain
      autoencoder.
    temperature: Of the score, > 0.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of 'series' [B, L, C], and 'observed' [B, L,
    C] where values are missing: 0 for what counts for no error. `predict` gives
    'score' [B, L], and of what it is made: 'error', the squared error averaged
    over channels (the paper sums, the code averages), and 'discrepancy'.

  Raises:
    InputError: If a setting is out of range.
  """
  types.check_range('[0, inf)', weight=weight)
  types.check_range('(0, inf)', temperature=temperature)

  def error_of(output, batch):  # [B, L]
    target = batch.get(_TARGET, batch['series'])
    squares = jnp.square(output.series.astype(jnp.float32) - target)
    if 'observed' not in batch:
      return squares.mean(-1)
    observed = batch['observed']
    return (squares * observed).sum(-1) / jnp.maximum(observed.sum(-1), 1)

  def loss_fn(params, model_state, batch, rng):
    output, model_state = model_inputs.forward(
      model,
      model_inputs.series,
      {'params': params, **model_state},
      batch,
      rng,
    )
    error = error_of(output, batch).mean(-1)
    found = phases(output.associations)
    minimized = error + weight * found.prior_moves.mean(-1)
    maximized = error - weight * found.series_moves.mean(-1)
    return types.Losses(
      loss=minimized + maximized,
      model_state=model_state,
      metrics={
        'loss': error,
        'minimize': minimized,
        'maximize': maximized,
        'discrepancy': found.prior_moves.mean(-1),
      },
    )

  transform = settings.pop('transform', None)

  def aim(batch, rng):
    batch = batch if transform is None else transform(batch, rng)
    return {**batch, _TARGET: batch['series']}

  step = steps.make(loss_fn, tx, transform=aim, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(model, model_inputs.series, rng, batch))

  def predict(state, batch):
    output = model_inputs.evaluate(
      model, model_inputs.series, steps.variables(state), batch
    )
    error = error_of(output, batch)
    discrepancy = phases(output.associations).prior_moves
    return {
      'score': score(error, discrepancy, temperature=temperature),
      'error': error,
      'discrepancy': discrepancy,
    }

  return types.Method(init, step.update, predict)
