"""Device code: style-agnostic networks (SagNet).

Nam, Lee, Park, Yoon and Yoo, 'Reducing Domain Gap by Reducing Style Bias', CVPR
2021 (https://arxiv.org/abs/1910.11645), algorithm 1. Style is the mean and the
deviation of an activation. The classifier learns from rows in the style of
others; a second head learns from the style of rows with the content of others;
the features are trained so that this head can tell nothing.

The authors and DomainBed make the three updates one after the other, with an
optimizer each. Here they are one loss with gradients that stop where another
part is not to move, and one update.
"""

from collections.abc import Sequence
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import classifier
from repjax.methods import grouped
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import mlp

# Columns that `make` adds: each row's partner and how much it keeps of its own.
_PARTNER, _KEEP = 'style_partner', 'style_keep'


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  weight: optax.ScalarOrSchedule = 0.1,
  style_features: Sequence[int] = (),
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy in random styles, with features without style.

  Style is that of the features that the head sees, as in DomainBed: of each
  row's D features, or, where the head is applied to maps [B, H, W, D], of each
  channel.

  Args:
    model: Any linen classifier.
    tx: Optax chain, of {'model': ..., 'style': ...}.
    num_classes: C.
    weight: Of the adversarial loss, >= 0, or a schedule over steps; 0.1 in
      DomainBed.
    style_features: Widths of hidden layers of the style head, which is linear
      without any, as in DomainBed.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: compute_dtype, ema_decay, transform, finish; see `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. Its sums have 'style_loss' and
    'adversarial_loss', of labelled rows.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      the head sees one number alone, which has no style.
  """
  types.check_range('[1, inf)', num_classes=num_classes)
  grouped.check_whole(settings)
  style_head = mlp.Mlp(num_classes, features=tuple(style_features))
  transform = settings.pop('transform', None)

  def draw(batch, rng):
    rng_first, rng_partner, rng_keep = jax.random.split(rng, 3)
    if transform is not None:
      batch = transform(batch, rng_first)
    num_rows = len(batch['mask'])
    mask = parallel.all_gather(batch['mask'])
    # A random real row, perhaps itself. (The authors permute the batch.)
    draws = jax.vmap(lambda key: jax.random.uniform(key, mask.shape))(
      parallel.row_rngs(rng_partner, num_rows)
    )
    partner = jnp.where(mask[None] > 0, draws, -1.0).argmax(-1)
    keep = jax.vmap(jax.random.uniform)(parallel.row_rngs(rng_keep, num_rows))
    return {**batch, _PARTNER: partner, _KEEP: keep}

  def loss_fn(params, model_state, batch, rng):
    seen = []

    def change(x):
      content, style = divide(x)
      seen.append((content, style))
      return unite(content, mixed(style, batch[_PARTNER], batch[_KEEP]))

    out = classifier.forward(
      model,
      inputs,
      {'params': params['model'], **model_state},
      batch,
      rng,
      head=head,
      change=change,
    )
    loss, metrics = classifier.supervised(out.logits, batch)
    content, style = seen[0]
    everyone = parallel.all_gather(jax.lax.stop_gradient(content))
    styled = unite(everyone[batch[_PARTNER]], style)

    def tell(params, x):
      return style_head.apply({'params': params}, x, train=True)

    # What trains the style head does not reach the features, and the other way
    # round.
    own, other = jax.lax.stop_gradient((styled, params['style']))
    share = batch[classifier.SHARE]
    style_loss = share * classifier.cross_entropy(
      tell(params['style'], own), batch
    )
    guess = nn.log_softmax(tell(other, styled))
    adversarial = -share * guess.mean(-1)
    loss += style_loss + batch[classifier.WEIGHT] * adversarial
    return types.Losses(
      loss,
      out.model_state,
      {
        **metrics,
        'style_loss': style_loss,
        'adversarial_loss': adversarial,
      },
    )

  def begin(rng, batch, variables):
    shape = jax.eval_shape(
      lambda x: (
        classifier.forward(
          model, inputs, x, batch, jax.random.key(0), head=head
        ).features
      ),
      variables,
    ).shape
    own = style_head.init(rng, jnp.zeros(shape), train=False)['params']
    rest, params = steps.pop_params(variables)
    return {'params': {'model': params, 'style': own}, **rest}

  def of_model(variables):
    return {**variables, 'params': variables['params']['model']}

  return classifier.make(
    loss_fn,
    model,
    tx,
    inputs=inputs,
    weight=weight,
    begin=begin,
    of_model=of_model,
    transform=draw,
    whole='SagNet',
    **settings,
  )


Style = tuple[jax.Array, jax.Array]


def divide(x: jax.Array, *, eps: float = 1e-5) -> tuple[jax.Array, Style]:
  """(content, (mean, variance)) of activations.

  Args:
    x: [B, D], or maps [B, ..., D] whose channels are normalised over places.
    eps: Added to variances.

  Returns:
    Content like x with mean 0 and deviation 1, and the style, that divides it
    by D - 1, as in DomainBed; [B, 1] or [B, 1, ..., D].

  Raises:
    InputError: If there is one number alone, which has no deviation.
  """
  axes = (1,) if x.ndim == 2 else tuple(range(1, x.ndim - 1))
  if math.prod(x.shape[axis] for axis in axes) == 1:
    raise types.InputError(
      f'Style is the deviation over {"features" if x.ndim == 2 else "places"}, '
      f'and the head sees one alone, {x.shape}: take a network with more.'
    )
  mean = x.mean(axes, keepdims=True)
  variance = x.var(axes, keepdims=True, ddof=1)
  return (x - mean) / jnp.sqrt(variance + eps), (mean, variance)


def unite(content: jax.Array, style: Style, *, eps: float = 1e-5) -> jax.Array:
  """Activations of a content and a style; the inverse of `divide`."""
  mean, variance = style
  return content * jnp.sqrt(variance + eps) + mean


def mixed(style: Style, partner: jax.Array, keep: jax.Array) -> Style:
  """Each row's style, blended with that of its partner.

  Args:
    style: Of this device's rows, [B, ...] each.
    partner: Number of a row of the global batch, [B].
    keep: Part of the own style, [B].
  """

  def blend(own, everyone):
    part = keep.reshape((-1,) + (1,) * (own.ndim - 1)).astype(own.dtype)
    return part * own + (1 - part) * everyone[partner]

  mean, variance = jax.tree.map(blend, style, parallel.all_gather(style))
  return mean, variance
