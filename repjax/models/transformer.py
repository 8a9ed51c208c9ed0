"""Device code: transformers over tokens: encoder, language model, both.

Vaswani et al., 'Attention Is All You Need', NeurIPS 2017,
https://arxiv.org/abs/1706.03762. What later models changed are settings:
`BERT`, `ROBERTA`, `GPT2` and `BART` hold theirs.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.layers.attention import signature
from repjax.models import stack

# The geometry of published base models: `DecoderLM(vocab_size, **GPT2)`,
# `text_heads.MaskedLM(vocab_size, **BERT)`, `EncoderDecoder(vocab_size,
# **BART)`. Their vocabularies: GPT-2 50,257, BERT 30,522, RoBERTa and BART
# 50,265.
GPT2: Mapping[str, Any] = dict(
  num_positions=1024,
  hidden_dim=768,
  mlp_dim=3072,
  num_heads=12,
  num_layers=12,
  layer_norm_epsilon=1e-5,
)
BERT: Mapping[str, Any] = dict(
  GPT2,
  num_positions=512,
  num_token_types=2,
  norm='post',
  embedding_norm=True,
  activation='gelu_exact',
  layer_norm_epsilon=1e-12,
)
ROBERTA: Mapping[str, Any] = dict(
  BERT, position_offset=2, num_token_types=1, layer_norm_epsilon=1e-5
)
BART: Mapping[str, Any] = dict(
  GPT2,
  position_offset=2,
  num_layers=6,
  norm='post',
  embedding_norm=True,
  activation='gelu_exact',
)


class Encoder(stack.TokenModel):
  """Features of every token, seen from both sides (BERT, RoBERTa)."""

  def setup(self):
    super().setup()
    self.encoder = self._stack()

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
  ) -> jax.Array:
    """Features.

    Args:
      tokens: [B, L], integers.
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: [B, L], 0 for padding; None if all tokens are real.
      token_types: [B, L] in [0, num_token_types); None means 0.

    Returns:
      [B, L, D]; what stands at padding means nothing.
    """
    return self.encoder(
      self._embed(tokens), train=train, mask=mask, token_types=token_types
    )[0]


class DecoderLM(stack.TokenModel):
  """A language model: the next token from those before it (GPT-2).

  `prefill` and `step` give the logits of `__call__` one position at a time;
  `decoding.generate` is the loop around them.

  Attributes:
    attention_fn: Causal, such as `attention.Softmax(causal=True)`.
    tied: Whether logits come from the embedding of tokens, without a bias, or
      from a matrix of their own.
  """

  _: dataclasses.KW_ONLY
  attention_fn: signature.AttentionFn = attention.Softmax(causal=True)
  tied: bool = True

  def setup(self):
    super().setup()
    signature.check_causal(self.attention_fn)
    self.decoder = self._stack()
    if not self.tied:
      self.head = nn.Dense(
        self.vocab_size,
        use_bias=False,
        kernel_init=self.kernel_init,
        dtype=jnp.float32,
        param_dtype=self.param_dtype,
      )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of the token after each token.

    Args:
      tokens: [B, L], integers.
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: [B, L], 0 for padding. Padding after a text needs none: nothing
        before it sees it.
      segments: [B, L], integers: which of several texts a token is of, 0 for
        padding (`data.text.packing`). Each has learned places of its own.

    Returns:
      [B, L, vocab_size] float32.
    """
    features, _ = self.decoder(
      self._embed(tokens), train=train, mask=mask, segments=segments
    )
    return self._logits(features)

  def prefill(
    self,
    tokens: jax.Array,
    *,
    max_length: int,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, stack.StackState]:
    """Reads a whole prompt.

    Args:
      tokens: [B, L], integers.
      max_length: Room for the prompt, padding included, and what follows.
      mask: [B, L], 0 for padding, which may lie on either side.

    Returns:
      (logits of the token that comes next [B, vocab_size], state).

    Raises:
      InputError: The prompt is longer than `max_length`, or `max_length` longer
        than the learned positions.
    """
    features, state = self.decoder(
      self._embed(tokens), train=False, mask=mask, max_length=max_length
    )
    return self._logits(_last(features, mask)), state

  def step(
    self, state: stack.StackState, tokens: jax.Array
  ) -> tuple[jax.Array, stack.StackState]:
    """Reads one more token a row, [B]; see `prefill`."""
    features, state = self.decoder(
      self._embed(tokens[:, None]), train=False, state=state
    )
    return self._logits(features[:, 0]), state

  def _logits(self, features):
    return self.tied_logits(features) if self.tied else self.head(features)


class EncoderDecoder(stack.TokenModel):
  """One sequence from another (Vaswani et al., 2017; BART).

  BART: https://arxiv.org/abs/1910.13461. Both sides and the logits share one
  embedding of tokens.

  Attributes:
    num_decoder_layers: Blocks of the decoder; None means `num_layers`.
    attention_fn: Self-attention of the encoder.
    decoder_attention_fn: Self-attention of the decoder; causal.
    cross_attention_fn: Attention of the decoder to the encoder's features.
  """

  _: dataclasses.KW_ONLY
  num_decoder_layers: int | None = None
  decoder_attention_fn: signature.AttentionFn = attention.Softmax(causal=True)
  cross_attention_fn: signature.AttentionFn = attention.Softmax()

  def setup(self):
    super().setup()
    signature.check_causal(self.decoder_attention_fn)
    self.encoder = self._stack()
    self.decoder = self._stack(
      self.num_decoder_layers,
      attention_fn=self.decoder_attention_fn,
      cross_attention_fn=self.cross_attention_fn,
    )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    train: bool,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of the token after each token of the target.

    Args:
      tokens: Target, [B, L], integers.
      source: [B, S], integers.
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: [B, L], 0 for padding; see `DecoderLM`.
      source_mask: [B, S], 0 for padding; None if all tokens are real.

    Returns:
      [B, L, vocab_size] float32.
    """
    context = self.encode(source, train=train, source_mask=source_mask)
    features, _ = self.decoder(
      self._embed(tokens),
      context,
      train=train,
      mask=mask,
      context_mask=source_mask,
    )
    return self.tied_logits(features)

  def encode(
    self,
    source: jax.Array,
    *,
    train: bool,
    source_mask: jax.Array | None = None,
  ) -> jax.Array:
    """Features of the source, [B, S, D]."""
    return self.encoder(self._embed(source), train=train, mask=source_mask)[0]

  def prefill(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    max_length: int,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
  ) -> tuple[jax.Array, stack.StackState]:
    """Reads the source and the beginning of the target; see `DecoderLM`."""
    features, state = self.decoder(
      self._embed(tokens),
      self.encode(source, train=False, source_mask=source_mask),
      train=False,
      mask=mask,
      context_mask=source_mask,
      max_length=max_length,
    )
    return self.tied_logits(_last(features, mask)), state

  def step(
    self, state: stack.StackState, tokens: jax.Array
  ) -> tuple[jax.Array, stack.StackState]:
    """Reads one more token a row of the target, [B]; see `DecoderLM`."""
    features, state = self.decoder(
      self._embed(tokens[:, None]), train=False, state=state
    )
    return self.tied_logits(features[:, 0]), state


def _last(features, mask):
  """Features [B, D] of the last real token of [B, L, D]."""
  if mask is None:
    return features[:, -1]
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1] > 0, axis=1)
  return jnp.take_along_axis(features, last[:, None, None], axis=1)[:, 0]
