"""Device code: one linear map from the past to the future."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.models import forecast
from repjax.types import InputError


class LinearForecaster(nn.Module):
  """Trend and the rest of it, each by a linear map that channels share.

  DLinear (Zeng et al., 'Are Transformers Effective for Time Series
  Forecasting?', AAAI 2023, https://arxiv.org/abs/2205.13504), which needs less
  than any transformer and is hard to beat.

  Attributes:
    horizon: H.
    window: Rows of the moving average that is the trend, odd.
  """

  horizon: int
  window: int = 25

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
    """Forecasts from [B, L, C] alone; the other arguments are not looked at."""
    del covariates, train, mask, entity, observed
    if self.window < 1 or self.window % 2 == 0:
      raise InputError(
        f'window is an odd number of rows, >= 1; got {self.window=}'
      )
    if not jnp.issubdtype(series.dtype, jnp.inexact):
      series = series.astype(jnp.float32)
    half = self.window // 2
    padded = jnp.pad(series, ((0, 0), (half, half), (0, 0)), 'edge')
    # Differences of sums: half precision would keep nothing of them.
    wide = padded.astype(jnp.promote_types(padded.dtype, jnp.float32))
    sums = jnp.cumsum(jnp.pad(wide, ((0, 0), (1, 0), (0, 0))), 1)
    trend = (sums[:, self.window :] - sums[:, : -self.window]) / self.window
    trend = trend.astype(series.dtype)

    def head(x, name):
      # The mean of the past is where the authors begin, too.
      flat = nn.initializers.constant(1 / series.shape[1])
      x = nn.Dense(self.horizon, kernel_init=flat, name=name)(x.swapaxes(1, 2))
      return x.swapaxes(1, 2)

    mean = head(trend, 'trend') + head(series - trend, 'rest')
    return forecast.Forecast(mean, None)
