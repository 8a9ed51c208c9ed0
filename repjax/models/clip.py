"""Device code: CLIP, one space for images and for texts.

Radford et al., 'Learning Transferable Visual Models From Natural Language
Supervision', ICML 2021 (https://arxiv.org/abs/2103.00020), section 2.4. Any
network of images and any network of texts can be its towers; `VisionTower` and
`TextTower` are the published ones, whose weights
`repjax.weights.clip_weights` loads. The ResNets of the paper, which end in
attention, are not here.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import patches
from repjax.layers.attention import signature
from repjax.layers.attention import softmax
from repjax.layers.positions import grid_positions
from repjax.models import block
from repjax.types import InputError
from repjax.types import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
  """What the blocks of a tower are.

  Attributes:
    hidden_dim: D, a multiple of `num_heads`.
    mlp_dim: Width inside the MLPs.
    num_heads: H.
    num_layers: L.
    activation: Of the MLPs; 'gelu_quick' is the authors'.
    attention_fn: Attention like `nn.dot_product_attention`; None is exact.
    layer_norm_epsilon: Added to variances.
    remat: Whether blocks are computed again in the backward pass.
    dtype: Type of the computation; None infers it from input and parameters.
    param_dtype: Type of the parameters.
  """

  hidden_dim: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  activation: str = 'gelu_quick'
  attention_fn: signature.AttentionFn | None = None
  layer_norm_epsilon: float = 1e-5
  remat: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    check_range('[1, inf)', hidden_dim=self.hidden_dim)
    self._block(causal=False)

  @property
  def types(self) -> dict[str, Any]:
    """The fields of linen's layers that are types."""
    return dict(dtype=self.dtype, param_dtype=self.param_dtype)

  def blocks(self, *, causal: bool) -> list[block.BlockConfig]:
    """One config a layer."""
    return self._block(causal=causal).repeat(self.num_layers)

  def _block(self, *, causal):
    width, normal = self.hidden_dim, nn.initializers.normal
    attend = self.attention_fn or softmax.Softmax(causal=causal)
    if causal:
      signature.check_causal(attend)
    return block.BlockConfig(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      activation=self.activation,
      attention_fn=attend,
      layer_norm_epsilon=self.layer_norm_epsilon,
      # The authors'.
      kernel_init=normal(width**-0.5),
      hidden_kernel_init=normal((2 * width) ** -0.5),
      out_kernel_init=normal((2 * max(self.num_layers, 1) * width) ** -0.5),
      **self.types,
    )


# Table 20 of the paper.
VISION: Mapping[str, TowerConfig] = {
  'B': TowerConfig(hidden_dim=768, mlp_dim=3072, num_heads=12, num_layers=12),
  'L': TowerConfig(hidden_dim=1024, mlp_dim=4096, num_heads=16, num_layers=24),
}
TEXT: Mapping[str, TowerConfig] = {
  'B': TowerConfig(hidden_dim=512, mlp_dim=2048, num_heads=8, num_layers=12),
  'L': TowerConfig(hidden_dim=768, mlp_dim=3072, num_heads=12, num_layers=12),
}


class VisionTower(nn.Module):
  """A ViT that normalises its tokens before the first block, too.

  Attributes:
    config: Of the blocks.
    patch_size: P in pixels, or (height, width).
    grid: (rows, columns) of patches that positions are of; None for images of
      as many rows as columns.
  """

  config: TowerConfig
  patch_size: int | tuple[int, int]
  grid: grid_positions.Grid | None = None

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalised class tokens, [B, H, W, C] -> [B, D].

    Args:
      image: Divided into whole patches.
      train: Changes nothing: there is no dropout.
      mask: Ignored: rows do not see each other.
    """
    del mask
    config, width = self.config, self.config.hidden_dim
    grid = nn.DenseGeneral(
      width, axis=(-3, -2, -1), use_bias=False, name='embedding', **config.types
    )(patches.extract(image, self.patch_size))
    batch, rows, columns, _ = grid.shape
    spread = width**-0.5
    first = self.param(
      'cls', nn.initializers.normal(spread), (width,), config.param_dtype
    )
    first = jnp.broadcast_to(first.astype(grid.dtype), (batch, 1, width))
    tokens = jnp.concatenate([first, grid.reshape(batch, -1, width)], axis=1)
    grid_positions.check_grid((rows, columns), self.grid)
    tokens = grid_positions.LearnedPositions(
      config.param_dtype, spread, name='positions'
    )(tokens)
    norm = _norms(config)
    tokens = norm('embedding_norm')(tokens)
    tokens = _through(config, tokens, causal=False, train=train)
    return norm('norm')(tokens[:, 0])


class TextTower(nn.Module):
  """A causal transformer, read where the text ends.

  Attributes:
    config: Of the blocks.
    vocab_size: Number of tokens.
    num_positions: Longest text.
    end_token: Id whose first place is read; None, and texts without it, are
      read at their last real token.
  """

  config: TowerConfig
  vocab_size: int
  num_positions: int
  end_token: int | None = None

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Normalised features at the ends of texts, [B, L] -> [B, D].

    Args:
      tokens: Integers; padding stands behind the text.
      train: Changes nothing: there is no dropout.
      mask: 0 for padding, [B, L]; None if all tokens are real.
    """
    config, width = self.config, self.config.hidden_dim
    batch, length = tokens.shape
    if length > self.num_positions:
      raise InputError(
        f'texts have {length} tokens, and CLIP has num_positions='
        f'{self.num_positions}: shorten them (data.length), or raise it'
      )
    if mask is None:
      last = jnp.full(batch, length - 1)
    else:
      last = jnp.maximum((mask > 0).sum(-1) - 1, 0)
    if self.end_token is not None:
      ends = tokens == self.end_token
      last = jnp.where(ends.any(-1), ends.argmax(-1), last)
    x = nn.Embed(
      self.vocab_size,
      width,
      embedding_init=nn.initializers.normal(0.02),
      name='token_embedding',
      **config.types,
    )(tokens)
    positions = self.param(
      'positions',
      nn.initializers.normal(0.01),
      (self.num_positions, width),
      config.param_dtype,
    )
    x = x + positions[None, :length].astype(x.dtype)
    # Nothing before padding sees it, so that it needs no mask.
    x = _through(config, x, causal=True, train=train)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    return _norms(config)('norm')(x)


class Pairs(NamedTuple):
  """What CLIP says of rows of pairs.

  Attributes:
    image: Embeddings, float32 [B, F], of any length.
    text: Embeddings, float32 [B, F], of any length.
    scale: Cosines are multiplied by it, a scalar.
    bias: Added to scaled cosines, a scalar; 0 of CLIP.
  """

  image: jax.Array
  text: jax.Array
  scale: jax.Array
  bias: jax.Array


class Clip(nn.Module):
  """Two towers, a linear map of each into one space, and a temperature.

  `method='image_embedding'` and `method='text_embedding'` call one side alone.

  Attributes:
    features: F, width of the space.
    image_tower: Called as (image, train=..., mask=...) -> [B, D]. A classifier
      is one, too: its logits, as many as one wants, are then its features.
    text_tower: Called as (tokens, train=..., mask=...) -> [B, D'].
    initial_scale: What cosines are multiplied by in the beginning, > 0; its
      logarithm is learned. 1 / .07 is the authors', 10 is SigLIP's.
    initial_bias: Of a learned number that is added to scaled cosines; None has
      none, as in CLIP. -10 is SigLIP's (https://arxiv.org/abs/2303.15343).
    param_dtype: Type of the parameters.
  """

  features: int
  image_tower: nn.Module
  text_tower: nn.Module
  initial_scale: float = 1 / 0.07
  initial_bias: float | None = None
  param_dtype: Any = jnp.float32

  def setup(self):
    check_range('[1, inf)', features=self.features)
    check_range('(0, inf)', initial_scale=self.initial_scale)

    def project():
      # std D^-.5, as the authors have it; the product is float32.
      return nn.Dense(
        self.features,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
        dtype=jnp.float32,
        param_dtype=self.param_dtype,
      )

    self.image_projection = project()
    self.text_projection = project()
    self.logit_scale = self.param(
      'logit_scale',
      nn.initializers.constant(math.log(self.initial_scale)),
      (),
      self.param_dtype,
    )
    if self.initial_bias is not None:
      self.logit_bias = self.param(
        'logit_bias',
        nn.initializers.constant(self.initial_bias),
        (),
        self.param_dtype,
      )

  def __call__(
    self,
    image: jax.Array,
    tokens: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    token_mask: jax.Array | None = None,
  ) -> Pairs:
    """Embeds pairs.

    Args:
      image: [B, H, W, C].
      tokens: [B, L].
      train: Whether the towers train.
      mask: 1 for a real row, [B].
      token_mask: 0 for padding of texts, [B, L].
    """
    bias = 0.0 if self.initial_bias is None else self.logit_bias
    return Pairs(
      self.image_embedding(image, train=train, mask=mask),
      self.text_embedding(tokens, train=train, mask=token_mask),
      jnp.exp(self.logit_scale.astype(jnp.float32)),
      jnp.asarray(bias, jnp.float32),
    )

  def image_embedding(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Embeddings of any length, [B, H, W, C] -> float32 [B, F]."""
    tower: Any = self.image_tower
    return self.image_projection(tower(image, train=train, mask=mask))

  def text_embedding(
    self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Embeddings of any length, [B, L] -> float32 [B, F]; see `TextTower`."""
    tower: Any = self.text_tower
    return self.text_projection(tower(tokens, train=train, mask=mask))


def _through(config, tokens, *, causal, train):
  """Tokens after all blocks of the tower that calls it."""

  def run(layer, tokens):
    return layer(tokens, train=train)[0]

  run = nn.remat(run) if config.remat else run
  for i, each in enumerate(config.blocks(causal=causal)):
    tokens = run(block.Block(each, name=f'block_{i}'), tokens)
  return tokens


def _norms(config):
  return lambda name: nn.LayerNorm(
    config.layer_norm_epsilon, name=name, **config.types
  )
