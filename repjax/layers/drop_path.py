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
  def __call__(self, branch: jax.Array, *, train: bool) -> jax.Array:
    """Applies stochastic depth to `branch`, [B, ...], when training."""
    check_range('[0, 1)', drop_path_rate=self.rate)
    if not train or self.rate == 0:
      return branch
    keep_shape = branch.shape[:1] + (1,) * (branch.ndim - 1)
    rng = self.make_rng(self.rng_collection)
    keep = jax.random.bernoulli(rng, 1 - self.rate, keep_shape)
    return jnp.where(keep, branch / (1 - self.rate), 0).astype(branch.dtype)
