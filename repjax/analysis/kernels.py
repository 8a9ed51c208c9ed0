"""Device code: Gaussian kernels over rows, and bandwidths for them."""

import jax
import jax.numpy as jnp


def squared_distances(rows: jax.Array) -> jax.Array:
  """|x_i - x_j|^2 of rows [N, ...], [N, N]; exactly 0 on the diagonal."""
  flat = rows.reshape((rows.shape[0], -1))
  flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
  flat = flat - flat.mean(0, keepdims=True)  # Fewer digits cancel.
  products = jnp.matmul(flat, flat.T, precision='highest')
  norms = jnp.diagonal(products)
  distances = norms[:, None] + norms[None] - 2 * products
  return jnp.maximum(distances, 0) * (1 - jnp.eye(len(flat), dtype=flat.dtype))


def gaussian(distances: jax.Array, bandwidth: float | jax.Array) -> jax.Array:
  """exp(-d^2 / (2 bandwidth^2)) of squared distances."""
  return jnp.exp(-distances / (2 * bandwidth**2))


def median_distance(distances: jax.Array) -> jax.Array:
  """Median of the distances of all pairs; the usual bandwidth of MMD.

  Where most rows are equal it is 0, which is no bandwidth: then that of the
  pairs that differ, and 1 where none do.

  Args:
    distances: Squared distances, [N, N].
  """
  pairs = distances[jnp.triu_indices(len(distances), 1)]
  median = jnp.median(pairs)

  def of_different():
    found = jnp.nanmedian(jnp.where(pairs > 0, pairs, jnp.nan))
    return jnp.where((pairs > 0).any(), found, 1)

  return jnp.sqrt(jax.lax.cond(median == 0, of_different, lambda: median))
