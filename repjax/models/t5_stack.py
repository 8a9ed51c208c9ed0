"""Device code: a stack of T5's layers, which share what distances add.

Raffel et al., JMLR 2020 (https://arxiv.org/abs/1910.10683), section 2.1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers.attention import multi_head
from repjax.layers.positions import bucket_bias
from repjax.models import t5_block
from repjax.types import check_range


class Stack(nn.Module):
  """Blocks that share the numbers of distances.

  Attributes:
    config: Of the blocks.
    num_layers: L.
    decodes: Whether tokens see those before them alone, and an encoder.
    num_buckets: Of distances.
    max_distance: From which on all are alike.
  """

  config: t5_block.LayerConfig
  num_layers: int
  decodes: bool
  num_buckets: int = 32
  max_distance: int = 128

  def setup(self):
    config = self.config
    check_range('[1, 10000]', num_layers=self.num_layers)
    self.distances = bucket_bias.BucketBias(
      config.num_heads,
      both_sides=not self.decodes,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
      table_init=nn.initializers.normal(config.hidden_dim**-0.5),
      param_dtype=config.param_dtype,
    )
    self.block = [
      t5_block.Block(config, crosses=self.decodes)
      for _ in range(self.num_layers)
    ]
    self.norm = config.norm('norm')
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    tokens: jax.Array,
    sources: tuple[t5_block.Cache, ...] | None = None,
    *,
    train: bool,
    mask: jax.Array | None = None,
    source_mask: jax.Array | None = None,
    caches: tuple[t5_block.Cache, ...] | None = None,
    place: jax.Array | int = 0,
  ) -> tuple[jax.Array, tuple[t5_block.Cache, ...]]:
    """Features of embedded tokens.

    Args:
      tokens: [B, L, D].
      sources: What each block sees of the encoder, from `look`.
      train: Whether to apply dropout; it draws from the rngs 'dropout'.
      mask: Where a query may look, besides what decoding hides; broadcast to
        [B, H, L, S].
      source_mask: Where it may look in the encoder's features.
      caches: Of earlier tokens, with room for S; None for whole texts, S = L.
      place: Of the first of `tokens`.

    Returns:
      (features [B, L, D], caches).
    """
    length = tokens.shape[1]
    keys = length if caches is None else caches[0].key.shape[1]
    query_place, key_place = place + jnp.arange(length), jnp.arange(keys)
    bias = self.distances(query_place, key_place)
    if self.decodes:
      earlier = (key_place[None] <= query_place[:, None])[None, None]
      mask = earlier if mask is None else earlier & mask
    tokens = self.dropout(tokens, deterministic=not train)

    def run(layer, tokens, source, cache):
      return layer(
        tokens,
        source,
        train=train,
        bias=bias.astype(tokens.dtype),
        mask=mask,
        source_mask=source_mask,
        cache=cache,
        place=place,
      )

    # Nothing is trained with caches.
    run = nn.remat(run) if self.config.remat and caches is None else run
    left, none = [], (None,) * self.num_layers
    for layer, source, cache in zip(
      self.block, sources or none, caches or none, strict=True
    ):
      tokens, after = run(layer, tokens, source, cache)
      left.append(after)
    features = self.dropout(self.norm(tokens), deterministic=not train)
    return features, tuple(left)

  def look(self, features: jax.Array) -> tuple[t5_block.Cache, ...]:
    """What each block sees of the encoder's features, [B, S, D]."""
    return tuple(layer.look(features) for layer in self.block)


def seen(
  keys: jax.Array,
  mask: jax.Array | None,
  segments: jax.Array | None = None,
  key_segments: jax.Array | None = None,
) -> jax.Array | None:
  """Where queries of any head may look, for a `Stack`.

  Args:
    keys: What is looked at, [B, S, ...].
    mask: [B, S], 0 for padding; None if all is real.
    segments: Of queries, [B, L]; they see keys of their own segment alone.
    key_segments: [B, S]; without either of them all segments are seen.

  Returns:
    [B, 1, 1, S] or [B, 1, L, S]; None for everywhere.

  Raises:
    InputError: The mask or `key_segments` have not one value a key.
  """
  multi_head.check_mask(mask, keys)
  real = None if mask is None else (mask > 0)[:, None, None]
  if segments is None or key_segments is None:
    return real
  multi_head.check_segments(key_segments, keys)
  alike = (segments[:, :, None] == key_segments[:, None])[:, None]
  return alike if real is None else real & alike
