"""Device code: the Swin Transformer, attention in windows at four scales.

Liu et al., 'Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows', ICCV 2021 (https://arxiv.org/abs/2103.14030). Its cost is linear in
the number of patches. `repjax.weights.swin_weights` loads published weights.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import drop_path
from repjax.layers import patches
from repjax.layers import windows
from repjax.layers.attention import multi_head
from repjax.models import block
from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

# Section 3.3 of the paper.
SIZES: Mapping[str, Mapping[str, Any]] = {
  'T': dict(hidden_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
  'S': dict(hidden_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
  'B': dict(hidden_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
  'L': dict(hidden_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}

# Of scores between tokens that are no neighbours, as published.
_APART = -100.0
# Of all kernels, but that of the patches, as in blocks.
_NORMAL = nn.initializers.normal(0.02)


class WindowBlock(nn.Module):
  """One layer over a map: attention within windows, then an MLP.

  Sows its result as 'output' where the caller makes 'intermediates' mutable.

  Attributes:
    config: Of attention and MLP.
    window: Side of a window.
    shifted: Whether windows begin half a window away from the map's corner.
  """

  config: block.BlockConfig
  window: int
  shifted: bool

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, D] -> [B, H, W, D]; a map as small as a window is one."""
    config = self.config
    height, width = x.shape[1:3]
    window = min(self.window, height, width)
    shift = (
      self.window // 2 if self.shifted and window < min(height, width) else 0
    )

    def normed(name):
      return nn.LayerNorm(
        config.layer_norm_epsilon, name=f'{name}_norm', **config.types
      )(x)

    def branch(name, y):
      drop = nn.Dropout(
        config.dropout_rate, deterministic=not train, name=f'{name}_dropout'
      )
      path = drop_path.DropPath(config.drop_path_rate, name=f'{name}_drop_path')
      return x + path(drop(y), train=train)

    # Padding counts as tokens, zero behind the norm, as published.
    tokens = jnp.pad(
      normed('attention'),
      ((0, 0), (0, -height % window), (0, -width % window), (0, 0)),
    )
    padded = tokens.shape[1], tokens.shape[2]
    bias = windows.WindowBias(
      config.num_heads,
      self.window,
      param_dtype=config.param_dtype,
      name='relative_positions',
    )(window)
    apart = windows.strangers(padded, window, shift)
    if apart is not None:
      tokens = jnp.roll(tokens, (-shift, -shift), (1, 2))
      mask = jnp.where(jnp.asarray(apart), _APART, 0.0).astype(bias.dtype)
      bias = bias[None] + mask[:, None]
    attended, _ = multi_head.MultiHeadAttention(
      config.num_heads,
      attention_fn=config.attention_fn,
      dropout_rate=config.attention_dropout_rate,
      kernel_init=config.kernel_init,
      name='attention',
      **config.types,
    )(windows.divide(tokens, window), train=train, bias=bias)
    attended = windows.join(attended, padded)
    if shift:
      attended = jnp.roll(attended, (shift, shift), (1, 2))
    x = branch('attention', attended[:, :height, :width])
    x = branch('mlp', block.Mlp(config, name='mlp')(normed('mlp'), train=train))
    self.sow('intermediates', 'output', x)
    return x


class PatchMerging(nn.Module):
  """Halves the sides of a map and doubles its width: 2 x 2 tokens become one.

  Attributes:
    layer_norm_epsilon: Added to variances.
    dtype: Type of the computation.
    param_dtype: Type of the parameters.
  """

  layer_norm_epsilon: float = 1e-5
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, D] -> [B, ceil(H / 2), ceil(W / 2), 2 D]."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    batch, height, width, dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = -(-height // 2), -(-width // 2)
    x = x.reshape(batch, rows, 2, columns, 2, dim)
    # Down before across, as in the published weights.
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * dim)
    x = nn.LayerNorm(self.layer_norm_epsilon, name='norm', **types)(x)
    return nn.Dense(
      2 * dim, use_bias=False, kernel_init=_NORMAL, name='reduction', **types
    )(x)


class Swin(nn.Module):
  """Swin Transformer, from images of any size to logits.

  `model.apply(variables, image, train=False)` gives logits;
  `method='features'` gives what the head sees, `method='encode'` the last map.
  Sides that patches, windows or mergings do not divide are padded with zeros.

  Attributes:
    num_classes: Number of logits.
    hidden_dim: Width of the first stage; each later one is twice as wide.
    depths: Number of blocks of each stage.
    num_heads: H of each stage.
    patch_size: Side of a patch in pixels.
    window: Side of a window in tokens; odd blocks shift theirs by half of it.
    mlp_ratio: Width inside the MLPs over that of tokens.
    dropout_rate: Dropout on embedded patches and in every block.
    attention_dropout_rate: Dropout on attention weights.
    drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
    gelu: 'exact' as published, or 'tanh'.
    layer_norm_epsilon: Added to variances.
    remat: Whether blocks are computed again in the backward pass.
    head_init: Initial kernel of the head.
    dtype: Type of the computation; None infers it from image and parameters.
    param_dtype: Type of the parameters.
  """

  num_classes: int
  _: dataclasses.KW_ONLY
  hidden_dim: int = 96
  depths: Sequence[int] = (2, 2, 6, 2)
  num_heads: Sequence[int] = (3, 6, 12, 24)
  patch_size: int = 4
  window: int = 7
  mlp_ratio: float = 4.0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  gelu: Literal['exact', 'tanh'] = 'exact'
  layer_norm_epsilon: float = 1e-5
  remat: bool = False
  head_init: block.Init = _NORMAL
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def setup(self):
    check_choice('gelu', self.gelu, ('exact', 'tanh'))
    check_range('[1, inf)', window=self.window, patch_size=self.patch_size)
    if len(self.depths) != len(self.num_heads) or not self.depths:
      raise InputError(
        'depths and num_heads have one number a stage; got '
        f'depths={tuple(self.depths)}, num_heads={tuple(self.num_heads)}'
      )
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    epsilon = self.layer_norm_epsilon
    self.embedding = nn.DenseGeneral(
      self.hidden_dim, axis=(-3, -2, -1), **types
    )
    self.embedding_norm = nn.LayerNorm(epsilon, **types)
    self.dropout = nn.Dropout(self.dropout_rate)
    configs = block.BlockConfig(
      mlp_dim=1,
      num_heads=1,
      activation=f'gelu_{self.gelu}',
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      activation_dropout_rate=0.0,
      drop_path_rate=self.drop_path_rate,
      layer_norm_epsilon=epsilon,
      **types,
    ).repeat(sum(self.depths))
    blocks, first = [], 0
    for stage, depth in enumerate(self.depths):
      own = dict(
        mlp_dim=int(self.mlp_ratio * self.width(stage)),
        num_heads=self.num_heads[stage],
      )
      blocks.append(
        [
          WindowBlock(
            dataclasses.replace(configs[first + i], **own),
            window=self.window,
            shifted=i % 2 == 1,
          )
          for i in range(depth)
        ]
      )
      first += depth
    self.block = blocks
    self.merge = [
      PatchMerging(epsilon, **types) for _ in range(len(self.depths) - 1)
    ]
    self.norm = nn.LayerNorm(epsilon, **types)
    self.head = nn.Dense(
      self.num_classes,
      kernel_init=self.head_init,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
    )

  @nn.nowrap
  def width(self, stage: int) -> int:
    """Width of a stage's tokens."""
    return self.hidden_dim * 2**stage

  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """Logits.

    Args:
      image: [B, H, W, C].
      train: Whether to apply dropout and stochastic depth; they draw from the
        rngs 'dropout'.
      mask: Ignored: rows do not see each other.

    Returns:
      [B, num_classes] float32.
    """
    del mask  # There are no batch statistics.
    return self.head(self.features(image, train=train))

  def encode(self, image: jax.Array, *, train: bool) -> jax.Array:
    """The last map, normalised, [B, rows, columns, width(-1)]."""

    def run(layer, x):
      return layer(x, train=train)

    run = nn.remat(run) if self.remat else run
    size = self.patch_size
    height, width = image.shape[1:3]
    image = jnp.pad(
      image, ((0, 0), (0, -height % size), (0, -width % size), (0, 0))
    )
    x = self.embedding_norm(self.embedding(patches.extract(image, size)))
    x = self.dropout(x, deterministic=not train)
    for stage, blocks in enumerate(self.block):
      if stage:
        x = self.merge[stage - 1](x)
      for layer in blocks:
        x = run(layer, x)
    return self.norm(x)

  def features(self, image: jax.Array, *, train: bool) -> jax.Array:
    """What the head sees: the mean over the last map, [B, D]."""
    return self.encode(image, train=train).mean((1, 2))


def variant(name: str, num_classes: int, **fields: Any) -> Swin:
  """A published size: 'T', 'S', 'B' or 'L'.

  Args:
    name: One of `SIZES`.
    num_classes: Number of logits.
    **fields: Other fields of `Swin`.

  Raises:
    InputError: There is no such size; the message names near ones.
  """
  if name not in SIZES:
    near = difflib.get_close_matches(name.upper(), SIZES) or list(SIZES)
    raise InputError(f'no Swin is called {name!r}; near names: {near}')
  return Swin(num_classes, **{**SIZES[name], **fields})
