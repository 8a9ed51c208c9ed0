"""Device code: Pyraformer, a transformer for forecasts over a pyramid.

Liu et al., 'Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time
Series Modeling and Forecasting', ICLR 2022.
https://openreview.net/forum?id=0EXmFzUn5I
"""

import functools
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import attention
from repjax.layers import pyramid as pyramids
from repjax.layers import pyramid_graph
from repjax.layers import series_embedding
from repjax.layers.attention import signature
from repjax.models import forecast
from repjax.types import InputError
from repjax.types import check_range


class Block(nn.Module):
  """Attention and a feed-forward network, each normalised behind its sum.

  Heads may be of any width: together they need not be as wide as a token.

  Attributes:
    num_heads: H.
    head_dim: Width of a head.
    mlp_dim: Width of the feed-forward network.
    attention_fn: Attention like `nn.dot_product_attention`.
    dropout_rate: Of attention weights, and of what is added to tokens.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  attention_fn: signature.AttentionFn
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """[B, Q, D] -> [B, Q, D].

    Args:
      tokens: What attends.
      context: What is attended to, [B, K, D]; the tokens themselves if None.
      train: Whether to drop.
      mask: Where a token may look, [Q, K].
    """
    context = tokens if context is None else context
    xavier = nn.initializers.xavier_uniform()

    def heads(x, name):
      return nn.DenseGeneral(
        (self.num_heads, self.head_dim),
        use_bias=False,
        kernel_init=xavier,
        name=name,
      )(x)

    def drop(x):
      return nn.Dropout(self.dropout_rate)(x, deterministic=not train)

    settings: dict[str, Any] = {}
    if self.dropout_rate > 0 and train:
      settings = dict(
        dropout_rng=self.make_rng('dropout'),
        dropout_rate=self.dropout_rate,
        broadcast_dropout=False,
      )
    if mask is not None:
      settings['mask'] = mask[None, None]
    seen = signature.call(
      self.attention_fn,
      heads(tokens, 'query'),
      heads(context, 'key'),
      heads(context, 'value'),
      module=self,
      deterministic=not train,
      **settings,
    )
    dim = tokens.shape[-1]
    seen = nn.DenseGeneral(dim, axis=(-2, -1), kernel_init=xavier, name='out')(
      seen
    )
    tokens = _norm('attention_norm')(tokens + drop(seen))
    hidden = nn.Dense(self.mlp_dim, name='up')(tokens)
    hidden = drop(nn.gelu(hidden, approximate=False))
    hidden = drop(nn.Dense(dim, name='down')(hidden))
    return _norm('mlp_norm')(tokens + hidden)


class Pyraformer(nn.Module):
  """Reads L rows of C numbers and forecasts the H rows behind them.

  Attributes:
    horizon: H.
    length: L.
    children: C of each coarser level of the graph.
    adjacent: A, nodes of its own scale that a node sees.
    leftover: Who is the parent of nodes that fill no group; see
      `pyramid_graph.Pyramid`.
    predictor: 'all_at_once' appends one token behind the last row, and maps it
      and its ancestors to all rows of the forecast (the published default);
      'decoder' has two layers of attention from the rows to come to the nodes
      (section 3.3).
    output: 'mean', or 'gaussian' for a mean and a standard deviation, as in the
      paper's single-step forecasts.
    hidden_dim: D.
    mlp_dim: Width of feed-forward networks.
    num_heads: Attention heads.
    head_dim: Width of a head.
    num_layers: N.
    bottleneck: Width of the convolutions that make coarse nodes.
    num_series: Series that have an embedding of their own; 0 for none.
    dropout_rate: Dropout, everywhere.
    attention_fn: Attention between the nodes in place of the pyramid's: exact
      or linear attention between all of them is a network of equal size.
    remat: Whether blocks are computed again in the backward pass.
  """

  horizon: int
  length: int
  children: tuple[int, ...] = (4, 4, 4)
  adjacent: int = 3
  leftover: Literal['last_parent', 'own_parent'] = 'last_parent'
  predictor: Literal['all_at_once', 'decoder'] = 'all_at_once'
  output: Literal['mean', 'gaussian'] = 'mean'
  hidden_dim: int = 512
  mlp_dim: int = 512
  num_heads: int = 4
  head_dim: int = 128
  num_layers: int = 4
  bottleneck: int = 128
  num_series: int = 0
  dropout_rate: float = 0.05
  attention_fn: signature.AttentionFn | None = None
  remat: bool = False

  @property
  def pyramid(self) -> pyramid_graph.Pyramid:
    """The graph of the encoder, with the token that is appended."""
    return pyramid_graph.Pyramid(
      length=self.length + (self.predictor == 'all_at_once'),
      children=self.children,
      adjacent=self.adjacent,
      leftover=self.leftover,
    )

  @nn.compact
  def __call__(
    self,
    series: jax.Array,
    covariates: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    entity: jax.Array | None = None,
    observed: jax.Array | None = None,
  ) -> forecast.Forecast:
    """Forecasts.

    Args:
      series: [B, L, C].
      covariates: What is known of past and future, [B, L + H, F].
      train: Whether to drop, and to use statistics of this batch.
      mask: [B], 1 for a real row.
      entity: Which series each row is of, int [B].
      observed: [B, L, C], 0 where a value is filled in: further inputs beside
        the values. None if nothing is ever missing.
    """
    self._check(series, covariates)
    num_channels = series.shape[-1]
    values = (
      series
      if observed is None
      else jnp.concatenate([series, observed.astype(series.dtype)], -1)
    )
    nodes = self._encode(values, covariates, entity, train=train, mask=mask)
    if self.predictor == 'all_at_once':
      features = nodes[:, self.pyramid.ancestors(self.length)]
      scales, dim = features.shape[1:]  # No -1: a batch may be empty.
      features = features.reshape(len(features), scales * dim)  # [B, S D]

      def head(name):
        flat = _head(self.horizon * num_channels, name)(features)
        return flat.reshape(-1, self.horizon, num_channels)

    else:
      future = self._decode(nodes, values, covariates, entity, train=train)

      def head(name):
        return _head(num_channels, name)(future)

    mean = head('mean')
    if self.output == 'mean':
      return forecast.Forecast(mean, None)
    return forecast.Forecast(mean, nn.softplus(head('deviation')) + 1e-4)

  def _encode(self, values, covariates, entity, *, train, mask):
    """Nodes [B, n, D] after all layers."""
    graph = self.pyramid
    extra = graph.length - self.length
    values = jnp.pad(values, ((0, 0), (0, extra), (0, 0)))
    tokens = self._embedding('embedding')(
      values, covariates[:, : graph.length], entity, train=train
    )
    nodes = pyramids.CoarseNodes(
      pyramid=graph, bottleneck=self.bottleneck, name='coarse'
    )(tokens, train=train, mask=mask)
    attention_fn = self.attention_fn or pyramids.Pyramidal(pyramid=graph)
    for i in range(self.num_layers):
      nodes = self._block(f'layer{i}', attention_fn, train=train)(nodes)
    return nodes

  def _decode(self, nodes, values, covariates, entity, *, train):
    """What is known of the rows to come, [B, H, D]."""
    zeros = jnp.zeros((len(values), self.horizon, values.shape[-1]))
    tokens = self._embedding('future')(
      zeros.astype(values.dtype),
      covariates[:, self.length :],
      entity,
      train=train,
    )
    exact = attention.Softmax()
    tokens = self._block('decoder0', exact, train=train)(tokens, nodes)
    past = jnp.ones((self.horizon, nodes.shape[1]), bool)
    causal = jnp.tril(jnp.ones((self.horizon,) * 2, bool))
    return self._block('decoder1', exact, train=train)(
      tokens,
      jnp.concatenate([nodes, tokens], 1),
      mask=jnp.concatenate([past, causal], 1),
    )

  def _embedding(self, name):
    return series_embedding.SeriesEmbedding(
      self.hidden_dim,
      num_series=self.num_series,
      dropout_rate=self.dropout_rate,
      name=name,
    )

  def _block(self, name, attention_fn, *, train):
    """(tokens, what a block sees besides) -> tokens."""

    def run(block, tokens, context=None, mask=None):
      return block(tokens, context, train=train, mask=mask)

    run = nn.remat(run) if self.remat else run
    block = Block(
      self.num_heads,
      self.head_dim,
      self.mlp_dim,
      attention_fn,
      dropout_rate=self.dropout_rate,
      name=name,
    )
    return functools.partial(run, block)

  def _check(self, series, covariates):
    check_range('[0, 1)', dropout_rate=self.dropout_rate)
    if self.predictor not in ('all_at_once', 'decoder') or (
      self.output not in ('mean', 'gaussian')
    ):
      raise InputError(
        "predictor is 'all_at_once' or 'decoder', output 'mean' or 'gaussian'; "
        f'got {self.predictor=}, {self.output=}'
      )
    if series.shape[1] != self.length or (
      covariates.shape[1] != self.length + self.horizon
    ):
      raise InputError(
        f'this model reads {self.length} rows and forecasts {self.horizon}; '
        f'got series {series.shape} and covariates {covariates.shape}'
      )


def _norm(name):
  return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


def _head(width, name):
  return nn.Dense(
    width,
    use_bias=False,
    kernel_init=nn.initializers.xavier_normal(),
    name=name,
  )
