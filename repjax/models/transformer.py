"""Device code: transformers over tokens: encoder, language model, both.

Vaswani et al., 'Attention Is All You Need', NeurIPS 2017. What later models
changed are settings: `BERT`, `ROBERTA`, `GPT2` and `BART` hold theirs.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.models import transformer_block
from repjax.types import InputError

# Published settings, with the sizes of the base models: `DecoderLM(**GPT2)`,
# `text_heads.MaskedLM(**BERT)`, `EncoderDecoder(**BART)`.
GPT2: Mapping[str, Any] = dict(
  vocab_size=50_257,
  num_positions=1024,
  hidden_dim=768,
  mlp_dim=3072,
  num_heads=12,
  num_layers=12,
  layer_norm_epsilon=1e-5,
)
BERT: Mapping[str, Any] = dict(
  GPT2,
  vocab_size=30_522,
  num_positions=512,
  num_token_types=2,
  norm='post',
  embedding_norm=True,
  activation='gelu_exact',
  layer_norm_epsilon=1e-12,
)
ROBERTA: Mapping[str, Any] = dict(
  BERT,
  vocab_size=50_265,
  position_offset=2,
  num_token_types=1,
  layer_norm_epsilon=1e-5,
)
BART: Mapping[str, Any] = dict(
  GPT2,
  vocab_size=50_265,
  position_offset=2,
  num_layers=6,
  norm='post',
  embedding_norm=True,
  activation='gelu_exact',
)


class ModelFields(transformer_block.StackFields):
  """Fields of all models here, besides those of blocks and stacks.

  Attributes:
    vocab_size: Number of tokens.
    hidden_dim: D, width of tokens.
    scale_embedding: Whether embedded tokens are multiplied by sqrt(D)
      (Vaswani et al., sec. 3.4).
    embedding_init: Initial embedding of tokens.
  """

  vocab_size: int
  _: dataclasses.KW_ONLY
  hidden_dim: int
  scale_embedding: bool = False
  embedding_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)

  def setup(self):
    for field, choices in (
      ('norm', ('pre', 'post')),
      ('position', ('learned', 'sinusoidal', 'rotary')),
    ):
      if getattr(self, field) not in choices:
        raise InputError(
          f'{field} must be one of {choices}, got {getattr(self, field)!r}'
        )
    # Without dtype: in float32 the logits of the tied embedding stay exact.
    self.token_embedding = nn.Embed(
      self.vocab_size,
      self.hidden_dim,
      embedding_init=self.embedding_init,
      param_dtype=self.param_dtype,
    )

  def _stack(self, **changes):
    fields = self.fields(transformer_block.StackFields)
    return transformer_block.Stack(**{**fields, **changes})

  def _embed(self, tokens):
    """[B, L] -> [B, L, D]."""
    embedded = self.token_embedding(tokens)
    if self.scale_embedding:
      embedded = embedded * self.hidden_dim**0.5
    return embedded if self.dtype is None else embedded.astype(self.dtype)

  def tied_logits(self, features: jax.Array) -> jax.Array:
    """Products with the embedding, [..., D] -> [..., vocab_size] float32."""
    return self.token_embedding.attend(features.astype(jnp.float32))


class Encoder(ModelFields):
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


class DecoderLM(ModelFields):
  """A language model: the next token from those before it (GPT-2).

  `prefill` and `step` give the logits of `__call__` one position at a time;
  `decoding.generate` is the loop around them.

  Attributes:
    attention_fn: Causal, such as `attention.Softmax(causal=True)`.
    tied: Whether logits come from the embedding of tokens, without a bias, or
      from a matrix of their own.
  """

  _: dataclasses.KW_ONLY
  attention_fn: Callable[..., jax.Array] = attention.Softmax(causal=True)
  tied: bool = True

  def setup(self):
    super().setup()
    _check_causal(self.attention_fn)
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
  ) -> jax.Array:
    """Logits of the token after each token.

    Args:
      tokens: [B, L], integers.
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: [B, L], 0 for padding. Padding after a text needs none: nothing
        before it sees it.

    Returns:
      [B, L, vocab_size] float32.
    """
    features, _ = self.decoder(self._embed(tokens), train=train, mask=mask)
    return self._logits(features)

  def prefill(
    self,
    tokens: jax.Array,
    *,
    max_length: int,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, transformer_block.StackState]:
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
    self, state: transformer_block.StackState, tokens: jax.Array
  ) -> tuple[jax.Array, transformer_block.StackState]:
    """Reads one more token a row, [B]; see `prefill`."""
    features, state = self.decoder(
      self._embed(tokens[:, None]), train=False, state=state
    )
    return self._logits(features[:, 0]), state

  def _logits(self, features):
    return self.tied_logits(features) if self.tied else self.head(features)


class EncoderDecoder(ModelFields):
  """One sequence from another (Vaswani et al., 2017; BART).

  Both sides and the logits share one embedding of tokens.

  Attributes:
    num_decoder_layers: Blocks of the decoder; None means `num_layers`.
    attention_fn: Self-attention of the encoder.
    decoder_attention_fn: Self-attention of the decoder; causal.
    cross_attention_fn: Attention of the decoder to the encoder's features.
  """

  _: dataclasses.KW_ONLY
  num_decoder_layers: int | None = None
  decoder_attention_fn: Callable[..., jax.Array] = attention.Softmax(
    causal=True
  )
  cross_attention_fn: Callable[..., jax.Array] = attention.Softmax()

  def setup(self):
    super().setup()
    _check_causal(self.decoder_attention_fn)
    self.encoder = self._stack(cross_attention_fn=None)
    layers = self.num_decoder_layers
    self.decoder = self._stack(
      attention_fn=self.decoder_attention_fn,
      num_layers=self.num_layers if layers is None else layers,
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
  ) -> tuple[jax.Array, transformer_block.StackState]:
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
    self, state: transformer_block.StackState, tokens: jax.Array
  ) -> tuple[jax.Array, transformer_block.StackState]:
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


def _check_causal(attention_fn):
  if not getattr(attention_fn, 'causal', False):
    raise InputError(
      'a decoder needs causal self-attention, such as layers.attention.'
      f'Softmax(causal=True); got {attention_fn}'
    )
