"""Device code: stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class DropPath(nn.Module):
  """Drops a residual branch for whole examples (Huang et al., 2016).

  https://arxiv.org/abs/1603.09382

  What is kept is divided by 1 - `rate`, so the expectation does not change.

  Attributes:
    rate: Probability that an example skips the branch, in [0, 1).
    rng_collection: Name of the rngs that the draw comes from.
  """

  rate: float
  rng_collection: str = 'dropout'

  @nn.compact
  def __call__(
    self,
    branch: jax.Array,
    *,
    train: bool,
    rate: jax.Array | None = None,
  ) -> jax.Array:
    """Applies stochastic depth when training.

    Args:
      branch: [B, ...].
      train: Whether to draw.
      rate: Stands in for `rate` of the layer, where one layer runs as several.
    """
    check_range('[0, 1)', drop_path_rate=self.rate)
    if not train or (rate is None and self.rate == 0):
      return branch
    kept = 1 - (self.rate if rate is None else rate.astype(jnp.float32))
    keep_shape = branch.shape[:1] + (1,) * (branch.ndim - 1)
    rng = self.make_rng(self.rng_collection)
    # Drawn in float32: in half precision another share would be kept.
    keep = jax.random.bernoulli(rng, kept, keep_shape)
    kept = jnp.asarray(kept, branch.dtype)
    return jnp.where(keep, branch / kept, 0).astype(branch.dtype)
