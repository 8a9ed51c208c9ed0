"""Device code: a transformer that reconstructs windows of a series.

Xu, Wu, Wang and Long, 'Anomaly Transformer: Time Series Anomaly Detection with
Association Discrepancy', ICLR 2022. https://arxiv.org/abs/2110.02642
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.layers import association
from repjax.layers.positions import sequence_positions
from repjax.types import check_range

# Kaiming's normal kernel for leaky rectifiers of slope .01. The authors' call
# means a slope of 0, whose variance is 1e-4 larger.
_EMBEDDING_INIT = nn.initializers.variance_scaling(
  2 / (1 + 0.01**2), 'fan_in', 'normal'
)


class Reconstruction(NamedTuple):
  """What the network makes of windows.

  Attributes:
    series: The windows again, [B, L, C].
    associations: Those of each layer.
  """

  series: jax.Array
  associations: tuple[association.Associations, ...]


class AnomalyTransformer(nn.Module):
  """Layers of anomaly attention between an embedding and a linear map.

  https://arxiv.org/abs/2110.02642, with the sizes of the authors' code.

  Attributes:
    hidden_dim: D, even and a multiple of `num_heads`.
    num_heads: H.
    num_layers: N.
    mlp_dim: Width inside of the MLPs.
    dropout_rate: Dropout after the embedding, after every branch, inside of
      MLPs and on the weights of attention.
    scaling: Of the prior's widths.
    remat: Whether layers are computed again in the backward pass.
  """

  _: dataclasses.KW_ONLY
  hidden_dim: int = 512
  num_heads: int = 8
  num_layers: int = 3
  mlp_dim: int = 512
  dropout_rate: float = 0.0
  scaling: association.Scaling = association.PUBLISHED
  remat: bool = False

  def __post_init__(self):
    check_range(
      '[1, inf)',
      hidden_dim=self.hidden_dim,
      num_heads=self.num_heads,
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
    )
    check_range('[0, 1)', dropout_rate=self.dropout_rate)
    # Widths of 0 would be 0 / 0 in the prior.
    check_range('(1, inf)', **{'scaling.base': self.scaling.base})
    check_range(
      '(0, inf)',
      **{
        'scaling.sharpness': self.scaling.sharpness,
        'scaling.offset': self.scaling.offset,
      },
    )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, series: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> Reconstruction:
    """Reconstructs windows [B, L, C]; `mask` [B] is not needed."""
    del mask  # Rows do not see each other.
    dense = functools.partial(nn.Dense, kernel_init=association.KERNEL_INIT)
    norm = functools.partial(nn.LayerNorm, 1e-5)
    drop = functools.partial(
      nn.Dropout, self.dropout_rate, deterministic=not train
    )
    tokens = nn.Conv(
      self.hidden_dim,
      (3,),
      padding='CIRCULAR',
      use_bias=False,
      kernel_init=_EMBEDDING_INIT,
      name='embedding',
    )(series)
    places = sequence_positions.sinusoids(
      jnp.arange(series.shape[1]), self.hidden_dim
    )
    tokens = drop(name='dropout')(tokens + places[None].astype(tokens.dtype))

    # Of any module: lifted ones are copies of this one.
    def layer(net, tokens, i):
      del net
      branch, found = association.AnomalyAttention(
        self.num_heads,
        dropout_rate=self.dropout_rate,
        scaling=self.scaling,
        name=f'attention_{i}',
      )(tokens, train=train)
      branch = drop(name=f'attention_dropout_{i}')(branch)
      tokens = norm(name=f'attention_norm_{i}')(tokens + branch)
      hidden = dense(self.mlp_dim, name=f'hidden_{i}')(tokens)
      hidden = drop(name=f'hidden_dropout_{i}')(activations.gelu_exact(hidden))
      branch = dense(self.hidden_dim, name=f'out_{i}')(hidden)
      branch = drop(name=f'out_dropout_{i}')(branch)
      return norm(name=f'out_norm_{i}')(tokens + branch), found

    associations = []
    for i in range(self.num_layers):
      run = functools.partial(layer, i=i)
      tokens, found = (nn.remat(run) if self.remat else run)(self, tokens)
      associations.append(found)
    tokens = norm(name='norm')(tokens)
    restored = dense(series.shape[-1], name='head')(tokens)
    return Reconstruction(restored, tuple(associations))
