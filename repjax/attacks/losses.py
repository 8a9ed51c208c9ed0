"""Device code: what an attacker of a classifier makes large."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax.attacks import ascent
from repjax.types import InputError


def cross_entropy(
  logits_fn: Callable[[jax.Array], jax.Array],
  label: jax.Array,
  *,
  targeted: bool = False,
  weights: jax.Array | None = None,
) -> ascent.ImageLossFn:
  """The cross-entropy of a classifier's rows.

  Args:
    logits_fn: Images [B, ...] -> logits [B, K], or [B, L, K] of L heads whose
      losses are added. In evaluation.
    label: [B], the true classes; or those to arrive at.
    targeted: Whether `label` is to become more likely, not less.
    weights: [L], factors of the heads; None for 1 each.

  Raises:
    InputError: `weights` are none of these heads', or a label that is known
      while this is traced is none of these classes.
  """

  def loss_fn(image):
    logits = logits_fn(image).astype(jnp.float32)
    heads = logits if logits.ndim == 3 else logits[:, None]
    num_heads = heads.shape[1]
    if weights is not None and jnp.shape(weights) != (num_heads,):
      raise InputError(
        f'weights are one number for each of {num_heads} heads; got '
        f'{list(jnp.shape(weights))}'
      )
    if not isinstance(label, jax.core.Tracer):
      strange = np.setdiff1d(label, np.arange(heads.shape[-1]))
      if len(strange):
        raise InputError(
          f'label has class {strange[-1]}, and there are {heads.shape[-1]} '
          'classes, from 0 on'
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      heads, jnp.broadcast_to(label[:, None], heads.shape[:2])
    )
    loss = losses.sum(1) if weights is None else losses @ jnp.asarray(weights)
    return -loss if targeted else loss

  return loss_fn
