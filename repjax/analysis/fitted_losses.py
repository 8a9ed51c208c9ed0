"""Device code: losses whose best action must be found, for `h_divergence`.

Zhao et al., 'Comparing Distributions by Measuring Differences that Affect
Decision Making', ICLR 2022 (https://openreview.net/forum?id=KB5onONJIAU): the
H-entropies of mixtures of Gaussians, autoencoders and small networks. What is
found is no infimum, but what a fixed number of steps gives. So that splits of
one pool differ by their rows alone, all fits begin at the same place and see
the same random numbers, and both follow from a key.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.analysis.h_divergence import Loss
from repjax.methods import vae as vae_method
from repjax.models import vae as vae_model
from repjax.types import check_range


def gaussian_mixture(
  num_components: int,
  *,
  rng: jax.Array,
  steps: int = 50,
  floor: float = 1e-3,
) -> Loss:
  """-log density over mixtures of Gaussians with full covariances, by EM.

  Args:
    num_components: K.
    rng: Of the first centres, rows that k-means++ picks from the pool: once,
      for all splits (local optima would be noise else).
    steps: EM steps of each fit.
    floor: Added to the variances, in units of those of the pooled rows: it
      bounds the density of components that shrink to a row. (The authors'
      scikit-learn adds 1e-6 in units of the data.) A column that is the same in
      all rows has the unit of the data and this variance alone: it adds the
      same number to all entropies.
  """
  check_range('[1, inf)', num_components=num_components, steps=steps)
  check_range('(0, inf)', floor=floor)

  def prepare(rows):
    flat = jnp.asarray(rows).reshape((rows.shape[0], -1))
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    # A variance may be above 0 by rounding where all values are equal.
    differs = (flat != flat[:1]).any(0, keepdims=True)
    variance = flat.var(0, keepdims=True)
    scale = jnp.sqrt(jnp.where(differs & (variance > 0), variance, 1))
    white = (flat - flat.mean(0, keepdims=True)) / scale
    eye = jnp.eye(flat.shape[1], dtype=flat.dtype)
    start = Mixture(
      jnp.full(num_components, 1 / num_components, flat.dtype),
      plus_plus(rng, white, num_components),
      jnp.tile((1 + floor) * eye, (num_components, 1, 1)),
    )
    return _monomials(white), start, floor * eye, jnp.log(scale).sum()

  return Loss(
    f'Gaussian mixture ({num_components} components)',
    prepare,
    _mixture_entropy(steps),
  )


class Mixture(NamedTuple):
  """A mixture of Gaussians.

  Attributes:
    shares: Of the components, [K].
    means: [K, D].
    covariances: [K, D, D].
  """

  shares: jax.Array
  means: jax.Array
  covariances: jax.Array


@jax.default_matmul_precision('highest')
def fit_mixture(
  rows: jax.Array,
  weights: jax.Array,
  start: Mixture,
  *,
  ridge: jax.Array,
  steps: int,
) -> Mixture:
  """Steps of EM on weighted rows.

  Args:
    rows: [N, D], about 0 and of deviation about 1.
    weights: [N], >= 0.
    start: Where they begin.
    ridge: Added to every covariance, [D, D].
    steps: Their number.
  """
  return _fit(_monomials(rows), weights, start, ridge, steps)


@jax.default_matmul_precision('highest')
def log_density(mixture: Mixture, rows: jax.Array) -> jax.Array:
  """Log p of rows [N, D], [N]."""
  return jax.nn.logsumexp(_joint(mixture, _monomials(rows)), -1)


def _monomials(rows):
  """1, x_i and x_i x_j of rows [N, D]: [N, 1 + D + D^2].

  Both halves of a step of EM are products of this matrix, which all splits
  share, with matrices of K columns.
  """
  squares = rows[:, :, None] * rows[:, None]
  ones = jnp.ones_like(rows[:, :1])
  return jnp.concatenate([ones, rows, squares.reshape(len(rows), -1)], -1)


def _fit(monomials, weights, start, ridge, steps):
  dim = start.means.shape[1]

  def step(mixture, _):
    own = jax.nn.softmax(_joint(mixture, monomials), -1) * weights[:, None]
    sums = jnp.matmul(own.T, monomials, precision='highest')
    # A component that has lost all rows stays finite, with a share of 0.
    mass = sums[:, 0] + 1e-10
    means, squares = jnp.split(sums[:, 1:] / mass[:, None], [dim], -1)
    covariances = (
      squares.reshape(-1, dim, dim) - means[:, :, None] * means[:, None]
    )
    return Mixture(mass / mass.sum(), means, covariances + ridge[None]), None

  return jax.lax.scan(step, start, None, length=steps)[0]


@jax.default_matmul_precision('highest')
def _joint(mixture, monomials):
  """log(share) + log density of each component at each row, [N, K]."""
  precisions = jnp.linalg.inv(mixture.covariances)
  slopes = (precisions @ mixture.means[..., None])[..., 0]
  dim = mixture.means.shape[1]
  at_zero = (
    jnp.log(mixture.shares)
    - (mixture.means * slopes).sum(-1) / 2
    - jnp.linalg.slogdet(mixture.covariances)[1] / 2
    - dim / 2 * jnp.log(2 * jnp.pi)
  )
  columns = jnp.concatenate(
    [at_zero[:, None], slopes, -precisions.reshape(-1, dim * dim) / 2], -1
  )
  return jnp.matmul(monomials, columns.T, precision='highest')


@functools.cache
def _mixture_entropy(steps):
  @jax.default_matmul_precision('highest')
  def entropy(prepared, weights):
    monomials, start, ridge, log_scale = prepared
    mixture = _fit(monomials, weights, start, ridge, steps)
    density = jax.nn.logsumexp(_joint(mixture, monomials), -1)
    return log_scale - weights @ density / weights.sum()

  return entropy


def plus_plus(rng: jax.Array, rows: jax.Array, num: int) -> jax.Array:
  """Rows far from each other (k-means++), [num, D].

  Each is drawn in proportion to its squared distance from those before it
  (Arthur and Vassilvitskii, SODA 2007,
  https://doi.org/10.5555/1283383.1283494).

  Args:
    rng: Of the draws.
    rows: [N, D].
    num: How many.
  """
  rng_first, rng_next = jax.random.split(rng)
  first = rows[jax.random.randint(rng_first, (1,), 0, len(rows))]  # [1, D]

  def pick(nearest, key):
    row = rows[jax.random.categorical(key, jnp.log(nearest))[None]]
    return jnp.minimum(nearest, jnp.square(rows - row).sum(-1)), row

  nearest = jnp.square(rows - first).sum(-1)
  keys = jax.random.split(rng_next, num - 1)
  return jnp.concatenate([first, jax.lax.scan(pick, nearest, keys)[1][:, 0]])


def trained(
  name: str,
  init: Callable[[jax.Array, types.PyTree], types.PyTree],
  losses: Callable[[types.PyTree, types.PyTree, jax.Array], jax.Array],
  tx: optax.GradientTransformation,
  *,
  rng: jax.Array,
  steps: int,
  final: Callable[[types.PyTree, types.PyTree], jax.Array] | None = None,
) -> Loss:
  """Any loss of a network: its parameters are the action.

  A regression or classification loss of rows {'features', 'label'} asks whether
  one model serves both samples; see `vae` for one that models the rows.

  Args:
    name: Of the decision, for results.
    init: (key, rows) -> parameters.
    losses: (parameters, rows, key) -> one loss a row, [N].
    tx: Optax chain.
    rng: Of the parameters and of the keys of all steps.
    steps: Steps on all rows at once.
    final: (parameters, rows) -> one loss a row after the last step; `losses`
      with a key of its own if None.
  """
  check_range('[1, inf)', steps=steps)
  rng_init, rng_steps, rng_final = jax.random.split(rng, 3)

  def entropy(rows, weights):
    share = weights / weights.sum()
    params = init(rng_init, rows)

    def step(carry, key):
      params, opt_state = carry
      grads = jax.grad(lambda p: share @ losses(p, rows, key))(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(rng_steps, steps)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    if final is None:
      return share @ losses(params, rows, rng_final)
    return share @ final(params, rows)

  return Loss(name, lambda rows: rows, entropy)


def vae(
  model: vae_model.Vae,
  *,
  rng: jax.Array,
  steps: int,
  learning_rate: float = 5e-3,
) -> Loss:
  """-ELBO of autoencoders, the paper's loss for images (MNIST).

  Args:
    model: Autoencoder.
    rng: Of its parameters and codes, equal for all splits.
    steps: Steps of AdamW on all rows at once. (The authors take 500 epochs of
      batches, and mean losses of the last one as the entropy.)
    learning_rate: That of the authors' code by default.

  Returns:
    A loss of images [N, ...] in [0, 1].
  """
  check_range('(0, inf)', learning_rate=learning_rate)

  def init(rng, image):
    return model.init(rng, image[:1], jnp.zeros((1, model.code_dim)))

  def losses(variables, image, rng):
    noise = jax.random.normal(rng, (image.shape[0], model.code_dim))
    return sum(model.apply(variables, image, noise))

  def final(variables, image):
    return sum(vae_method.expected_bound(model, variables, image))

  settings: dict[str, Any] = dict(rng=rng, steps=steps, final=final)
  return trained(
    f'VAE ({steps} steps)', init, losses, optax.adamw(learning_rate), **settings
  )
