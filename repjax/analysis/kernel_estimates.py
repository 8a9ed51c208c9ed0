"""Device code: how well random features tell what softmax attention looks at.

Choromanski et al., 'Rethinking Attention with Performers', ICLR 2021
(https://arxiv.org/abs/2009.14794): lemma 2 on the error of the estimates,
theorem 2 on orthogonal rows.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import types
from repjax.layers import performer
from repjax.layers.attention import softmax
from repjax.layers.attention.linear import random_features


@functools.partial(
  jax.jit, static_argnames=('features', 'kind', 'num_features', 'draws')
)
def squared_error(
  rng: jax.Array,
  x: jax.Array,
  y: jax.Array,
  *,
  features: Callable[..., random_features.Features],
  kind: Literal['orthogonal', 'iid'],
  num_features: int,
  draws: int,
) -> jax.Array:
  """Mean squared error of estimates of exp(x . y), over many projections.

  Args:
    rng: Of the projections.
    x: [D].
    y: [D].
    features: `random_features.positive` or another map of that kernel.
    kind: Of the projections' rows.
    num_features: Their number, M.
    draws: Number of projections.

  Returns:
    A scalar.
  """

  def one(rng):
    rows = random_features.draw_projection(
      rng, num_features, x.shape[-1], kind=kind
    )
    a, b = (features(z[None, None], rows) for z in (x, y))
    estimate = (a.values * b.values).sum()
    estimate *= jnp.exp((a.log_scale + b.log_scale).sum())
    return (estimate - jnp.exp(x @ y)) ** 2

  return jax.lax.map(one, jax.random.split(rng, draws), batch_size=400).mean()


def errors(
  rng: jax.Array, *, dim: int, sizes: Sequence[int], draws: int
) -> dict[str, Any]:
  """`squared_error` for random pairs of vectors.

  Args:
    rng: Of the vectors and the projections.
    dim: D.
    sizes: Numbers of features.
    draws: Number of projections.

  Returns:
    'orthogonal' and 'iid': for a pair of unit vectors, positive features of
    either kind of rows, one number a size. 'positive' and 'trigonometric': for
    two vectors of length 2 and cosine -0.95, 64 features of independent rows.
  """
  rng_x, rng_y, rng = jax.random.split(rng, 3)
  x, y = (jax.random.normal(r, (dim,)) for r in (rng_x, rng_y))
  x = x / jnp.linalg.norm(x)
  across = y - (y @ x) * x
  across = across / jnp.linalg.norm(across)
  y = y / jnp.linalg.norm(y)
  opposite = 2 * x, 2 * (-0.95 * x + (1 - 0.95**2) ** 0.5 * across)

  def error(pair, features, kind, num_features):
    return squared_error(
      rng,
      *pair,
      features=features,
      kind=kind,
      num_features=num_features,
      draws=draws,
    )

  positive = random_features.positive
  return {
    'orthogonal': [error((x, y), positive, 'orthogonal', m) for m in sizes],
    'iid': [error((x, y), positive, 'iid', m) for m in sizes],
    'positive': error(opposite, positive, 'iid', 64),
    'trigonometric': error(opposite, random_features.trigonometric, 'iid', 64),
  }


def estimable_share(
  query: jax.Array, key: jax.Array, *, num_features: int
) -> jax.Array:
  """Share of exact causal attention that positive features can tell.

  The attention on pairs of a query and a key whose weight has, estimated, a
  relative variance below 1 (`performer.relative_variance`); mean over queries,
  heads and rows.

  Args:
    query: [B, L, H, D], not scaled.
    key: [B, L, H, D].
    num_features: Of the estimate, M.

  Returns:
    A scalar in [0, 1].
  """
  query, key = (x.swapaxes(-3, -2) for x in (query, key))  # [B, H, L, D]
  scores = jnp.einsum('bhqd,bhkd->bhqk', query, key) / query.shape[-1] ** 0.5
  past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
  weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
  variance = performer.relative_variance(
    query[..., :, None, :],
    key[..., None, :, :],
    num_features=num_features,
  )
  return (weights * (variance < 1)).sum(-1).mean()


def share_of_network(
  network: Callable[[Callable[..., jax.Array]], nn.Module],
  params: types.PyTree,
  inputs: jax.Array,
  *,
  num_features: int,
) -> jax.Array:
  """`estimable_share` of a network's attention, mean over its layers.

  Args:
    network: Its causal attention -> the network, without remat.
    params: Its parameters.
    inputs: What it is called with.
    num_features: Of the estimate, M.
  """
  seen = []

  class Watched(softmax.Softmax):
    def __call__(self, query, key, value, **kwargs):
      seen.append((query, key))
      return super().__call__(query, key, value, **kwargs)

  network(Watched(causal=True)).apply({'params': params}, inputs, train=False)
  shares = [estimable_share(*x, num_features=num_features) for x in seen]
  return jnp.stack(shares).mean()
