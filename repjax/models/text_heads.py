"""Device code: encoders of text with a head: masked tokens, classes."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.models import transformer
from repjax.types import check_choice

# What `MaskedLM` has beside its encoder.
OF_MASKED_LM = ('transform', 'transform_norm', 'head_bias')


class MaskedLM(transformer.Encoder):
  """An encoder that predicts its tokens (https://arxiv.org/abs/1810.04805)."""

  def setup(self):
    super().setup()
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.transform = nn.Dense(
      self.hidden_dim, kernel_init=self.kernel_init, **types
    )
    self.transform_norm = nn.LayerNorm(self.layer_norm_epsilon, **types)
    self.head_bias = self.param(
      'head_bias', nn.initializers.zeros, (self.vocab_size,), self.param_dtype
    )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
  ) -> jax.Array:
    """Arguments of `transformer.Encoder`; logits [B, L, vocab_size] float32."""
    features = super().__call__(
      tokens, train=train, mask=mask, token_types=token_types
    )
    features = activations.by_name(self.activation)(self.transform(features))
    logits = self.tied_logits(self.transform_norm(features))
    return logits + self.head_bias[None, None]


class Classifier(transformer.Encoder):
  """An encoder with a head over one vector a text.

  Attributes:
    num_classes: Number of logits.
    pool: 'first' reads the first token (BERT's and RoBERTa's), 'mean' the mean
      of the real ones.
    pooler: Whether a dense layer with tanh comes before the head, as in BERT
      and RoBERTa.
  """

  _: dataclasses.KW_ONLY
  num_classes: int
  pool: Literal['first', 'mean'] = 'first'
  pooler: bool = True

  def setup(self):
    super().setup()
    check_choice('pool', self.pool, ('first', 'mean'))
    types = dict(kernel_init=self.kernel_init, param_dtype=self.param_dtype)
    if self.pooler:
      self.pooling = nn.Dense(self.hidden_dim, dtype=self.dtype, **types)
    self.dropout = nn.Dropout(self.dropout_rate)
    self.head = nn.Dense(self.num_classes, dtype=jnp.float32, **types)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
  ) -> jax.Array:
    """Arguments of `transformer.Encoder`; logits [B, num_classes] float32."""
    features = super().__call__(
      tokens, train=train, mask=mask, token_types=token_types
    )
    if self.pool == 'first':
      pooled = features[:, 0]
    else:
      real = jnp.ones(tokens.shape) if mask is None else mask > 0
      real = real[..., None].astype(features.dtype)
      # Padding is cut out, since what stands there need not be finite.
      total = jnp.where(real > 0, features, 0).sum(1)
      pooled = total / jnp.maximum(real.sum(1), 1)
    if self.pooler:
      pooled = jnp.tanh(self.pooling(pooled))
    return self.head(self.dropout(pooled, deterministic=not train))
