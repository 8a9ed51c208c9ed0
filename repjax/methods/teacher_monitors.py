"""Device code: whether a teacher still tells rows from each other.

Without a centre all rows become one cluster, without sharpening all clusters
one row (Caron et al., ICCV 2021, figure 7, https://arxiv.org/abs/2104.14294).
"""

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax.methods import self_distillation

NAMES = ('entropy', 'mean_entropy', 'clusters', 'spread')


def of_step(
  logits: jax.Array,
  features: jax.Array,
  centre: jax.Array,
  temperature: float | jax.Array,
  real: jax.Array,
) -> dict[str, jax.Array]:
  """What tells of a collapse, of the first views of all devices' rows.

  Args:
    logits: The teacher's, of V views, [B, V, K].
    features: What its backbone says of them, [B V, C].
    centre: Of the logits, [K].
    temperature: Of the teacher.
    real: Which rows are, bool [B].

  Returns:
    'entropy' of what the teacher says of a row, over log K; equal in all rows:
    'mean_entropy' of its mean, 'clusters', the number of different largest
    prototypes over that of rows, and 'spread', the standard deviation of
    features over their root mean square norm. Each is [B].
  """
  num_rows, num_views = logits.shape[:2]
  said = self_distillation.targets(logits[:, 0], centre, temperature)
  first = features.reshape((num_rows, num_views, -1))[:, 0].astype(jnp.float32)
  everyone, vectors, there = parallel.all_gather((said, first, real))
  weight = there / jnp.maximum(there.sum(), 1)
  scale = jnp.log(said.shape[-1])

  def entropy(p):
    return -jax.scipy.special.xlogy(p, p).sum(-1) / scale

  largest = jax.nn.one_hot(everyone.argmax(-1), said.shape[-1])
  used = ((largest * weight[:, None]).sum(0) > 0).sum()
  mean = weight @ vectors
  variance = weight @ jnp.square(vectors - mean[None])
  norm = jnp.sqrt(weight @ jnp.square(vectors).sum(-1))
  shared = dict(
    mean_entropy=entropy(weight @ everyone),
    clusters=used / jnp.maximum(there.sum(), 1),
    spread=jnp.sqrt(variance.sum()) / jnp.maximum(norm, 1e-12),
  )
  return {
    'entropy': entropy(said),
    **{name: jnp.broadcast_to(x, (num_rows,)) for name, x in shared.items()},
  }
