"""Supervised classification: the plain method, and the base of many others."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import step as steps

# Batch -> (positional, named) arguments of the model, but for `train`.
Inputs = Callable[[types.Batch], tuple[tuple[Any, ...], dict[str, Any]]]


def image_inputs(batch: types.Batch):
  """'image' [B, H, W, C], and which rows are real."""
  return (batch['image'],), {'mask': batch['mask']}


def text_inputs(batch: types.Batch):
  """'tokens' [B, L], and which of them are real: optional 'token_mask'."""
  return (batch['tokens'],), {'mask': batch.get('token_mask')}


# (variables, batch, rng) -> (logits [B, C], new collections).
ApplyFn = Callable[..., tuple[jax.Array, types.PyTree]]


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  label_smoothing: float = 0.0,
  l2: float = 0.0,
  microbatches: int = 1,
  compute_dtype: str = 'float32',
  ema_decay: float = 0.0,
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  apply_fn: ApplyFn | None = None,
  inputs: Inputs = image_inputs,
) -> types.Method:
  """Minimizes the mean cross-entropy of a classifier.

  Args:
    model: Called as `model.apply(variables, image, train=..., mask=...)` ->
      logits [B, C]; `mask` tells batch statistics which rows are real. With
      `text_inputs`, as `text_heads.Classifier` is called.
    tx: Optax chain; links that take `grad_fn` get it.
    label_smoothing: Share of the target that is spread over all classes, in
      [0, 1).
    l2: Adds l2 / 2 * |params|^2 to every row's loss, so that it is part of
      every gradient that a link asks for, as in SAM's code (decoupled decay
      is `optax.add_decayed_weights`). The reported loss leaves it out.
    microbatches: Parts in which each device goes through its rows.
    compute_dtype: 'float32' or 'bfloat16'. Parameters, optimizer and losses
      stay float32; the model sees parameters and images in this type.
    ema_decay: Decay of an average of the parameters that `predict` uses, in
      [0, 1); 0 keeps none.
    transform: (batch, rng) -> batch on the devices, before the loss; `rng` is
      equal on all devices. May add 'target', soft labels [B, C], which then
      stand in for 'label'.
    apply_fn: (model, variables, batch, rng) -> (logits, new collections) in
      place of the plain forward pass in training.
    inputs: What the model is called with; `text_inputs` for text.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C] (or what `inputs`
    takes) and 'label' [B].
    `predict` gives 'logits' [B, C].
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(f'Need 0 <= label_smoothing < 1; got {label_smoothing=}')
  if apply_fn is None:
    apply_fn = functools.partial(forward, inputs=inputs)

  def loss_fn(params, model_state, batch, rng):
    if 'image' in batch:
      batch = {**batch, 'image': batch['image'].astype(compute_dtype)}
    logits, model_state = apply_fn(
      model, {'params': params, **model_state}, batch, rng
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
    hits = logits.argmax(-1) == batch['label']
    return types.Losses(
      loss=loss,
      model_state=model_state,
      metrics={
        'loss': cross_entropy,
        'accuracy': hits.astype(jnp.float32),
      },
    )

  step = steps.make(
    loss_fn,
    tx,
    microbatches=microbatches,
    compute_dtype=compute_dtype,
    ema_decay=ema_decay,
    transform=transform,
  )

  def init(rng, batch):
    args, kwargs = inputs(batch)
    return step.init(model.init({'params': rng}, *args, train=False, **kwargs))

  def predict(state, batch):
    args, kwargs = inputs(batch)
    logits = model.apply(step.variables(state), *args, train=False, **kwargs)
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, step.update, predict)


def forward(
  model: nn.Module,
  variables: types.PyTree,
  batch: types.Batch,
  rng: Any,
  inputs: Inputs = image_inputs,
) -> tuple[jax.Array, types.PyTree]:
  """The plain forward pass in training: (logits, new collections)."""
  model_state, _ = steps.pop_params(variables)
  args, kwargs = inputs(batch)
  logits, updates = model.apply(
    variables,
    *args,
    train=True,
    rngs={'dropout': rng},
    mutable=list(model_state),
    **kwargs,
  )
  return logits, {**model_state, **updates}
