"""Supervised classification: the plain method, and the base of many others."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

# (model, inputs, variables, batch, rng) -> (logits [B, C], new collections).
ApplyFn = Callable[..., tuple[jax.Array, types.PyTree]]


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  label_smoothing: float = 0.0,
  l2: float = 0.0,
  apply_fn: ApplyFn = model_inputs.forward,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean cross-entropy of a classifier.

  Args:
    model: Called as `model.apply(variables, image, train=..., mask=...)` ->
      logits [B, C]; `mask` tells batch statistics which rows are real.
    tx: Optax chain; links that take `grad_fn` get it.
    label_smoothing: Share of the target that is spread over all classes, in
      [0, 1).
    l2: Adds l2 / 2 * |params|^2 to every row's loss, so that it is part of
      every gradient that a link asks for, as in SAM's code (decoupled decay
      is `optax.add_decayed_weights`). The reported loss leaves it out.
    apply_fn: (model, inputs, variables, batch, rng) -> (logits, new
      collections), the forward pass in training.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`. `transform` may add 'target', soft labels [B, C], which then
      stand in for 'label'; the largest is what 'mixed_accuracy' counts.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C] (or what `inputs`
    takes) and 'label' [B]. `predict` gives 'logits' [B, C]. Sums: 'loss' and
    'accuracy', or 'mixed_accuracy' of what `transform` has mixed, which says
    little beside the accuracy of a test set: blends are harder.

  Raises:
    InputError: If a setting is out of range.
  """
  if not 0 <= label_smoothing < 1:
    raise InputError(f'Need 0 <= label_smoothing < 1; got {label_smoothing=}')

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = apply_fn(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    logits = logits.astype(jnp.float32)
    num_classes = logits.shape[-1]
    if 'target' in batch:
      target = batch['target'].astype(jnp.float32)
    else:
      target = jax.nn.one_hot(batch['label'], num_classes)
    if label_smoothing:
      target = optax.smooth_labels(target, label_smoothing)
    cross_entropy = optax.softmax_cross_entropy(logits, target)
    loss = cross_entropy
    if l2:
      loss += steps.l2_penalty(params, l2)
    if 'target' in batch:  # Of a blend no label is the right one.
      name, right = 'mixed_accuracy', batch['target'].argmax(-1)
    else:
      name, right = 'accuracy', batch['label']
    hits = (logits.argmax(-1) == right).astype(jnp.float32)
    return types.Losses(
      loss=loss,
      model_state=model_state,
      metrics={'loss': cross_entropy, name: hits},
    )

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(model, inputs, rng, batch))

  def predict(state, batch):
    logits = model_inputs.evaluate(model, inputs, steps.variables(state), batch)
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, step.update, predict)
