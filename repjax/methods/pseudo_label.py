"""Device code: a classifier's own confident guesses as labels.

Lee, 'Pseudo-Label', ICML Workshop on Challenges in Representation Learning
2013, with a threshold on the confidence, as in WILDS 2.0 (Sagawa et al., ICLR
2022, https://arxiv.org/abs/2112.05090).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import classifier
from repjax.methods import model_inputs


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  weight: optax.ScalarOrSchedule,
  threshold: float = 0.7,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy with labels and, without one, with guesses.

  The guess is that of the same forward pass. (WILDS makes a pass of its own for
  it, with dropout masks of its own.)

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    weight: lambda, >= 0, or a schedule; that of WILDS rises over the first 40 %
      of the steps, `optax.linear_schedule(0.0, 1.0, 2 * steps // 5)`.
    threshold: Least probability of a guess that counts, in [0, 1].
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. Its sums have 'kept', the part of
    the unlabelled rows that count.
  """
  types.check_range('[0, 1]', threshold=threshold)

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    logits = logits.astype(jnp.float32)
    loss, metrics = classifier.supervised(logits, batch)
    nll, kept = consistency(logits, logits, threshold=threshold)
    share = batch[classifier.UNLABELLED]
    loss += batch[classifier.WEIGHT] * share * nll
    return types.Losses(loss, model_state, {**metrics, 'kept': share * kept})

  return classifier.make(
    loss_fn, model, tx, inputs=inputs, weight=weight, **settings
  )


def consistency(
  guesses: jax.Array, logits: jax.Array, *, threshold: float
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy with confident guesses; 0 of rows without one.

  Args:
    guesses: Logits whose largest is the label, [B, C]; no gradient goes there.
    logits: [B, C].
    threshold: Least probability of a guess that counts.

  Returns:
    (loss [B], 1 for rows that count [B]).
  """
  guesses = jax.lax.stop_gradient(guesses)
  kept = (jax.nn.softmax(guesses).max(-1) >= threshold).astype(jnp.float32)
  nll = optax.softmax_cross_entropy_with_integer_labels(
    logits, guesses.argmax(-1)
  )
  return kept * nll, kept
