"""Device code: a vision transformer whose every block classifies.

Naseer et al., 'On Improving Adversarial Transferability of Vision
Transformers', ICLR 2022, section 3 (https://arxiv.org/abs/2106.04169). The
class token of each block goes through the network's own last norm and head
(`block_logits`: the self-ensemble), or first through a small module that is
trained for it (`refined_logits`: token refinement).
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import norms
from repjax.models import vit
from repjax.types import InputError
from repjax.types import check_choice


def block_logits(model: vit.ViT, image: jax.Array) -> jax.Array:
  """Logits of each block's tokens by the network's own norm and head.

  Args:
    model: Bound: `model.apply(variables, image, method=block_logits)`, or a
      submodule.
    image: [B, H, W, C].

  Returns:
    [B, num_layers, num_classes]; the last are those of the network.
  """
  return jnp.stack(
    [model.classify(x) for x in model.each_block(image, train=False)], axis=1
  )


class TokenRefinement(nn.Module):
  """Refines what a block knows: its patches by convolutions, its class token.

  Layers are `conv_0`, `norm_0`, `conv_1`, `norm_1` and `token`.

  Attributes:
    norm: 'batch' as published, or 'layer', which has no statistics.
    shared: Whether both convolutions, and both norms, are one, as in the
      published code and weights, where the second assignment of an attribute
      replaces the first.
  """

  norm: Literal['batch', 'layer'] = 'batch'
  shared: bool = False

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """What a head sees, [B, D].

    Args:
      tokens: Normalised tokens of a block, [B, 1 + N, D], the class token
        first, then N patches of a square image.
      train: Whether batch statistics are those of this batch.
      mask: [B], 1 for a real row.
    """
    check_choice('norm', self.norm, ('batch', 'layer'))
    batch, length, dim = tokens.shape
    side = round((length - 1) ** 0.5)
    if side**2 != length - 1:
      raise InputError(
        'token refinement needs a class token and the patches of a square '
        f'image; got {length} tokens'
      )
    patches = tokens[:, 1:].reshape(batch, side, side, dim)
    names = (0, 0) if self.shared else (0, 1)
    convs = {
      i: nn.Conv(dim, (3, 3), use_bias=False, name=f'conv_{i}')
      for i in sorted(set(names))
    }
    kind = norms.BatchNorm if self.norm == 'batch' else nn.LayerNorm
    given: dict[str, Any] = (
      dict(train=train, mask=mask) if self.norm == 'batch' else {}
    )
    layers = {i: kind(name=f'norm_{i}') for i in sorted(set(names))}
    first, last = names
    hidden = nn.relu(layers[first](convs[first](patches), **given))
    hidden = layers[last](convs[last](hidden), **given)
    refined = nn.relu(hidden + patches).mean((1, 2))
    return refined + nn.Dense(dim, name='token')(tokens[:, 0])


class RefinedViT(nn.Module):
  """A vision transformer with a token refinement behind each block.

  The last block has none: it is what the head was trained for. Parameters are
  `vit`, those of the network, and `refine_0`, ...; `layers.frozen.train_only`
  with `of_refinement` trains the second kind alone.

  Attributes:
    vit: With a class token.
    norm: 'batch' or 'layer', in all refinements.
    shared: Whether each has one convolution and one norm where two are drawn.
    remat: Whether refinements are computed again in the backward pass; the
      network's field of that name says so of its blocks.
  """

  vit: vit.ViT
  norm: Literal['batch', 'layer'] = 'batch'
  shared: bool = False
  remat: bool = False

  def setup(self):
    if self.vit.pool != 'token':
      raise InputError(
        "token refinement needs a class token: a ViT with pool='token'; got "
        f'pool={self.vit.pool!r}'
      )
    self.refine = [
      TokenRefinement(self.norm, self.shared)
      for _ in range(self.vit.num_layers - 1)
    ]

  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Logits of all blocks by refined tokens.

    Args:
      image: [B, H, W, C].
      train: Whether to apply dropout and stochastic depth, and batch statistics
        of these rows.
      mask: [B], 1 for a real row.

    Returns:
      [B, num_layers, num_classes]; the last are those of the network.
    """

    def call(refine, tokens):
      return refine(tokens, train=train, mask=mask)

    run = nn.remat(call) if self.remat else call
    *early, last = self.vit.each_block(image, train=train)
    logits = [
      self.vit.head_of(run(refine, self.vit.encoder_norm(x)))
      for x, refine in zip(early, self.refine, strict=True)
    ]
    return jnp.stack([*logits, self.vit.classify(last)], axis=1)

  def plain(self, image: jax.Array) -> jax.Array:
    """`block_logits` of the network."""
    return block_logits(self.vit, image)


def of_refinement(path: tuple[str, ...]) -> bool:
  """Whether a parameter of `RefinedViT` is one of its refinements'."""
  return path[0].startswith('refine_')
