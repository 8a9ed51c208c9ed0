"""Device code: T5, an encoder-decoder whose positions are distances.

Raffel et al., 'Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer', JMLR 2020 (https://arxiv.org/abs/1910.10683), and the
version 1.1 that FLAN-T5 is trained from, with gated MLPs (Shazeer, 'GLU
Variants Improve Transformer', 2020, https://arxiv.org/abs/2002.05202) and
logits of their own. `repjax.weights.t5_weights` loads published weights.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers.attention import multi_head
from repjax.layers.positions import sequence_positions
from repjax.models import t5_block
from repjax.models import t5_stack
from repjax.types import InputError
from repjax.types import check_range

# Sizes of version 1.1.
SIZES: Mapping[str, Mapping[str, int]] = {
  'small': dict(hidden_dim=512, mlp_dim=1024, num_heads=6, num_layers=8),
  'base': dict(hidden_dim=768, mlp_dim=2048, num_heads=12, num_layers=12),
  'large': dict(hidden_dim=1024, mlp_dim=2816, num_heads=16, num_layers=24),
}


class State(NamedTuple):
  """What a decoder remembers between two steps.

  Attributes:
    caches: Keys and values of each block, with room for M tokens.
    sources: What each block sees of the encoder.
    source_mask: Which tokens of the source are real, bool [B, 1, 1, S].
    real: Which places hold a real token, bool [B, M].
    place: Where the next token goes, int32.
  """

  caches: tuple[t5_block.Cache, ...]
  sources: tuple[t5_block.Cache, ...]
  source_mask: jax.Array
  real: jax.Array
  place: jax.Array


class T5(nn.Module):
  """One sequence from another.

  It is called like `transformer.EncoderDecoder`, and decodes like it. Several
  texts in a row are told apart by `segments`, each of which has its own places.

  Attributes:
    vocab_size: Number of tokens.
    config: Of all layers.
    num_layers: Blocks of the encoder.
    num_decoder_layers: Blocks of the decoder; None means `num_layers`.
    tied: Whether logits are products with the embedding, as in version 1.0.
    scaled: Whether what logits are made of is divided by sqrt(D) (1.0).
    num_buckets: Of distances.
    max_distance: From which on all are alike.
    num_positions: Longest text where tokens have learned places besides their
      distances, which T5 has not: small models find 'the third' far sooner
      with them. 0 for none.
  """

  vocab_size: int
  _: dataclasses.KW_ONLY
  config: t5_block.LayerConfig
  num_layers: int
  num_decoder_layers: int | None = None
  tied: bool = False
  scaled: bool = False
  num_buckets: int = 32
  max_distance: int = 128
  num_positions: int = 0

  def setup(self):
    check_range('[2, inf)', vocab_size=self.vocab_size)
    check_range('[0, inf)', num_positions=self.num_positions)
    config = self.config
    self.token_embedding = nn.Embed(
      self.vocab_size,
      config.hidden_dim,
      embedding_init=nn.initializers.normal(1.0),
      param_dtype=config.param_dtype,
    )
    if self.num_positions:
      self.position_embedding = nn.Embed(
        self.num_positions,
        config.hidden_dim,
        embedding_init=nn.initializers.normal(1.0),
        param_dtype=config.param_dtype,
      )

    def stack(num_layers, *, decodes):
      return t5_stack.Stack(
        config,
        num_layers,
        decodes=decodes,
        num_buckets=self.num_buckets,
        max_distance=self.max_distance,
      )

    self.encoder = stack(self.num_layers, decodes=False)
    layers = self.num_decoder_layers
    self.decoder = stack(
      self.num_layers if layers is None else layers, decodes=True
    )
    if not self.tied:
      self.head = nn.Dense(
        self.vocab_size,
        use_bias=False,
        kernel_init=nn.initializers.normal(config.hidden_dim**-0.5),
        dtype=jnp.float32,
        param_dtype=config.param_dtype,
      )

  def __call__(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    train: bool,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    source_segments: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of the token after each token of the target.

    Args:
      tokens: Target, [B, L], begun by the start token.
      source: [B, S].
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: [B, L], 0 for padding; padding behind a text needs none.
      source_mask: [B, S], 0 for padding; None if all tokens are real.
      segments: [B, L], integers: which of several texts a token is of, 0 for
        padding; tokens of other ones see nothing of it, in the source neither.
      source_segments: [B, S]; both or none.

    Returns:
      [B, L, vocab_size] float32.

    Raises:
      InputError: A mask or segments have not one value a token, or one side
        alone has segments.
    """
    if (segments is None) != (source_segments is None):
      raise InputError(
        'packed texts need segments and source_segments, not one of them'
      )
    features = self.encode(
      source,
      train=train,
      source_mask=source_mask,
      source_segments=source_segments,
    )
    return self.decode(
      tokens,
      features,
      train=train,
      mask=mask,
      source_mask=source_mask,
      segments=segments,
      source_segments=source_segments,
    )

  def encode(
    self,
    source: jax.Array,
    *,
    train: bool,
    source_mask: jax.Array | None = None,
    source_segments: jax.Array | None = None,
  ) -> jax.Array:
    """Features of the source, [B, S, D]."""
    mask = t5_stack.seen(source, source_mask, source_segments, source_segments)
    if source_segments is None:
      self._check_length(source.shape[1])
    places = _places(source, source_segments, source_mask)
    embedded = self._embed(source, places)
    return self.encoder(embedded, train=train, mask=mask)[0]

  def decode(
    self,
    tokens: jax.Array,
    features: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    source_segments: jax.Array | None = None,
  ) -> jax.Array:
    """Logits, from features of the source [B, S, D] (`encode`); see `T5`.

    With `segments` alone all texts of a row see the whole source.
    """
    own = t5_stack.seen(tokens, mask, segments, segments)
    crossing = t5_stack.seen(features, source_mask, segments, source_segments)
    if segments is None:
      self._check_length(tokens.shape[1])
    features, _ = self.decoder(
      self._embed(tokens, _places(tokens, segments, mask)),
      self.decoder.look(features),
      train=train,
      mask=own,
      source_mask=crossing,
    )
    return self._logits(features)

  @nn.nowrap
  def check_prompt(self, mask: jax.Array | None) -> None:
    """Refuses prompts with padding behind their text; see `prefill`.

    Args:
      mask: [B, L]; of one that is traced nothing is known.
    """
    known = mask is not None and not isinstance(mask, jax.core.Tracer)
    if known and not np.asarray(mask)[:, -1].all():
      raise InputError(
        'T5 goes on behind the last place: padding of a prompt stands in front '
        'of its text'
      )

  def prefill(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    max_length: int,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Reads the source and the beginning of the target.

    Args:
      tokens: [B, L], at least the start token.
      source: [B, S].
      max_length: Room for the target.
      mask: [B, L], 0 for padding, in front of the text.
      source_mask: [B, S], 0 for padding.

    Returns:
      (logits of the token that comes next [B, vocab_size], state).

    Raises:
      InputError: There is no room for it, there is padding behind a text, or
        a mask has not one value a token.
    """
    multi_head.check_mask(mask, tokens)
    self.check_prompt(mask)
    batch, length = tokens.shape
    if length > max_length:
      raise InputError(
        f'a prompt of {length} tokens needs max_length >= {length}; got '
        f'{max_length=}'
      )
    self._check_length(max_length)
    features = self.encode(source, train=False, source_mask=source_mask)
    sources, config = self.decoder.look(features), self.config
    shape = batch, max_length, config.num_heads, config.head_dim
    empty = jnp.zeros(shape, features.dtype)
    begun = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
    if source_mask is None:
      source_mask = jnp.ones(source.shape)
    seen = t5_stack.seen(source, source_mask)
    assert seen is not None  # There is a mask.
    state = State(
      (t5_block.Cache(empty, empty),) * len(sources),
      sources,
      seen,
      jnp.pad(begun, ((0, 0), (0, max_length - length))),
      jnp.int32(0),
    )
    return self._go_on(state, tokens, sequence_positions.from_mask(begun))

  def step(self, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
    """Reads one more token a row of the target, [B]; see `prefill`.

    Without room it raises an InputError; logits are NaN where that is traced.
    """
    at, room = state.place, state.real.shape[1]
    if not isinstance(at, jax.core.Tracer) and at >= room:
      raise InputError(f'begin with a larger max_length: all {room} are there')
    real = state.real.at[:, at].set(True)
    places = sequence_positions.from_mask(real)[:, -1:]
    state = state._replace(real=real)
    logits, state = self._go_on(state, tokens[:, None], places)
    return jnp.where(at < room, logits, jnp.nan), state

  def _go_on(self, state, tokens, places):
    features, caches = self.decoder(
      self._embed(tokens, places),
      state.sources,
      train=False,
      mask=state.real[:, None, None],
      source_mask=state.source_mask,
      caches=state.caches,
      place=state.place,
    )
    state = state._replace(caches=caches, place=state.place + tokens.shape[1])
    return self._logits(features[:, -1]), state

  def _check_length(self, length):
    if self.num_positions and length > self.num_positions:
      raise InputError(
        f'{length} tokens are more than num_positions={self.num_positions}: '
        'shorten the texts (or max_length), or raise it'
      )

  def _embed(self, tokens, places):
    embedded = self.token_embedding(tokens)
    if self.num_positions:
      embedded += self.position_embedding(places)
    dtype = self.config.dtype
    return embedded if dtype is None else embedded.astype(dtype)

  def _logits(self, features):
    features = features.astype(jnp.float32)
    if self.scaled:
      features *= self.config.hidden_dim**-0.5
    return (
      self.token_embedding.attend(features)
      if self.tied
      else self.head(features)
    )


def _places(tokens, segments, mask):
  """Places of tokens [B, L] in the text that they are of."""
  if segments is None and mask is not None:
    return sequence_positions.from_mask(mask)
  if segments is None:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return sequence_positions.from_segments(segments)
