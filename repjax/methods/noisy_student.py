"""Device code: a student with noise learns what a teacher without it says.

Xie, Luong, Hovy and Le, 'Self-training with Noisy Student improves ImageNet
classification', CVPR 2020 (https://arxiv.org/abs/1911.04252), as WILDS 2.0 has
it: the teacher labels rows once, without noise; the student sees augmented rows
and has dropout before its head. Train a teacher (`erm`), label the rows by
`labels` of its logits, train a student, and so on.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import classifier
from repjax.methods import model_inputs
from repjax.types import InputError


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  weight: optax.ScalarOrSchedule = 1.0,
  dropout_rate: float = 0.5,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy with labels and, without one, the teacher's.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    weight: Of the teacher's part, >= 0, or a schedule over steps; 1 in WILDS.
    dropout_rate: Of the features before the head, in [0, 1).
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. Rows are what the student sees,
    augmented by whoever makes the batch; the teacher's labels are the column
    'pseudo', [B], or 'pseudo_target', probabilities [B, C]. Its sums have
    'pseudo_accuracy', agreement with the teacher without labels.
  """
  types.check_range('[0, 1)', dropout_rate=dropout_rate)

  def loss_fn(params, model_state, batch, rng):
    rng_model, rng_drop = jax.random.split(rng)

    def drop(features):
      kept = jax.random.bernoulli(rng_drop, 1 - dropout_rate, features.shape)
      return jnp.where(kept, features / (1 - dropout_rate), 0)

    out = classifier.forward(
      model,
      inputs,
      {'params': params, **model_state},
      batch,
      rng_model,
      head=head,
      change=drop if dropout_rate else None,
    )
    loss, metrics = classifier.supervised(out.logits, batch)
    target = _target(batch, out.logits.shape[-1])
    nll = optax.softmax_cross_entropy(out.logits, target)
    agrees = out.logits.argmax(-1) == target.argmax(-1)
    share = batch[classifier.UNLABELLED]
    loss += batch[classifier.WEIGHT] * share * nll
    metrics = {**metrics, 'pseudo_accuracy': share * agrees}
    return types.Losses(loss, out.model_state, metrics)

  return classifier.make(
    loss_fn, model, tx, inputs=inputs, weight=weight, **settings
  )


def labels(logits: np.ndarray, *, soft: bool = False) -> dict[str, np.ndarray]:
  """A teacher's labels as a column of the rows, on the host.

  Args:
    logits: [N, C], in evaluation.
    soft: Whether they are probabilities.

  Returns:
    {'pseudo': int32 [N]} or {'pseudo_target': float32 [N, C]}.

  Raises:
    InputError: If a logit is not finite.
  """
  logits = np.asarray(logits, np.float64)
  if not np.isfinite(logits).all():
    raise InputError('The teacher has diverged: its logits are not finite.')
  if not soft:
    return {'pseudo': logits.argmax(-1).astype(np.int32)}
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  return {'pseudo_target': probs.astype(np.float32)}


def _target(batch, num_classes):
  if 'pseudo_target' in batch:
    return batch['pseudo_target'].astype(jnp.float32)
  if 'pseudo' not in batch:
    raise InputError(
      "The student needs the teacher's labels, a column 'pseudo' or "
      f"'pseudo_target' (noisy_student.labels); the batch has {sorted(batch)}."
    )
  # Of rows with a label the teacher may have said nothing (-1).
  return jax.nn.one_hot(batch['pseudo'], num_classes)
