"""Device code: the layers that all transformers over tokens are stacks of."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.layers import attention
from repjax.layers.attention import multi_head
from repjax.layers.positions import sequence_positions
from repjax.types import InputError


class BlockState(NamedTuple):
  """Decoding states of one block.

  Attributes:
    attention: What the block's `attention_fn.init_state` makes.
    cross: `multi_head.CrossState`, or () where there is no other sequence.
  """

  attention: Any
  cross: Any


class StackState(NamedTuple):
  """What a stack remembers between two steps of decoding.

  Attributes:
    blocks: Of each block.
    position: Place of the next token, int32 [B].
  """

  blocks: tuple[BlockState, ...]
  position: jax.Array


class BlockFields(nn.Module):
  """Fields of a block, of stacks of blocks and of models made of stacks.

  Attributes:
    mlp_dim: Width inside the MLPs.
    num_heads: H, a divisor of the tokens' width.
    norm: 'pre' normalises what a branch reads (GPT-2), 'post' the sum after it
      (Vaswani et al., BERT, BART).
    activation: See `activations.by_name`.
    dropout_rate: Dropout on embedded tokens and after every branch.
    attention_dropout_rate: Dropout on attention weights.
    activation_dropout_rate: Dropout on hidden units of the MLPs.
    attention_fn: See `multi_head.MultiHeadAttention`.
    cross_attention_fn: Attention to another sequence; None has none.
    layer_norm_epsilon: Added to variances.
    kernel_init: Initial kernels and embeddings of positions and types.
    dtype: Type of the computation; None infers it from input and parameters.
      Statistics of norms, the softmax and logits are float32 in any case.
    param_dtype: Type of the parameters.
  """

  _: dataclasses.KW_ONLY
  mlp_dim: int
  num_heads: int
  norm: Literal['pre', 'post'] = 'pre'
  activation: str = 'gelu_tanh'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  activation_dropout_rate: float = 0.0
  attention_fn: Callable[..., jax.Array] = attention.Softmax()
  cross_attention_fn: Callable[..., jax.Array] | None = None
  layer_norm_epsilon: float = 1e-5
  kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def fields(self, kind: type['BlockFields']) -> dict[str, Any]:
    """The fields that this module shares with a base class."""
    names = {x.name for x in dataclasses.fields(kind)} - {'parent', 'name'}
    return {name: getattr(self, name) for name in names}


class StackFields(BlockFields):
  """Fields of a stack and of models made of stacks.

  Attributes:
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
  """

  _: dataclasses.KW_ONLY
  num_layers: int
  position: Literal['learned', 'sinusoidal', 'rotary'] = 'learned'
  num_positions: int | None = None
  position_offset: int = 0
  num_token_types: int = 0
  embedding_norm: bool = False
  remat: bool = False


class Mlp(nn.Module):
  """Two dense layers with an activation between; see `BlockFields`."""

  hidden_dim: int
  _: dataclasses.KW_ONLY
  activation: str = 'gelu_tanh'
  dropout_rate: float = 0.0
  kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """[B, L, D] -> [B, L, D]; drops hidden units at `dropout_rate`."""
    dense = functools.partial(
      nn.Dense,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    hidden = dense(self.hidden_dim, name='hidden')(tokens)
    hidden = activations.by_name(self.activation)(hidden)
    hidden = nn.Dropout(
      self.dropout_rate, deterministic=not train, name='dropout'
    )(hidden)
    return dense(tokens.shape[-1], name='out')(hidden)


class Block(BlockFields):
  """One layer: attention, attention to another sequence, MLP.

  Sows its result as 'output', and the attentions' 'attention_weights', where
  the caller makes 'intermediates' mutable.

  Attributes:
    rotary: Whether self-attention rotates queries and keys.
  """

  _: dataclasses.KW_ONLY
  rotary: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool,
    mask: jax.Array | None = None,
    context_mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    max_length: int | None = None,
    state: BlockState | None = None,
  ) -> tuple[jax.Array, BlockState]:
    """Arguments as in `multi_head.MultiHeadAttention`.

    Returns:
      (output [B, L, D], decoding states).
    """
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    state = BlockState(None, None) if state is None else state

    def residual(name, fn, x):
      """Computes x + fn(norm(x)), or norm(x + fn(x))."""
      norm = nn.LayerNorm(self.layer_norm_epsilon, name=f'{name}_norm', **types)
      drop = nn.Dropout(
        self.dropout_rate, deterministic=not train, name=f'{name}_dropout'
      )
      branch, new_state = fn(norm(x) if self.norm == 'pre' else x)
      x = x + drop(branch)
      return (x if self.norm == 'pre' else norm(x)), new_state

    attend = functools.partial(
      multi_head.MultiHeadAttention,
      self.num_heads,
      dropout_rate=self.attention_dropout_rate,
      kernel_init=self.kernel_init,
      **types,
    )
    self_attention = attend(
      attention_fn=self.attention_fn, rotary=self.rotary, name='attention'
    )
    tokens, own_state = residual(
      'attention',
      lambda x: self_attention(
        x,
        train=train,
        mask=mask,
        positions=positions,
        max_length=max_length,
        state=state.attention,
      ),
      tokens,
    )

    cross_state = ()
    if self.cross_attention_fn is not None:
      cross_attention = attend(
        attention_fn=self.cross_attention_fn, name='cross_attention'
      )
      tokens, cross_state = residual(
        'cross_attention',
        lambda x: cross_attention(
          x,
          context,
          train=train,
          mask=context_mask,
          max_length=max_length,
          state=state.cross,
        ),
        tokens,
      )

    mlp = Mlp(
      self.mlp_dim,
      activation=self.activation,
      dropout_rate=self.activation_dropout_rate,
      kernel_init=self.kernel_init,
      name='mlp',
      **types,
    )
    tokens, _ = residual('mlp', lambda x: (mlp(x, train=train), None), tokens)
    self.sow('intermediates', 'output', tokens)
    return tokens, BlockState(own_state, cross_state)


class Stack(StackFields):
  """Positions, types and blocks over embedded tokens."""

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
      max_length: See `multi_head.MultiHeadAttention`, as for `state`.
      state: Goes on decoding from here.

    Returns:
      (features [B, L, D], decoding state).
    """
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    multi_head.check_mask(mask, tokens)
    batch, length, dim = tokens.shape
    if state is not None:
      positions = state.position[:, None]
    elif mask is not None:
      positions = sequence_positions.from_mask(mask)
    else:
      positions = jnp.broadcast_to(jnp.arange(length), (batch, length))

    if self.position == 'learned':
      self._check_length(max(length, max_length or 0))
      tokens = tokens + nn.Embed(
        self.num_positions + self.position_offset,
        dim,
        embedding_init=self.kernel_init,
        name='position_embedding',
        **types,
      )(positions + self.position_offset)
    elif self.position == 'sinusoidal':
      waves = sequence_positions.sinusoids(positions, dim)
      tokens = tokens + waves.astype(tokens.dtype)
    if self.num_token_types:
      if token_types is None:
        token_types = jnp.zeros((batch, length), jnp.int32)
      tokens = tokens + nn.Embed(
        self.num_token_types,
        dim,
        embedding_init=self.kernel_init,
        name='type_embedding',
        **types,
      )(token_types)
    norm = functools.partial(nn.LayerNorm, self.layer_norm_epsilon, **types)
    if self.embedding_norm:
      tokens = norm(name='embedding_norm')(tokens)
    tokens = nn.Dropout(
      self.dropout_rate, deterministic=not train, name='embedding_dropout'
    )(tokens)

    def run(block, tokens, context, state):
      return block(
        tokens,
        context,
        train=train,
        mask=mask,
        context_mask=context_mask,
        positions=positions,
        max_length=max_length,
        state=state,
      )

    # The states of blocks hold no more than what they compute.
    run = nn.remat(run) if self.remat and state is None else run
    shared = self.fields(BlockFields)
    states = []
    for i in range(self.num_layers):
      block = Block(
        rotary=self.position == 'rotary', name=f'block_{i}', **shared
      )
      tokens, block_state = run(
        block, tokens, context, None if state is None else state.blocks[i]
      )
      states.append(block_state)
    if self.norm == 'pre':
      tokens = norm(name='norm')(tokens)
    return tokens, StackState(tuple(states), positions.max(axis=1) + 1)

  def _check_length(self, length):
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
