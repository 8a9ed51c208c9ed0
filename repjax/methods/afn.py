"""Device code: adaptive feature norm (AFN) between two domains.

Xu, Li, Yang and Lin, 'Larger Norm More Transferable', ICCV 2019
(https://arxiv.org/abs/1811.07456). Rows with a label are the source domain,
those without the target domain.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import classifier
from repjax.methods import grouped
from repjax.methods import model_inputs


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  weight: optax.ScalarOrSchedule,
  form: Literal['stepwise', 'hard'] = 'stepwise',
  step: float = 1.0,
  radius: float = 25.0,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy of labelled rows, and enlarges all features.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    weight: >= 0, or a schedule over steps; 0.01 in WILDS.
    form: 'stepwise': each feature's norm should be `step` larger than it is,
      (|z| - (|z|' + step))^2 with a constant |z|' (eq. 6); the value is always
      step^2, its gradient counts. 'hard': (mean of |z| - radius)^2 (eq. 4).
      Either is averaged over source and target rows apart, and added up.
    step: Delta r of 'stepwise', >= 0.
    radius: R of 'hard', >= 0.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: compute_dtype, ema_decay, transform, finish, and, of 'stepwise',
      microbatches; see `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. Its sums have 'norm', of features.
  """
  types.check_choice('form', form, ('stepwise', 'hard'))
  types.check_range('[0, inf)', step=step, radius=radius)
  if form == 'hard':
    grouped.check_whole(settings)
    settings['whole'] = "AFN of form='hard'"

  def loss_fn(params, model_state, batch, rng):
    out = classifier.forward(
      model, inputs, {'params': params, **model_state}, batch, rng, head=head
    )
    loss, metrics = classifier.supervised(out.logits, batch)
    source, target = batch[classifier.SHARE], batch[classifier.UNLABELLED]
    norms = norm(out.features)
    if form == 'stepwise':
      error = norms - (jax.lax.stop_gradient(norms) + step)
      term = (source + target) * jnp.square(error)
    else:
      total = parallel.psum((batch['mask'] > 0).astype(jnp.float32).sum())
      term = jnp.zeros_like(norms)
      for share in (source, target):
        mean = parallel.psum((share * norms).sum()) / jnp.maximum(total, 1.0)
        there = parallel.psum(share.sum()) > 0
        term += jnp.where(there, jnp.square(mean - radius), 0.0)
    loss += batch[classifier.WEIGHT] * term
    return types.Losses(loss, out.model_state, {**metrics, 'norm': norms})

  return classifier.make(
    loss_fn, model, tx, inputs=inputs, weight=weight, **settings
  )


def norm(features: jax.Array) -> jax.Array:
  """Norms of rows, [B, D] -> [B]; a row of zeros has gradient 0."""
  square = jnp.square(features).sum(-1)
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
