"""Device code: confident guesses of a weak view as labels of a strong one.

Sohn et al., 'FixMatch', NeurIPS 2020 (https://arxiv.org/abs/2001.07685), eq. 4.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import classifier
from repjax.methods import model_inputs
from repjax.methods import pseudo_label


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  weight: optax.ScalarOrSchedule = 1.0,
  threshold: float = 0.7,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy with labels and, without one, with guesses.

  Guesses are made in training mode, as in WILDS. Batch statistics of the second
  pass are those of the strong views of rows without a label; the running ones
  see both passes.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    weight: lambda_u, >= 0, or a schedule over steps.
    threshold: tau, least probability of a guess that counts; the paper has
      0.95, WILDS 0.7.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. The input is the weak view, the
    column 'strong' the strong one. Its sums have 'kept', the part of the
    unlabelled rows that count.
  """
  types.check_range('[0, 1]', threshold=threshold)

  def loss_fn(params, model_state, batch, rng):
    def look(batch, model_state, rng):
      logits, model_state = model_inputs.forward(
        model, inputs, {'params': params, **model_state}, batch, rng
      )
      return logits.astype(jnp.float32), model_state

    weak, model_state = look(batch, model_state, rng)
    share = batch[classifier.UNLABELLED]
    mask = (share > 0).astype(jnp.float32)
    strong, model_state = look(
      {**classifier.view(batch), 'mask': mask},
      model_state,
      jax.random.fold_in(rng, 1),  # Masks of its own, as WILDS draws them.
    )
    loss, metrics = classifier.supervised(weak, batch)
    nll, kept = pseudo_label.consistency(weak, strong, threshold=threshold)
    loss += batch[classifier.WEIGHT] * share * nll
    return types.Losses(loss, model_state, {**metrics, 'kept': share * kept})

  return classifier.make(
    loss_fn, model, tx, inputs=inputs, weight=weight, **settings
  )
