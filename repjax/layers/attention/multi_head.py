"""Device code: multi-head attention that trains, prefills and decodes."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.layers.attention import signature
from repjax.layers.positions import sequence_positions
from repjax.types import InputError


class CrossState(NamedTuple):
  """Projected keys and values of the other sequence, made once.

  Attributes:
    key: [B, S, H, D].
    value: [B, S, H, D].
    mask: Real positions, bool [B, S].
  """

  key: jax.Array
  value: jax.Array
  mask: jax.Array


def check_mask(mask: jax.Array | None, tokens: jax.Array) -> None:
  """Raises InputError unless there is one value a token [B, L, D], or None."""
  if mask is not None and mask.shape != tokens.shape[:2]:
    raise InputError(
      f'mask must be [batch, length] = {tokens.shape[:2]}, one value a token, '
      f'got {mask.shape}'
    )


def check_segments(
  segments: jax.Array, tokens: jax.Array, *, alone: bool = True
) -> None:
  """Raises InputError unless segments [B, L] fit tokens [B, L, D].

  Args:
    segments: As `MultiHeadAttention` takes them.
    tokens: What they are of.
    alone: Whether there is neither another sequence nor a decoding state.
  """
  if segments.shape != tokens.shape[:2]:
    raise InputError(
      f'segments must be [batch, length] = {tokens.shape[:2]}, one number a '
      f'token, got {segments.shape}'
    )
  if not alone:
    raise InputError(
      'segments tell the texts of one sequence apart: attention to another '
      'sequence (context) and decoding (max_length, state) have none'
    )


class MultiHeadAttention(nn.Module):
  """Attention between projections of tokens (Vaswani et al., 2017, sec. 3.2.2).

  https://arxiv.org/abs/1706.03762. Parameters are those of
  `nn.MultiHeadDotProductAttention`: query, key and value [D, H, D / H], out [H,
  D / H, D], with biases. Unlike it, this module hands its decoding state to the
  caller, and knows rotary positions.

  One compact method serves training and decoding, so that variables which an
  `attention_fn` makes (random projections) are the same ones in both.

  Attributes:
    num_heads: H, a divisor of the tokens' width.
    attention_fn: Attention like `nn.dot_product_attention`.
    dropout_rate: Dropout on attention weights.
    rotary: Whether queries and keys are rotated by their positions.
    key_bias: Whether keys have a bias. It adds the same to all scores of a
      query, which a softmax does not see.
    kernel_init: Initial kernels.
    out_kernel_init: That of the output; None means `kernel_init`.
    dtype: Type of the computation; None infers it from input and parameters.
    param_dtype: Type of the parameters.
  """

  num_heads: int
  _: dataclasses.KW_ONLY
  attention_fn: signature.AttentionFn = attention.Softmax()
  dropout_rate: float = 0.0
  rotary: bool = False
  key_bias: bool = True
  kernel_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)
  out_kernel_init: Callable[..., jax.Array] | None = None
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    max_length: int | None = None,
    state: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Attends; the three ways differ in `max_length` and `state`.

    Args:
      tokens: [B, L, D]. With `state`, the next token alone, [B, 1, D].
      context: What keys and values come from, [B, S, D]; None means `tokens`.
        Not needed with `state`, which remembers it.
      train: Whether to drop weights; draws from the rngs 'dropout'.
      bias: Added to scores, [H, L, S]; not to those of decoding.
      mask: 0 for keys that are padding, [B, L] or, with `context`, [B, S].
        Ignored with `state`, which remembers it.
      segments: [B, L], integers: a token sees those alone whose number is its
        own. Not for another sequence, nor for decoding.
      positions: Places of the tokens, [B, L], for rotary attention.
      max_length: Begins decoding: `tokens` is a prompt, and the state returned
        has room for this many positions. Ignored for `context`.
      state: Goes on decoding from this state.

    Returns:
      (output [B, L, D], decoding state); the state is () where neither
      `max_length` nor `state` is given.

    Raises:
      InputError: The width is no multiple of `num_heads`, `mask` or `segments`
        have another shape, segments come with `context`, `max_length` or
        `state`, `attention_fn` cannot decode, the prompt is longer than
        `max_length`, or rotary attention has a `context` or no `positions`.
    """
    dim = tokens.shape[-1]
    if self.num_heads < 1 or dim % self.num_heads:
      raise InputError(
        f'hidden_dim must be a multiple of num_heads, got hidden_dim={dim}, '
        f'{self.num_heads=}'
      )
    if segments is not None:
      others = (context, state, max_length)
      check_segments(segments, tokens, alone=all(x is None for x in others))
    attention_fn: Any = self.attention_fn  # To decode it is more than a call.
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    project = functools.partial(
      nn.DenseGeneral,
      (self.num_heads, dim // self.num_heads),
      kernel_init=self.kernel_init,
      **types,
    )

    query = project(name='query')(tokens)  # [B, L, H, D / H]
    if isinstance(state, CrossState):
      key, value, mask = state
    else:
      source = tokens if context is None else context
      check_mask(mask, source)
      key = project(use_bias=self.key_bias, name='key')(source)
      value = project(name='value')(source)
    if self.rotary:
      if context is not None or isinstance(state, CrossState):
        raise InputError(
          'rotary positions are places in one sequence: attention to another '
          'one (context) takes rotary=False'
        )
      if positions is None:
        raise InputError(
          'rotary attention needs positions [B, L], the places of its tokens'
        )
      query, key = (
        sequence_positions.rotate(x, positions) for x in (query, key)
      )

    if context is not None or isinstance(state, CrossState):
      seen = None if mask is None else (mask > 0)[:, None, None, :]
      output = self._attend(query, key, value, bias, seen, train=train)
      if state is None and max_length is not None:
        if mask is None:
          mask = jnp.ones(key.shape[:2], bool)
        state = CrossState(key, value, mask > 0)
    elif state is not None:
      output, state = attention_fn.step(state, query, key, value)
    elif max_length is not None:
      signature.check_decodes(attention_fn)
      state = attention_fn.init_state(
        batch_size=query.shape[0],
        max_length=max_length,
        num_heads=self.num_heads,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        dtype=key.dtype,
      )
      output, state = attention_fn.prefill(state, query, key, value, mask=mask)
    else:
      if mask is not None:
        mask = (mask > 0)[:, None, None, :]
      if segments is not None:
        alike = (segments[:, :, None] == segments[:, None])[:, None]
        mask = alike if mask is None else mask & alike
      output = self._attend(query, key, value, bias, mask, train=train)

    output = nn.DenseGeneral(
      dim,
      axis=(-2, -1),
      kernel_init=self.out_kernel_init or self.kernel_init,
      name='out',
      **types,
    )(output)
    return output, () if state is None else state

  def _attend(self, query, key, value, bias, mask, *, train):
    settings = {}
    if self.dropout_rate > 0 and train:
      settings = dict(
        dropout_rng=self.make_rng('dropout'),
        dropout_rate=self.dropout_rate,
        broadcast_dropout=False,
      )
    if bias is not None:
      settings['bias'] = bias
    if mask is not None:
      settings['mask'] = mask
    return signature.call(
      self.attention_fn,
      query,
      key,
      value,
      module=self,
      deterministic=not train,
      dtype=self.dtype,
      **settings,
    )
