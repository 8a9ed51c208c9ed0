"""Device code: learning to detect at most one object an image.

The loss of Liu et al., 'SSD: Single Shot MultiBox Detector', ECCV 2016
(https://arxiv.org/abs/1512.02325, section 2.2), with one class and one object.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import shot_detector


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  least_overlap: float = 0.5,
  negatives: int = 3,
  box_weight: float = 1.0,
  **settings: Any,
) -> types.Method:
  """Trains a detector.

  Args:
    model: A `shot_detector.ShotDetector`, or one in a `padding.Padded`.
    tx: Optax chain.
    least_overlap: Intersection over union from which a default box stands for
      the object; the one that overlaps most always does.
    negatives: Default boxes without an object that count, the ones with the
      largest losses, for each box with one (and as many without any).
    box_weight: Weight of the boxes' offsets.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C], 'label' [B] (whether
    there is an object) and 'box' [B, 4] (y, x, h, w). `predict` gives 'score'
    [B, D] in [0, 1] and 'boxes' [B, D, 4].

  Raises:
    InputError: If a setting is out of range.
  """
  types.check_range('(0, 1]', least_overlap=least_overlap)
  types.check_range('[1, inf)', negatives=negatives)
  types.check_range('[0, inf)', box_weight=box_weight)

  def loss_fn(params, model_state, batch, rng):
    found, model_state = model_inputs.forward(
      model, model_inputs.image, {'params': params, **model_state}, batch, rng
    )
    box = batch['box'][:, None].astype(jnp.float32)  # [B, 1, 4]
    target = match(batch['label'], box[:, 0], found.defaults, least_overlap)
    entropy = optax.sigmoid_binary_cross_entropy(found.logits, target)
    count = jnp.maximum(target.sum(-1), 1.0)
    hard = _hard(entropy, target, negatives * count)
    confidence = (entropy * (target + hard)).sum(-1) / count
    offset = jnp.where(
      target[..., None] > 0, shot_detector.encode(box, found.defaults), 0.0
    )
    slopes = optax.huber_loss(found.offsets, offset).sum(-1)
    place = (slopes * target).sum(-1) / count
    return types.Losses(
      loss=confidence + box_weight * place,
      model_state=model_state,
      metrics={'loss': confidence + box_weight * place, 'box': place},
    )

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(model, model_inputs.image, rng, batch))

  def predict(state, batch):
    found = model_inputs.evaluate(
      model, model_inputs.image, steps.variables(state), batch
    )
    return {
      'score': jax.nn.sigmoid(found.logits),
      'boxes': shot_detector.decode(found),
    }

  return types.Method(init, step.update, predict)


def match(
  label: jax.Array, box: jax.Array, defaults: jax.Array, least: float
) -> jax.Array:
  """Which default boxes stand for the object, 1.0 or 0.0, [B, D].

  Args:
    label: Whether there is one, [B].
    box: (y, x, h, w), [B, 4].
    defaults: [D, 4].
    least: Intersection over union that is enough.
  """
  overlap = shot_detector.overlaps(box[:, None], defaults[None])
  best = overlap.argmax(-1, keepdims=True) == jnp.arange(len(defaults))[None]
  there = (label > 0)[:, None]
  return (there & (best | (overlap >= least))).astype(jnp.float32)


def _hard(entropy, target, count):
  """1 for the `count` [B] negatives of largest loss, [B, D]."""
  loss = jnp.where(target > 0, -jnp.inf, jax.lax.stop_gradient(entropy))
  rank = jnp.argsort(jnp.argsort(-loss, -1), -1)
  return ((rank < count[:, None]) & (target == 0)).astype(jnp.float32)
