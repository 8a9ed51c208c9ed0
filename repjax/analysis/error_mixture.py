"""Device code: a mixture of embeddings, labels and predictions, fitted by EM.

Eyuboglu, Varma, Saab, Delbrouck, Lee-Messer, Dunnmon, Zou and Re, 'Domino:
Discovering Systematic Errors with Cross-Modal Embeddings', ICLR 2022
(https://arxiv.org/abs/2203.14960), section 5: given the component s of a row,
its embedding z is normal with a diagonal covariance, its label y and the
prediction of it yhat are categorical, and the three are independent:

    log r_is = log pi_s + log N(z_i; mu_s, Sigma_s) + gamma log(y_i . p_s)
      + gammahat log(yhat_i . phat_s) - a number of the row

With gamma = gammahat = 0 it is a Gaussian mixture. Predictions may be soft: the
sum over classes stands inside of the logarithm, as in the authors' code.

The steps of EM do not know that the weights gamma make no density: they raise
the sum over rows of the logarithm of the sum over s, `bound`, for any weights,
provided that predictions are hard. For soft ones the published update of phat,
the mean prediction of a component, is no maximum; update='exact' has one.
"""

import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.types import check_choice
from repjax.types import check_range

Update = Literal['published', 'exact']
Start = Literal['kmeans', 'confusion', 'random']

_HIGHEST = jax.lax.Precision.HIGHEST


class Rows(NamedTuple):
  """What is known of N rows.

  Attributes:
    embeddings: z, [N, D].
    labels: y, one of C classes, as rows of zeros and a one, [N, C].
    predictions: yhat, probabilities of the classes, [N, C].
    mask: 1 for a real row, 0 for padding, [N].
  """

  embeddings: jax.Array
  labels: jax.Array
  predictions: jax.Array
  mask: jax.Array


class Mixture(NamedTuple):
  """K components.

  Attributes:
    weights: pi, [K].
    means: mu, [K, D].
    variances: The diagonals of Sigma, [K, D].
    label_probs: p, [K, C].
    prediction_probs: phat, [K, C].
  """

  weights: jax.Array
  means: jax.Array
  variances: jax.Array
  label_probs: jax.Array
  prediction_probs: jax.Array


class Fit(NamedTuple):
  """A fitted mixture.

  Attributes:
    mixture: After the last step.
    bound: Mean over rows of the logarithm that EM raises, before that step.
    bounds: That logarithm before each step, [max_iter]; NaN after the last.
    steps: How many there were.
    converged: Whether the bound had stopped to change by then.
  """

  mixture: Mixture
  bound: jax.Array
  bounds: jax.Array
  steps: jax.Array
  converged: jax.Array


def log_joint(
  mixture: Mixture,
  rows: Rows,
  *,
  label_weight: jax.typing.ArrayLike,
  prediction_weight: jax.typing.ArrayLike,
) -> jax.Array:
  """Logarithms whose softmax over components is r, [N, K]."""
  z = rows.embeddings
  eps = jnp.finfo(z.dtype).eps  # The authors'; a weight of 0 is exactly none.
  # By component, [N, D] at a time: with squares of z and mu apart, what differs
  # in a group is lost in 32 bits where groups are far from each other.
  square = jax.lax.map(
    lambda x: (jnp.square(z - x[0][None]) / x[1][None]).sum(-1),
    (mixture.means, mixture.variances),
  ).T
  log_normal = -0.5 * (
    z.shape[-1] * math.log(2 * math.pi)
    + jnp.log(mixture.variances).sum(-1)[None]
    + square
  )
  of_label = jnp.log(_dot(rows.labels, mixture.label_probs.T) + eps)
  of_prediction = jnp.log(
    _dot(rows.predictions, mixture.prediction_probs.T) + eps
  )
  return (
    jnp.log(mixture.weights)[None]
    + log_normal
    + label_weight * of_label
    + prediction_weight * of_prediction
  )


def estimate(
  rows: Rows,
  responsibilities: jax.Array,
  *,
  min_variance: float = 1e-6,
  before: jax.Array | None = None,
) -> Mixture:
  """The M-step.

  Args:
    rows: N rows.
    responsibilities: r, [N, K].
    min_variance: Added to variances, as in scikit-learn.
    before: phat that r was made with, [K, C], for the exact update; None for
      the published one.
  """
  z = rows.embeddings
  shares = responsibilities * rows.mask[:, None]
  eps = jnp.finfo(z.dtype).eps
  counts = shares.sum(0) + 10 * eps  # [K]

  def mean(values):
    return _dot(shares.T, values) / counts[:, None]

  means = mean(z)
  # As in `log_joint`.
  variances = jax.lax.map(
    lambda x: _dot(x[0], jnp.square(z - x[1][None])) / x[2],
    (shares.T, means, counts),
  )
  if before is None:
    prediction_probs = mean(rows.predictions)
  else:
    # The class behind a soft prediction is hidden, too: its share given the
    # component is yhat_c phat_c / (yhat . phat).
    likely = _dot(rows.predictions, before.T) + eps
    prediction_probs = (
      before * _dot((shares / likely).T, rows.predictions) / counts[:, None]
    )
  return Mixture(
    counts / rows.mask.sum(),
    means,
    variances + min_variance,
    mean(rows.labels),
    prediction_probs,
  )


def fit(
  rows: Rows,
  responsibilities: jax.Array,
  *,
  label_weight: jax.typing.ArrayLike,
  prediction_weight: jax.typing.ArrayLike,
  update: Update = 'published',
  min_variance: float = 1e-6,
  tol: float = 1e-3,
  max_iter: int = 100,
) -> Fit:
  """EM from given responsibilities; can be jitted and mapped.

  Args:
    rows: N rows.
    responsibilities: Of the start, [N, K].
    label_weight: gamma, >= 0.
    prediction_weight: gammahat, >= 0.
    update: 'exact' lets the bound rise for soft predictions, too.
    min_variance: Added to variances.
    tol: It stops where the bound changes by less.
    max_iter: Most steps.
  """
  check_choice('update', update, ('published', 'exact'))
  check_range('[0, inf)', tol=tol, min_variance=min_variance)
  check_range('[1, inf)', max_iter=max_iter)
  weights = dict(label_weight=label_weight, prediction_weight=prediction_weight)
  total = rows.mask.sum()
  first = estimate(rows, responsibilities, min_variance=min_variance)

  def step(carry):
    mixture, bounds, before, count, _ = carry
    logs = log_joint(mixture, rows, **weights)
    norms = jax.nn.logsumexp(logs, axis=-1, keepdims=True)
    bound = (norms[:, 0] * rows.mask).sum() / total
    new = estimate(
      rows,
      jnp.exp(logs - norms),
      min_variance=min_variance,
      before=mixture.prediction_probs if update == 'exact' else None,
    )
    done = abs(bound - before) < tol
    return new, bounds.at[count].set(bound), bound, count + 1, done

  dtype = rows.embeddings.dtype
  mixture, bounds, bound, steps, converged = jax.lax.while_loop(
    lambda carry: (carry[3] < max_iter) & ~carry[4],
    step,
    (
      first,
      jnp.full(max_iter, jnp.nan, dtype),
      jnp.asarray(-jnp.inf, dtype),
      jnp.zeros((), jnp.int32),
      jnp.zeros((), bool),
    ),
  )
  return Fit(mixture, bound, bounds, steps, converged)


def kmeans(
  rows: Rows, num_components: int, rng: jax.Array, *, max_iter: int = 100
) -> jax.Array:
  """Responsibilities of k-means of embeddings, zeros and ones, [N, K].

  Centres begin as in k-means++ (Arthur and Vassilvitskii, SODA 2007,
  https://doi.org/10.5555/1283383.1283494): rows, drawn with the squared
  distance from those drawn before. One that loses all its rows stays.
  """
  z, mask = rows.embeddings, rows.mask

  def distances(centres):
    # As in `log_joint`.
    return jax.lax.map(lambda x: jnp.square(z - x[None]).sum(-1), centres).T

  def draw(rng, weight):
    # Where all that is left lies on a centre, any real row will do.
    weight = jnp.where(weight.sum() > 0, weight, mask)
    return jax.random.categorical(rng, jnp.log(weight))

  rng_first, rng_others = jax.random.split(rng)
  first = z[draw(rng_first, mask)]

  def add(number, carry):
    centres, nearest = carry
    row = z[draw(jax.random.fold_in(rng_others, number), nearest * mask)]
    new = jnp.square(z - row[None]).sum(-1)
    return centres.at[number].set(row), jnp.minimum(nearest, new)

  centres, _ = jax.lax.fori_loop(
    1,
    num_components,
    add,
    (
      jnp.zeros((num_components, z.shape[-1]), z.dtype).at[0].set(first),
      jnp.square(z - first[None]).sum(-1),
    ),
  )

  def lloyd(carry):
    centres, own, count, _ = carry
    shares = jax.nn.one_hot(own, num_components, dtype=z.dtype) * mask[:, None]
    sizes = shares.sum(0)[:, None]
    moved = jnp.where(sizes > 0, _dot(shares.T, z) / sizes, centres)
    new = distances(moved).argmin(-1)
    return moved, new, count + 1, (new != own).any()

  _, own, _, _ = jax.lax.while_loop(
    lambda carry: (carry[2] < max_iter) & carry[3],
    lloyd,
    (
      centres,
      distances(centres).argmin(-1),
      jnp.zeros((), jnp.int32),
      jnp.ones((), bool),
    ),
  )
  return jax.nn.one_hot(own, num_components, dtype=z.dtype)


def confusion(
  rows: Rows, num_components: int, rng: jax.Array, *, noise: float = 1e-3
) -> jax.Array:
  """Responsibilities by cells of the confusion matrix, in turn, [N, K].

  As in version 0.1.5 of the authors' package: products of label and soft
  prediction, where its documentation has hard cells.

  Args:
    rows: N rows of C classes.
    num_components: K, at least C^2.
    rng: Of the noise that tells components of one cell apart.
    noise: How large it may be, > 0.

  Raises:
    InputError: If there are fewer components than cells.
  """
  num_classes = rows.labels.shape[-1]
  check_range(f'[{num_classes**2}, inf)', num_components=num_components)
  check_range('(0, inf)', noise=noise)
  cells = rows.labels[:, :, None] * rows.predictions[:, None, :]
  cells = cells.reshape((len(cells), -1))  # [N, C^2]
  spread = cells[:, jnp.arange(num_components) % num_classes**2]
  total = spread.sum(-1, keepdims=True)
  spread /= jnp.where(total > 0, total, 1)  # Padding may be of no cell.
  spread += noise * jax.random.uniform(rng, spread.shape, spread.dtype)
  return spread / spread.sum(-1, keepdims=True)


def random(rows: Rows, num_components: int, rng: jax.Array) -> jax.Array:
  """Uniform numbers, made responsibilities, [N, K]."""
  shape = (len(rows.embeddings), num_components)
  drawn = jax.random.uniform(rng, shape, rows.embeddings.dtype)
  return drawn / drawn.sum(-1, keepdims=True)


STARTS = dict(kmeans=kmeans, confusion=confusion, random=random)


def _dot(x, y):
  # On accelerators the default is too coarse.
  return jnp.dot(x, y, precision=_HIGHEST)
