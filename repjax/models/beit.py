"""Device code: the transformer of BEiT, with a head for tokens or for classes.

Bao, Dong, Piao and Wei, 'BEiT: BERT Pre-Training of Image Transformers', ICLR
2022 (https://arxiv.org/abs/2106.08254), and the authors' code.
`weights.beit_weights` loads published weights; `methods.beit` pre-trains.
"""

import dataclasses
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import trees
from repjax.layers import attention
from repjax.layers import patches
from repjax.layers.attention import signature
from repjax.layers.positions import grid_positions
from repjax.layers.positions import relative_positions
from repjax.models import block
from repjax.models import vit
from repjax.types import InputError
from repjax.types import check_choice

# What differs from `vit.SIZES`, where the widths are.
LAYER_SCALES = {'B': 0.1, 'L': 1e-5}

# Of weights, in pre-training: sigma 0.02, truncated at one sigma already.
_INIT_STDDEV, _INIT_CUT = 0.02, 1.0


def _init(scale: float = 1.0, *, cut: float = _INIT_CUT) -> block.Init:
  """Initializer of weights: `scale` times a normal cut at `cut` sigma."""
  normal = nn.initializers.truncated_normal(_INIT_STDDEV, lower=-cut, upper=cut)
  return lambda *args: scale * normal(*args)


class Encoder(nn.Module):
  """From images to tokens, some patches of which may be hidden.

  Attributes:
    patch_size: P in pixels, or (height, width).
    hidden_dim: D, a multiple of `num_heads`.
    mlp_dim: Width inside the MLPs.
    num_heads: H.
    num_layers: L.
    relative: Tables of relative positions: 'shared' by all layers, as the
      authors pre-train, 'per_layer', as they fine-tune, or 'none'.
    position: 'none', or 'learned' absolute positions.
    grid: (rows, columns) of patches that both are of; None for images of as
      many rows as columns.
    layer_scale: Initial factor of every channel of a branch (gamma); 0 for no
      such parameters.
    dropout_rate: Dropout on embedded tokens and on branches.
    attention_dropout_rate: Dropout on attention weights.
    drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
    attention_fn: Attention like `nn.dot_product_attention` that takes a bias.
    gelu: 'exact' as in the authors' code, or 'tanh'.
    layer_norm_epsilon: Added to variances; 1e-6 in the authors' code, 1e-12 in
      the files of transformers.
    remat: Whether blocks are computed again in the backward pass.
    dtype: Type of the computation; None infers it from image and parameters.
    param_dtype: Type of the parameters.
  """

  patch_size: int | tuple[int, int]
  _: dataclasses.KW_ONLY
  hidden_dim: int
  mlp_dim: int
  num_heads: int
  num_layers: int
  relative: Literal['shared', 'per_layer', 'none'] = 'shared'
  position: Literal['none', 'learned'] = 'none'
  grid: grid_positions.Grid | None = None
  layer_scale: float = 0.1
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  attention_fn: signature.AttentionFn = attention.Softmax()
  gelu: Literal['tanh', 'exact'] = 'exact'
  layer_norm_epsilon: float = 1e-6
  remat: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    *,
    train: bool,
    hidden: jax.Array | None = None,
  ) -> jax.Array:
    """Tokens after the last block, not normalised; the class token is first.

    Args:
      image: [B, H, W, C], divided into N whole patches.
      train: Whether to apply dropout and stochastic depth; they draw from the
        rngs 'dropout'.
      hidden: 1 for a patch that the mask token stands for, [B, N]. The mask
        token is a parameter if `hidden` is there at `init`.

    Returns:
      [B, 1 + N, D].

    Raises:
      InputError: The patches do not tile the image, or a field does not fit.
    """
    check_choice('relative', self.relative, ('shared', 'per_layer', 'none'))
    check_choice('position', self.position, ('none', 'learned'))
    check_choice('gelu', self.gelu, ('tanh', 'exact'))
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    tokens = nn.DenseGeneral(
      self.hidden_dim,
      axis=(-3, -2, -1),
      kernel_init=_init(),
      name='embedding',
      **types,
    )(patches.extract(image, self.patch_size))
    batch, rows, columns, dim = tokens.shape
    grid = (rows, columns)
    if (self.relative, self.position) != ('none', 'none'):
      grid_positions.check_grid(grid, self.grid)
    tokens = tokens.reshape(batch, -1, dim)
    if hidden is not None:
      if hidden.shape != tokens.shape[:2]:
        raise InputError(
          f'hidden must be [batch, patches] = {tokens.shape[:2]}, got '
          f'{hidden.shape}'
        )
      tokens = jnp.where(
        hidden[..., None] > 0,
        self._token('mask_token').astype(tokens.dtype),
        tokens,
      )
    cls = jnp.broadcast_to(self._token('cls'), (batch, 1, dim))
    tokens = jnp.concatenate([cls.astype(tokens.dtype), tokens], axis=1)
    if self.position == 'learned':
      tokens = grid_positions.LearnedPositions(
        self.param_dtype, name='positions'
      )(tokens)
    tokens = nn.Dropout(
      self.dropout_rate, deterministic=not train, name='dropout'
    )(tokens)

    def bias_of_grid():  # Of whatever calls it.
      return relative_positions.RelativePositionBias(
        self.num_heads, self.param_dtype, name='relative_positions'
      )(grid)

    bias = bias_of_grid() if self.relative == 'shared' else None
    config = block.BlockConfig(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      activation=f'gelu_{self.gelu}',
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      drop_path_rate=self.drop_path_rate,
      attention_fn=self.attention_fn,
      layer_scale=self.layer_scale,
      key_bias=False,
      own_bias=bias_of_grid if self.relative == 'per_layer' else None,
      layer_norm_epsilon=self.layer_norm_epsilon,
      kernel_init=_init(),
      **types,
    )

    def run(layer, tokens):
      return layer(tokens, train=train, bias=bias)[0]

    run = nn.remat(run) if self.remat else run
    for i, each in enumerate(config.repeat(self.num_layers)):
      each = dataclasses.replace(
        each, out_kernel_init=_init((2 * (i + 1)) ** -0.5)
      )
      tokens = run(block.Block(each, name=f'block_{i}'), tokens)
    return tokens

  def _token(self, name):
    return self.param(name, _init(), (1, 1, self.hidden_dim), self.param_dtype)


class MaskedImageModel(nn.Module):
  """Predicts the visual tokens of patches (eq. 2).

  Attributes:
    encoder: What sees the patches that are not hidden.
    vocab_size: Number of visual tokens V.
  """

  encoder: Encoder
  vocab_size: int

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    hidden: jax.Array,
    *,
    train: bool,
    places: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of visual tokens.

    Args:
      image: [B, H, W, C], divided into N whole patches.
      hidden: 1 for patches that are hidden, [B, N].
      train: Whether to apply dropout and stochastic depth (rngs 'dropout').
      places: Patches whose logits are wanted, int [B, K]; all if None.

    Returns:
      [B, K or N, V] float32.
    """
    tokens = self.encoder(image, train=train, hidden=hidden)[:, 1:]
    if places is not None:
      tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
    tokens = _norm(self.encoder, 'norm')(tokens)
    return _head(self.encoder, self.vocab_size, _init())(tokens).astype(
      jnp.float32
    )


class Classifier(nn.Module):
  """A classifier on the encoder.

  Attributes:
    encoder: With relative='per_layer', as the authors fine-tune.
    num_classes: Number of logits.
    pool: 'average' normalises the mean of all patches, 'token' takes the class
      token of the normalised tokens.
    head_scale: Of the initial head, 0.001 in the authors' code.
  """

  encoder: Encoder
  num_classes: int
  _: dataclasses.KW_ONLY
  pool: Literal['average', 'token'] = 'average'
  head_scale: float = 1e-3

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Logits.

    Args:
      image: [B, H, W, C], divided into whole patches.
      train: Whether to apply dropout and stochastic depth (rngs 'dropout').
      mask: Ignored: rows do not see each other.

    Returns:
      [B, num_classes] float32.
    """
    del mask  # There are no batch statistics.
    check_choice('pool', self.pool, ('average', 'token'))
    tokens = self.encoder(image, train=train)
    if self.pool == 'average':
      pooled = _norm(self.encoder, 'pool_norm')(tokens[:, 1:].mean(axis=1))
    else:
      pooled = _norm(self.encoder, 'encoder_norm')(tokens)[:, 0]
    # A cut at 100 sigma is none, as where the authors fine-tune.
    head_init = _init(self.head_scale, cut=100.0)
    return _head(self.encoder, self.num_classes, head_init)(
      pooled.astype(jnp.float32)
    )


def _norm(encoder, name):
  return nn.LayerNorm(
    encoder.layer_norm_epsilon,
    dtype=encoder.dtype,
    param_dtype=encoder.param_dtype,
    name=name,
  )


def _head(encoder, width, kernel_init):
  return nn.Dense(
    width,
    kernel_init=kernel_init,
    param_dtype=encoder.param_dtype,
    name='head',
  )


def variant(name: str, **fields: Any) -> Encoder:
  """A published size: `variant('B/16')` has patches of 16 x 16 pixels.

  Args:
    name: 'B' or 'L' and the patch size, with a slash between.
    **fields: Other fields of `Encoder`.

  Raises:
    InputError: There is no such size.
  """
  size, _, patch_size = name.partition('/')
  if size not in LAYER_SCALES or not patch_size.isdigit():
    raise InputError(
      f"no BEiT is called {name!r}; published are 'B/16' and 'L/16'"
    )
  fields = dict(layer_scale=LAYER_SCALES[size], **vit.SIZES[size]) | fields
  return Encoder(int(patch_size), **fields)


def layer_of(path: trees.Path, *, num_layers: int) -> int:
  """Which layer a parameter is in, for `optim.layer_decay`.

  As the authors count: 0 for embeddings and for tokens that are parameters, i
  for block i of 1 to L, L + 1 for the rest: heads, norms after the last block,
  and a table of relative positions that all layers share.

  Args:
    path: Of a parameter of `Classifier` or `MaskedImageModel`.
    num_layers: L.
  """
  name = path[1] if path[0] == 'encoder' else ''
  if name in ('cls', 'mask_token', 'positions', 'embedding'):
    return 0
  if name.startswith('block_'):
    return int(name.removeprefix('block_')) + 1
  return num_layers + 1
