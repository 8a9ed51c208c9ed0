"""Device code: the Vision Transformer.

Dosovitskiy et al., 'An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale', ICLR 2021 (https://arxiv.org/abs/2010.11929).
`repjax.weights.vit_weights` loads the published weights.
"""

from collections.abc import Mapping
import dataclasses
import difflib
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.layers import patches
from repjax.layers.attention import signature
from repjax.layers.positions import grid_positions
from repjax.models import block
from repjax.models import deep
from repjax.types import InputError
from repjax.types import check_choice

# Table 1 of the paper; Ti and S are those of DeiT (Touvron et al., 2021) and of
# the authors' later checkpoints. The authors train L and H with dropout 0.1.
SIZES: Mapping[str, Mapping[str, Any]] = {
  'Ti': dict(hidden_dim=192, mlp_dim=768, num_heads=3, num_layers=12),
  'S': dict(hidden_dim=384, mlp_dim=1536, num_heads=6, num_layers=12),
  'B': dict(hidden_dim=768, mlp_dim=3072, num_heads=12, num_layers=12),
  'L': dict(hidden_dim=1024, mlp_dim=4096, num_heads=16, num_layers=24),
  'H': dict(hidden_dim=1280, mlp_dim=5120, num_heads=16, num_layers=32),
}

_DROPOUT_NAMES = block.DropoutNames('dropout', 'dropout_hidden', 'dropout_out')


class ViT(nn.Module):
  """Vision Transformer, from images to logits.

  `model.apply(variables, image, train=False)` gives logits; `method='features'`
  gives what the head sees, `method='encode'` one vector a token. Parts are
  callable too: `embed`, `each_block`, and `classify` on what leaves a block.

  Attributes:
    num_classes: Number of logits.
    patch_size: P in pixels, or (height, width).
    hidden_dim: D, a multiple of `num_heads`.
    mlp_dim: Width inside the MLPs.
    num_heads: H.
    num_layers: L.
    pool: 'token' classifies a class token, 'average' the mean of all patches
      (and has no class token).
    position: 'learned', or 'sincos' (`grid_positions.sincos_2d`).
    grid: (rows, columns) of patches that learned positions are of; None for
      images of as many rows as columns.
    dropout_rate: Dropout on embedded tokens and in every block.
    attention_dropout_rate: Dropout on attention weights.
    drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
    representation_dim: Width of a tanh layer before the head, as the authors
      have it while they pre-train on ImageNet-21k; None for no such layer.
    attention_fn: Attention like `nn.dot_product_attention`.
    gelu: 'tanh' as in the authors' code, 'exact' as in PyTorch ports.
    layer_norm_epsilon: Added to variances.
    remat: Whether blocks are computed again in the backward pass, which then
      keeps one block's activations at a time.
    scan_layers: Whether blocks run as one loop (`deep`), which compiles once,
      where nothing looks into them. Parameters are the same.
    head_init: Initial kernel of the head; zero is the authors', and makes all
      logits equal before training.
    dtype: Type of the computation; None infers it from image and parameters.
      Statistics of norms, the softmax and the logits are float32 in any case.
    param_dtype: Type of the parameters.
  """

  num_classes: int
  _: dataclasses.KW_ONLY
  patch_size: int | tuple[int, int]
  hidden_dim: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  pool: Literal['token', 'average'] = 'token'
  position: Literal['learned', 'sincos'] = 'learned'
  grid: grid_positions.Grid | None = None
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  representation_dim: int | None = None
  attention_fn: signature.AttentionFn = attention.Softmax()
  gelu: Literal['tanh', 'exact'] = 'tanh'
  layer_norm_epsilon: float = 1e-6
  remat: bool = False
  scan_layers: bool = False
  head_init: block.Init = nn.initializers.zeros
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def setup(self):
    check_choice('pool', self.pool, ('token', 'average'))
    check_choice('position', self.position, ('learned', 'sincos'))
    check_choice('gelu', self.gelu, ('tanh', 'exact'))
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.embedding = nn.DenseGeneral(
      self.hidden_dim, axis=(-3, -2, -1), **types
    )
    if self.pool == 'token':
      self.cls = self.param(
        'cls', nn.initializers.zeros, (1, 1, self.hidden_dim), self.param_dtype
      )
    if self.position == 'learned':
      self.positions = grid_positions.LearnedPositions(self.param_dtype)
    self.dropout = nn.Dropout(self.dropout_rate)
    config = block.BlockConfig(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      activation=f'gelu_{self.gelu}',
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      activation_dropout_rate=self.dropout_rate,
      drop_path_rate=self.drop_path_rate,
      attention_fn=self.attention_fn,
      layer_norm_epsilon=self.layer_norm_epsilon,
      kernel_init=nn.initializers.xavier_uniform(),
      mlp_bias_init=nn.initializers.normal(1e-6),
      dropout_names=_DROPOUT_NAMES,
      **types,
    )
    self.block = [block.Block(x) for x in config.repeat(self.num_layers)]
    self.encoder_norm = nn.LayerNorm(self.layer_norm_epsilon, **types)
    if self.representation_dim is not None:
      self.pre_logits = nn.Dense(self.representation_dim, **types)
    self.head = nn.Dense(
      self.num_classes,
      kernel_init=self.head_init,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
    )

  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Logits.

    Args:
      image: [B, H, W, C], divided into whole patches.
      train: Whether to apply dropout and stochastic depth; they draw from the
        rngs 'dropout'.
      mask: Ignored: rows do not see each other.

    Returns:
      [B, num_classes] float32.
    """
    del mask  # There are no batch statistics.
    return self.head(self.features(image, train=train))

  def embed(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Tokens before the first block (eq. 1), [B, T, D]; class token first."""
    grid = self.embedding(patches.extract(image, self.patch_size))
    batch, rows, columns, dim = grid.shape
    tokens = grid.reshape(batch, rows * columns, dim)
    num_prefix_tokens = 0
    if self.pool == 'token':
      cls = jnp.broadcast_to(self.cls, (batch, 1, dim)).astype(tokens.dtype)
      tokens = jnp.concatenate([cls, tokens], axis=1)
      num_prefix_tokens = 1
    if self.position == 'learned':
      grid_positions.check_grid((rows, columns), self.grid)
      tokens = self.positions(tokens)
    else:
      tokens = tokens + grid_positions.sincos_2d(
        (rows, columns), dim, num_prefix_tokens=num_prefix_tokens
      ).astype(tokens.dtype)
    return self.dropout(tokens, deterministic=not train)

  def encode(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Normalised tokens after the last block, [B, T, D]."""
    return self.encoder_norm(self._blocks(image, train=train)[0])

  def features(self, image: jax.Array, *, train: bool) -> jax.Array:
    """What the head sees, [B, D] or [B, representation_dim]."""
    return self._pool(self._blocks(image, train=train)[0])

  def classify(self, tokens: jax.Array) -> jax.Array:
    """Logits [B, num_classes] of tokens [B, T, D] as they leave any block."""
    return self.head(self._pool(tokens))

  def head_of(self, pooled: jax.Array) -> jax.Array:
    """Logits [B, num_classes] of a normalised token [B, D]."""
    return self.head(self._represent(pooled))

  def each_block(self, image: jax.Array, *, train: bool) -> list[jax.Array]:
    """Tokens as they leave each block, num_layers of [B, T, D]."""
    return self._blocks(image, train=train, keep=True)[1]

  def _blocks(self, image, *, train, keep=False):
    """(Tokens after the last block, those after each if they are kept)."""

    def call(layer, tokens, **own):
      tokens, _ = layer(tokens, train=train, **own)
      return tokens, tokens if keep else None

    tokens = self.embed(image, train=train)
    if self.scan_layers and deep.can_scan(self.block):
      return deep.scan(self.block, call, tokens, train=train, remat=self.remat)
    call = nn.remat(call) if self.remat else call
    left = []
    for layer in self.block:
      tokens, kept = call(layer, tokens)
      left.append(kept)
    return tokens, left

  def _pool(self, tokens):
    tokens = self.encoder_norm(tokens)
    return self._represent(
      tokens[:, 0] if self.pool == 'token' else tokens.mean(axis=1)
    )

  def _represent(self, pooled):
    if self.representation_dim is not None:
      pooled = jnp.tanh(self.pre_logits(pooled))
    return pooled


def variant(name: str, num_classes: int, **fields: Any) -> ViT:
  """A published size: `variant('B/16', 1000)` has patches of 16 x 16 pixels.

  Args:
    name: One of `SIZES` and the patch size, with a slash between.
    num_classes: Number of logits.
    **fields: Other fields of `ViT`.

  Raises:
    InputError: There is no such size; the message names near ones.
  """
  size, _, patch_size = name.partition('/')
  if size not in SIZES or not patch_size.isdigit():
    known = [f'{size}/{patch}' for size in SIZES for patch in (16, 32, 14, 8)]
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(name.lower(), lower, cutoff=0.5)
    near = [lower[name] for name in near] or known
    raise InputError(f'no ViT is called {name!r}; near names: {near}')
  return ViT(num_classes, patch_size=int(patch_size), **SIZES[size], **fields)


def attention_maps(
  model: ViT, variables: Mapping[str, Any], image: jax.Array
) -> jax.Array:
  """Attention weights of all blocks, rows summing to 1.

  Args:
    model: Its `attention_fn` must take `module` and sow 'attention_weights'.
    variables: Of the model.
    image: [B, H, W, C].

  Returns:
    [num_layers, B, num_heads, T, T], queries before keys.

  Raises:
    InputError: The attention has no weights to show.
  """
  _, sown = model.apply(
    variables, image, train=False, mutable=['intermediates']
  )
  sown = sown['intermediates']
  layers = [sown[f'block_{i}'] for i in range(model.num_layers)]
  if any('attention' not in layer for layer in layers):
    raise InputError(
      'attention_maps needs an attention_fn that sows attention_weights, as '
      'layers.attention.Softmax does'
    )
  return jnp.stack([x['attention']['attention_weights'][0] for x in layers])
