"""Device code: what models of time series say of the rows to come."""

from typing import NamedTuple

import jax


class Forecast(NamedTuple):
  """H rows of C numbers.

  Attributes:
    mean: [B, H, C].
    deviation: Standard deviations [B, H, C], or None where there are none.
  """

  mean: jax.Array
  deviation: jax.Array | None
