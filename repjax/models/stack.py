"""Device code: stacks of blocks over tokens, and what models of them share."""

import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.layers.attention import multi_head
from repjax.layers.attention import signature
from repjax.layers.positions import sequence_positions
from repjax.models import block
from repjax.models import deep
from repjax.types import InputError
from repjax.types import check_choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
  """What a stack is.

  Attributes:
    block: Of all blocks; `position` says whether they are rotary.
    num_layers: Number of blocks.
    position: 'learned', 'sinusoidal' (`sequence_positions.sinusoids`) or
      'rotary' (`sequence_positions.rotate`, in self-attention).
    num_positions: Longest sequence; only 'learned' needs it.
    position_offset: Rows of the position embedding before that of the first
      token; 2 in RoBERTa and BART.
    num_token_types: Segments that have an embedding; 0 has none.
    embedding_norm: Whether embedded tokens are normalised (BERT, BART).
    remat: Whether blocks are computed again in the backward pass, which then
      keeps one block's activations at a time.
    scan_layers: Whether blocks run as one loop (`deep`), which compiles once,
      where nothing looks into them. Parameters are the same.
  """

  block: block.BlockConfig
  num_layers: int
  position: Literal['learned', 'sinusoidal', 'rotary'] = 'learned'
  num_positions: int | None = None
  position_offset: int = 0
  num_token_types: int = 0
  embedding_norm: bool = False
  remat: bool = False
  scan_layers: bool = False

  def __post_init__(self):
    check_choice('position', self.position, ('learned', 'sinusoidal', 'rotary'))

  def check_length(self, length: int) -> None:
    """Raises InputError if there are fewer learned positions."""
    if self.num_positions is None:
      raise InputError(
        "position='learned' needs num_positions, the longest sequence"
      )
    if length > self.num_positions:
      raise InputError(
        f'{length} positions are more than num_positions={self.num_positions} '
        'of the position embedding: shorten the sequences (or max_length), or '
        'raise num_positions'
      )


class StackState(NamedTuple):
  """What a stack remembers between two steps of decoding.

  Attributes:
    blocks: Of each block.
    position: Place of the next token, int32 [B].
  """

  blocks: tuple[block.BlockState, ...]
  position: jax.Array


class Stack(nn.Module):
  """Positions, types and blocks over embedded tokens."""

  config: StackConfig

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool,
    mask: jax.Array | None = None,
    context_mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
    segments: jax.Array | None = None,
    max_length: int | None = None,
    state: StackState | None = None,
  ) -> tuple[jax.Array, StackState]:
    """Features of embedded tokens.

    Args:
      tokens: [B, L, D].
      context: Features of the other sequence, [B, S, D].
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: 0 for padding, [B, L].
      context_mask: 0 for padding, [B, S].
      token_types: [B, L] in [0, num_token_types); None means 0.
      segments: Which of several texts a token is of, [B, L], 0 for padding.
        Texts see nothing of each other, and each has places of its own.
      max_length: Begins decoding, with room for this many positions.
      state: Goes on decoding from here.

    Returns:
      (features [B, L, D], decoding state).
    """
    config, layer = self.config, self.config.block
    multi_head.check_mask(mask, tokens)
    batch, length, dim = tokens.shape
    if state is not None:
      positions = state.position[:, None]
    elif segments is not None:
      multi_head.check_segments(segments, tokens)
      positions = sequence_positions.from_segments(segments)
    elif mask is not None:
      positions = sequence_positions.from_mask(mask)
    else:
      positions = jnp.broadcast_to(jnp.arange(length), (batch, length))

    if config.position == 'learned':
      # Packed texts are shorter than their row.
      whole = segments is None
      config.check_length(max(length, max_length or 0) if whole else 1)
      assert config.num_positions is not None  # As just checked.
      tokens = tokens + nn.Embed(
        config.num_positions + config.position_offset,
        dim,
        embedding_init=layer.kernel_init,
        name='position_embedding',
        **layer.types,
      )(positions + config.position_offset)
    elif config.position == 'sinusoidal':
      waves = sequence_positions.sinusoids(positions, dim)
      tokens = tokens + waves.astype(tokens.dtype)
    if config.num_token_types:
      if token_types is None:
        token_types = jnp.zeros((batch, length), jnp.int32)
      tokens = tokens + nn.Embed(
        config.num_token_types,
        dim,
        embedding_init=layer.kernel_init,
        name='type_embedding',
        **layer.types,
      )(token_types)
    norm = functools.partial(
      nn.LayerNorm, layer.layer_norm_epsilon, **layer.types
    )
    if config.embedding_norm:
      tokens = norm(name='embedding_norm')(tokens)
    tokens = nn.Dropout(
      layer.dropout_rate, deterministic=not train, name='embedding_dropout'
    )(tokens)

    def run(module, tokens, context, state, **own):
      return module(
        tokens,
        context,
        train=train,
        mask=mask,
        context_mask=context_mask,
        segments=segments,
        positions=positions,
        max_length=max_length,
        state=state,
        **own,
      )

    layer = dataclasses.replace(layer, rotary=config.position == 'rotary')
    layers = [
      block.Block(each, name=f'block_{i}')
      for i, each in enumerate(layer.repeat(config.num_layers))
    ]
    states: list[block.BlockState] = []
    if config.scan_layers and state is None and deep.can_scan(layers):
      tokens, states = deep.scan(
        layers,
        functools.partial(run, context=context, state=None),
        tokens,
        train=train,
        remat=config.remat,
      )
    else:
      # The states of blocks hold no more than what they compute.
      run = nn.remat(run) if config.remat and state is None else run
      for i, each in enumerate(layers):
        own = None if state is None else state.blocks[i]
        tokens, block_state = run(each, tokens, context, own)
        states.append(block_state)
    if layer.norm == 'pre':
      tokens = norm(name='norm')(tokens)
    ends = positions.max(axis=1) + 1
    if state is None and segments is None and mask is not None:
      ends = jnp.where((mask > 0).any(1), ends, 0)  # A row of padding alone.
    return tokens, StackState(tuple(states), ends)


class TokenModel(nn.Module):
  """An embedding of tokens, the stacks over it, and logits that share it.

  Attributes:
    vocab_size: Number of tokens.
    hidden_dim: D, width of tokens.
    scale_embedding: Whether embedded tokens are multiplied by sqrt(D) (Vaswani
      et al., sec. 3.4, https://arxiv.org/abs/1706.03762).
    embedding_init: Initial embedding of tokens.

  The others are those of `StackConfig` and of `block.BlockConfig`, where
  `dropout_rate` is of embedded tokens, too, `kernel_init` of the embeddings of
  positions and types, and logits are float32 whatever `dtype` is.
  """

  vocab_size: int
  _: dataclasses.KW_ONLY
  hidden_dim: int
  scale_embedding: bool = False
  embedding_init: block.Init = nn.initializers.normal(0.02)
  num_layers: int
  position: Literal['learned', 'sinusoidal', 'rotary'] = 'learned'
  num_positions: int | None = None
  position_offset: int = 0
  num_token_types: int = 0
  embedding_norm: bool = False
  remat: bool = False
  scan_layers: bool = False
  mlp_dim: int
  num_heads: int
  norm: Literal['pre', 'post'] = 'pre'
  activation: str = 'gelu_tanh'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  activation_dropout_rate: float = 0.0
  attention_fn: signature.AttentionFn = attention.Softmax()
  layer_norm_epsilon: float = 1e-5
  kernel_init: block.Init = nn.initializers.normal(0.02)
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def setup(self):
    # Without dtype: in float32 the logits of the tied embedding stay exact.
    self.token_embedding = nn.Embed(
      self.vocab_size,
      self.hidden_dim,
      embedding_init=self.embedding_init,
      param_dtype=self.param_dtype,
    )

  def _stack(self, num_layers=None, **changes):
    """A stack with other numbers of layers or other fields of its blocks."""
    layer = block.BlockConfig(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      norm=self.norm,
      activation=self.activation,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      activation_dropout_rate=self.activation_dropout_rate,
      attention_fn=self.attention_fn,
      layer_norm_epsilon=self.layer_norm_epsilon,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    return Stack(
      StackConfig(
        block=dataclasses.replace(layer, **changes),
        num_layers=self.num_layers if num_layers is None else num_layers,
        position=self.position,
        num_positions=self.num_positions,
        position_offset=self.position_offset,
        num_token_types=self.num_token_types,
        embedding_norm=self.embedding_norm,
        remat=self.remat,
        scan_layers=self.scan_layers,
      )
    )

  def _embed(self, tokens):
    """[B, L] -> [B, L, D]."""
    embedded = self.token_embedding(tokens)
    if self.scale_embedding:
      embedded = embedded * self.hidden_dim**0.5
    return embedded if self.dtype is None else embedded.astype(self.dtype)

  def tied_logits(self, features: jax.Array) -> jax.Array:
    """Products with the embedding, [..., D] -> [..., vocab_size] float32."""
    return self.token_embedding.attend(features.astype(jnp.float32))
