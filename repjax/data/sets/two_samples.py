"""Device code: pairs of distributions that tests of two samples are tried on.

All are drawn from a key, so that thousands of data sets can be drawn inside of
one compiled program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError
from repjax.types import check_range

# (key, n) -> samples of P and of Q, [n, D] each.
Draw = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


def blobs(rng: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
  """Nine blobs that are round in P and slanted in Q.

  A grid of 3 x 3 centres with distance 1. Blobs of P have covariance .03 I,
  those of Q covariances from -.02 to -.026 and .02 to .026, and one is round
  (Liu et al., 'Learning Deep Kernels for Non-Parametric Two-Sample Tests', ICML
  2020, https://arxiv.org/abs/2002.09116; also in Zhao et al., ICLR 2022, of
  whose code the numbers are). That code multiplies rows by the Cholesky factor
  from the wrong side, so that its blobs have another covariance; these have the
  one that it writes down.

  Args:
    rng: Of the rows.
    num_rows: Rows of each sample, n.

  Returns:
    P's and Q's rows, [n, 2] each. The nine blobs are equally likely.
  """
  rng_p, rng_q = jax.random.split(rng)
  slant = np.concatenate(
    [-0.02 - 0.002 * np.arange(4), [0.0], 0.02 + 0.002 * np.arange(4)]
  )
  covariance = np.array([[[0.03, s], [s, 0.03]] for s in slant])
  round_ = np.tile(np.eye(2) * 0.03, (9, 1, 1))
  return (
    _blobs(rng_p, num_rows, np.linalg.cholesky(round_)),
    _blobs(rng_q, num_rows, np.linalg.cholesky(covariance)),
  )


def _blobs(rng, num_rows, roots):
  rng_blob, rng_place = jax.random.split(rng)
  blob = jax.random.randint(rng_blob, (num_rows,), 0, 9)
  noise = jax.random.normal(rng_place, (num_rows, 2))
  centre = jnp.stack([blob // 3, blob % 3], -1)
  return centre + jnp.einsum('nij,nj->ni', jnp.asarray(roots)[blob], noise)


def gaussian_mixtures(dim: int) -> Draw:
  """HDGM: two clusters in many dimensions, of which two are correlated in Q.

  Centres 0 and (.5, ..., .5), covariance I in P; in Q the first two coordinates
  have the covariances .5 and -.5 in the two clusters, so that no pair of
  marginals differs (numbers of Zhao et al.'s code, after Liu et al., 2020,
  https://arxiv.org/abs/2002.09116).

  Args:
    dim: D >= 2.
  """
  check_range('[2, inf)', dim=dim)
  covariance = np.tile(np.eye(dim), (2, 1, 1))
  covariance[0, :2, :2] = [[1, 0.5], [0.5, 1]]
  covariance[1, :2, :2] = [[1, -0.5], [-0.5, 1]]
  roots = np.linalg.cholesky(
    np.stack([np.tile(np.eye(dim), (2, 1, 1)), covariance])
  )

  def draw(rng, num_rows):
    rngs = jax.random.split(rng)
    p, q = (
      _clusters(key, num_rows, root)
      for key, root in zip(rngs, roots, strict=True)
    )
    return p, q

  return draw


def _clusters(rng, num_rows, roots):
  rng_cluster, rng_place = jax.random.split(rng)
  cluster = jax.random.randint(rng_cluster, (num_rows,), 0, 2)
  noise = jax.random.normal(rng_place, (num_rows, roots.shape[-1]))
  place = jnp.einsum('nij,nj->ni', jnp.asarray(roots)[cluster], noise)
  return place + 0.5 * cluster[:, None]


def same(draw: Draw) -> Draw:
  """Two independent samples of P, to see how often a test is wrong.

  Args:
    draw: Of a distribution; for rows of a finite set there is `disjoint`.
  """

  def both(rng, num_rows):
    rngs = jax.random.split(rng)
    return draw(rngs[0], num_rows)[0], draw(rngs[1], num_rows)[0]

  return both


def subsets(x: np.ndarray, y: np.ndarray) -> Draw:
  """Random rows of two sets that are there, without replacement.

  So is HIGGS tried, by who has it: the first four features of both classes.

  Args:
    x: Rows of P, [N, ...].
    y: Rows of Q, [N', ...].
  """
  sets = (jnp.asarray(x), jnp.asarray(y))

  def draw(rng, num_rows):
    if num_rows > min(len(x), len(y)):
      raise InputError(
        f'There are {len(x)} and {len(y)} rows to draw from, not {num_rows}.'
      )
    rngs = jax.random.split(rng)
    p, q = (
      rows[jax.random.permutation(key, len(rows))[:num_rows]]
      for key, rows in zip(rngs, sets, strict=True)
    )
    return p, q

  return draw


def disjoint(rows: np.ndarray) -> Draw:
  """Two samples of one set that share no row, to see how often a test is wrong.

  Args:
    rows: [N, ...].
  """
  pool = jnp.asarray(rows)

  def draw(rng, num_rows):
    if 2 * num_rows > len(pool):
      raise InputError(
        f'There are {len(pool)} rows, not two disjoint samples of {num_rows}.'
      )
    drawn = pool[jax.random.permutation(rng, len(pool))[: 2 * num_rows]]
    return drawn[:num_rows], drawn[num_rows:]

  return draw
