"""Device code: rows of a time series as tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers.positions import sequence_positions
from repjax.types import InputError


class SeriesEmbedding(nn.Module):
  """Values, places, what is known ahead, and which series it is, summed.

  As in Informer (Zhou et al., AAAI 2021, app. B,
  https://arxiv.org/abs/2012.07436) and Pyraformer: values go through a
  convolution of three steps over a circle, so that the first step also sees the
  last one.

  Attributes:
    dim: D.
    num_series: Series that have an embedding of their own; 0 for none.
    dropout_rate: Of the sum.
  """

  dim: int
  num_series: int = 0
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    values: jax.Array,
    covariates: jax.Array,
    entity: jax.Array | None = None,
    *,
    train: bool,
  ) -> jax.Array:
    """[B, L, D].

    Args:
      values: [B, L, C].
      covariates: [B, L, F]; F may be 0.
      entity: Which series each row is of, int [B]; needed with `num_series`.
      train: Whether to drop.
    """
    length = values.shape[1]
    if covariates.shape[:2] != values.shape[:2]:
      raise InputError(
        f'covariates need one row a step: values have shape {values.shape}, '
        f'covariates {covariates.shape}'
      )
    around = [jnp.roll(values, shift, axis=1) for shift in (1, 0, -1)]
    # He's initializer for leaky rectifiers of slope .01. The authors' call
    # means a slope of 0, whose variance is 1e-4 larger.
    he = nn.initializers.variance_scaling(2 / 1.0001, 'fan_in', 'normal')
    tokens = nn.Dense(self.dim, kernel_init=he, name='value')(
      jnp.concatenate(around, -1)
    )
    places = sequence_positions.sinusoids(jnp.arange(length), self.dim)
    tokens += places.astype(tokens.dtype)[None]
    if covariates.shape[-1]:
      tokens += nn.Dense(self.dim, name='covariates')(
        covariates.astype(tokens.dtype)
      )
    if self.num_series:
      table = nn.Embed(
        self.num_series,
        self.dim,
        embedding_init=nn.initializers.normal(1.0),
        name='entity',
      )
      tokens += table(entity)[:, None]
    return nn.Dropout(self.dropout_rate)(tokens, deterministic=not train)
