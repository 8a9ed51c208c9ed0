"""Device code: the layers of T5 (Raffel et al., JMLR 2020).

https://arxiv.org/abs/1910.10683. No layer has a bias; norms divide by root mean
squares; scores are not divided by the root of the width, which initial queries
make up for.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.layers import attention
from repjax.layers.attention import signature
from repjax.types import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
  """What the layers of T5 are.

  Attributes:
    hidden_dim: D.
    head_dim: Width of a head; heads together need not be as wide as D.
    mlp_dim: Width inside the MLPs.
    num_heads: H.
    activation: Of the MLPs.
    gated: Whether an MLP multiplies its activated half with another one.
    dropout_rate: Of branches, weights, hidden units and embedded tokens.
    layer_norm_epsilon: Added to mean squares.
    attention_fn: Attention without a causal mask of its own, for the scores of
      scaled queries, like `attention.Softmax()`.
    remat: Whether blocks are computed again in the backward pass.
    dtype: Type of the computation; None infers it from input and parameters.
    param_dtype: Type of the parameters.
  """

  hidden_dim: int
  head_dim: int
  mlp_dim: int
  num_heads: int
  activation: str = 'gelu_tanh'
  gated: bool = True
  dropout_rate: float = 0.0
  layer_norm_epsilon: float = 1e-6
  attention_fn: signature.AttentionFn = attention.softmax_attention
  remat: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    check_range(
      '[1, inf)',
      hidden_dim=self.hidden_dim,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
    )
    check_range('[0, 1)', dropout_rate=self.dropout_rate)

  @property
  def types(self) -> dict[str, Any]:
    """The fields of linen's layers that are types."""
    return dict(dtype=self.dtype, param_dtype=self.param_dtype)

  def norm(self, name: str) -> nn.RMSNorm:
    """A norm by root mean squares."""
    return nn.RMSNorm(self.layer_norm_epsilon, name=name, **self.types)

  def drop(self, name: str, *, train: bool) -> nn.Dropout:
    """Dropout."""
    return nn.Dropout(self.dropout_rate, deterministic=not train, name=name)


class Cache(NamedTuple):
  """Keys and values of a decoder's layer, [B, M, H, head_dim] each."""

  key: jax.Array
  value: jax.Array


class Attention(nn.Module):
  """Multi-head attention with numbers added to its scores."""

  config: LayerConfig

  def setup(self):
    config = self.config
    inner = config.num_heads * config.head_dim

    def project(fan_in):
      return nn.DenseGeneral(
        (config.num_heads, config.head_dim),
        use_bias=False,
        kernel_init=nn.initializers.normal(fan_in**-0.5),
        **config.types,
      )

    # What scores are not divided by.
    self.query = project(config.hidden_dim * config.head_dim)
    self.key, self.value = (project(config.hidden_dim) for _ in range(2))
    self.out = nn.DenseGeneral(
      config.hidden_dim,
      axis=(-2, -1),
      use_bias=False,
      kernel_init=nn.initializers.normal(inner**-0.5),
      **config.types,
    )

  def keys(self, tokens: jax.Array) -> Cache:
    """Keys and values of tokens [B, S, D]."""
    return Cache(self.key(tokens), self.value(tokens))

  def __call__(
    self,
    tokens: jax.Array,
    context: Cache,
    *,
    train: bool,
    bias: jax.Array | None,
    mask: jax.Array | None,
  ) -> jax.Array:
    """Attends.

    Args:
      tokens: [B, L, D].
      context: What is looked at.
      train: Whether to drop weights; draws from the rngs 'dropout'.
      bias: Added to scores, [H, L, S].
      mask: Where a query may look; broadcast to [B, H, L, S].

    Returns:
      [B, L, D].
    """
    config = self.config
    settings: dict[str, Any] = {}
    if config.dropout_rate > 0 and train:
      settings = dict(
        dropout_rng=self.make_rng('dropout'),
        dropout_rate=config.dropout_rate,
        broadcast_dropout=False,
      )
    if bias is not None:
      settings['bias'] = bias[None]
    if mask is not None:
      settings['mask'] = mask
    return self.out(
      signature.call(
        config.attention_fn,
        self.query(tokens) * config.head_dim**0.5,
        *context,
        module=self,
        deterministic=not train,
        dtype=config.dtype,
        **settings,
      )
    )


class Mlp(nn.Module):
  """A gated MLP, or one of two layers."""

  config: LayerConfig

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """[B, L, D] -> [B, L, D]."""
    config = self.config

    def dense(name, width, fan_in):
      return nn.Dense(
        width,
        use_bias=False,
        kernel_init=nn.initializers.normal(fan_in**-0.5),
        name=name,
        **config.types,
      )

    hidden = dense('hidden', config.mlp_dim, config.hidden_dim)(tokens)
    hidden = activations.by_name(config.activation)(hidden)
    if config.gated:
      hidden *= dense('gate', config.mlp_dim, config.hidden_dim)(tokens)
    hidden = config.drop('dropout', train=train)(hidden)
    return dense('out', config.hidden_dim, config.mlp_dim)(hidden)


class Block(nn.Module):
  """One layer; that of a decoder also attends to the encoder."""

  config: LayerConfig
  crosses: bool = False

  def setup(self):
    config = self.config
    self.attention_norm = config.norm('attention_norm')
    self.attention = Attention(config)
    if self.crosses:
      self.cross_attention_norm = config.norm('cross_attention_norm')
      self.cross_attention = Attention(config)
    self.mlp_norm = config.norm('mlp_norm')
    self.mlp = Mlp(config)
    self.dropout = nn.Dropout(config.dropout_rate)

  def __call__(
    self,
    tokens: jax.Array,
    source: Cache | None = None,
    *,
    train: bool,
    bias: jax.Array,
    mask: jax.Array | None,
    source_mask: jax.Array | None = None,
    cache: Cache | None = None,
    place: jax.Array | int = 0,
  ) -> tuple[jax.Array, Cache]:
    """The layer.

    Args:
      tokens: [B, L, D].
      source: What the encoder is seen as, `look` of its features.
      train: Whether to apply dropout.
      bias: Of self-attention, [H, L, S].
      mask: Where a query may look in self-attention, to [B, H, L, S].
      source_mask: Where it may look in the encoder's features.
      cache: Of earlier tokens; those of `tokens` go to `place` and after.
      place: Where.

    Returns:
      (output [B, L, D], the cache, or keys and values of `tokens`).
    """

    def add(tokens, branch):
      return tokens + self.dropout(branch, deterministic=not train)

    normed = self.attention_norm(tokens)
    own = self.attention.keys(normed)
    if cache is not None:
      own = Cache(
        *(
          jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1)
          for old, new in zip(cache, own, strict=True)
        )
      )
    tokens = add(
      tokens,
      self.attention(normed, own, train=train, bias=bias, mask=mask),
    )
    if source is not None:
      branch = self.cross_attention(
        self.cross_attention_norm(tokens),
        source,
        train=train,
        bias=None,
        mask=source_mask,
      )
      tokens = add(tokens, branch)
    tokens = add(tokens, self.mlp(self.mlp_norm(tokens), train=train))
    self.sow('intermediates', 'output', tokens)
    return tokens, own

  def look(self, features: jax.Array) -> Cache:
    """Keys and values of the encoder's features, [B, S, D]."""
    return self.cross_attention.keys(features)
