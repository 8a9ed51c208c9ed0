"""Device code: attacks on a vision transformer that fool other networks.

Naseer et al., 'On Improving Adversarial Transferability of Vision
Transformers', ICLR 2022 (https://arxiv.org/abs/2106.04169). An attack on the
last class token alone transfers little. One on the sum of the losses of all
blocks' class tokens transfers better (self-ensemble, section 3.1), and one on
refined tokens better still (section 3.2). Any attack of `attacks.fgsm` takes
these losses:

    loss_fn = vit_transfer.loss_fn(model, variables, label, heads='refined')
    adversarial = fgsm.mi_fgsm(loss_fn, image, epsilon=8 / 255)
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import types
from repjax.attacks import ascent
from repjax.attacks import losses
from repjax.models import refined_vit
from repjax.types import check_choice

Heads = Literal['last', 'ensemble', 'refined']


def logits_fn(
  model: nn.Module,
  variables: types.PyTree,
  *,
  heads: Heads = 'ensemble',
  mean: float | jax.Array = 0.0,
  std: float | jax.Array = 1.0,
):
  """Pixels [B, H, W, C] -> logits [B, L, num_classes], in evaluation.

  Args:
    model: A `vit.ViT` or, for 'refined', a `refined_vit.RefinedViT`; a part of
      it may be frozen (`frozen.train_only`).
    variables: Of the model.
    heads: 'last' is the network's own output (L = 1), 'ensemble' that of each
      of its blocks, 'refined' that of each block's refined tokens.
    mean: What the network subtracts from pixels, broadcast against them.
    std: What it then divides them by.

  Raises:
    InputError: `heads` is none of these, or needs refinements.
  """
  check_choice('heads', heads, ('last', 'ensemble', 'refined'))
  has_refinement = hasattr(model, 'plain')
  if heads == 'refined' and not has_refinement:
    raise types.InputError(
      "heads='refined' needs a `refined_vit.RefinedViT`; got a "
      f'{type(model).__name__}'
    )

  def logits(pixels):
    beside = functools.partial(ascent.beside, pixels)
    image = (pixels - beside(mean)) / beside(std)
    if heads == 'refined':
      return model.apply(variables, image, train=False)
    if heads == 'last' and not has_refinement:
      return model.apply(variables, image, train=False)[:, None]
    method = 'plain' if has_refinement else refined_vit.block_logits
    every = model.apply(variables, image, method=method)
    return every[:, -1:] if heads == 'last' else every

  return logits


def loss_fn(
  model: nn.Module,
  variables: types.PyTree,
  label: jax.Array,
  *,
  heads: Heads = 'ensemble',
  targeted: bool = False,
  weights: jax.Array | None = None,
  mean: float | jax.Array = 0.0,
  std: float | jax.Array = 1.0,
) -> ascent.ImageLossFn:
  """The sum over heads of their cross-entropies, [B].

  Args:
    model: A `vit.ViT`, or a `refined_vit.RefinedViT`.
    variables: Of the model.
    label: [B].
    heads: Whose losses: 'last', 'ensemble' or 'refined'.
    targeted: Whether `label` is to become more likely, not less.
    weights: [L], factors of the heads; None for 1 each, as published.
    mean: What the network subtracts from pixels.
    std: What it then divides them by.
  """
  return losses.cross_entropy(
    logits_fn(model, variables, heads=heads, mean=mean, std=std),
    jnp.asarray(label),
    targeted=targeted,
    weights=weights,
  )
