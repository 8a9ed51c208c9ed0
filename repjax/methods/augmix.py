"""Device code: consistency between a row and two augmented views of it.

Hendrycks et al., 'AugMix: A Simple Data Processing Method to Improve Robustness
and Uncertainty', ICLR 2020 (https://arxiv.org/abs/1912.02781), eq. 1 to 3. The
views are made by `repjax.data.images.augmix`.
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
  jsd_weight: float = 12.0,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy plus the divergence of three predictions.

  The three views of a batch are one batch to the model, as in the authors'
  code. Rows without a label count in the divergence.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    jsd_weight: lambda, >= 0; 12 in the paper. 0 trains on 'strong' alone: the
      augmentation without its loss.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`, over batches with the columns
    'strong' and, with a weight, 'strong_2'. Its sums have 'divergence'.
  """
  types.check_range('[0, inf)', jsd_weight=jsd_weight)

  def loss_fn(params, model_state, batch, rng):
    views = [classifier.view(batch)]
    if jsd_weight:
      views = [batch, *views, classifier.view(batch, 'strong_2')]
    columns = {
      name: jnp.concatenate([view[name] for view in views])
      for name in batch
      if name in (*types.INPUTS, 'mask')
    }
    logits, model_state = model_inputs.forward(
      model,
      inputs,
      {'params': params, **model_state},
      {**batch, **columns},
      rng,
    )
    parts = jnp.split(logits.astype(jnp.float32), len(views))
    loss, metrics = classifier.supervised(parts[0], batch)
    if jsd_weight:
      apart = divergence(*parts)
      loss += jsd_weight * apart
      metrics['divergence'] = apart
    return types.Losses(loss, model_state, metrics)

  return classifier.make(loss_fn, model, tx, inputs=inputs, **settings)


def divergence(*logits: jax.Array) -> jax.Array:
  """Jensen-Shannon divergence of predictions, [B, C] each -> [B], in nats.

  The mean distribution is clipped to at least 1e-7, as in the authors' code.
  """
  probs = jnp.stack([jax.nn.softmax(x) for x in logits])
  logs = jnp.stack([jax.nn.log_softmax(x) for x in logits])
  middle = jnp.log(jnp.clip(probs.mean(0), 1e-7, 1.0))
  return (probs * (logs - middle[None])).sum(-1).mean(0)
