"""Host side: Domino, which finds where a classifier fails, and in what words.

Eyuboglu, Varma, Saab, Delbrouck, Lee-Messer, Dunnmon, Zou and Re, 'Domino:
Discovering Systematic Errors with Cross-Modal Embeddings', ICLR 2022
(https://arxiv.org/abs/2203.14960). Any classifier, any embeddings:

    found = domino.discover(embeddings, labels, probs, seed=0)  # of validation
    psi = domino.scores(found, *of_test)                        # [N, slices]
    slice_words.describe(psi, *of_test[:2], phrases, phrase_embeddings)
    slice_scores.audit(domino.scores(found, of_test[0]), wrong)  # really?

A mixture of embeddings, labels and predictions (`error_mixture`) is fitted to
validation rows. Its slices are those components whose predictions differ most
from their labels.
"""

from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from repjax import types
from repjax.analysis import error_mixture
from repjax.analysis import finite_rows

# Of embeddings: squares, over the least variance, are below 3e38.
_LARGEST = 1e12
# Of directions, against that of the first: below it there is rounding alone.
_LEAST_VARIANCE = 1e-12


class Found(NamedTuple):
  """What `discover` found.

  Attributes:
    centre: What is subtracted from embeddings, [E].
    basis: Their directions of largest variance, [E, D].
    fit: The mixture of K components.
    chosen: The components that are slices, most errors first, [k].
    gaps: max_c (phat - p) of each of them, [k].
    weights: label_weight and prediction_weight.
  """

  centre: np.ndarray
  basis: np.ndarray
  fit: error_mixture.Fit
  chosen: np.ndarray
  gaps: np.ndarray
  weights: Mapping[str, float]


def discover(
  embeddings: np.ndarray,
  labels: np.ndarray,
  probs: np.ndarray,
  *,
  seed: int,
  num_slices: int = 5,
  num_components: int = 25,
  pca_dim: int | None = None,
  label_weight: float = 10.0,
  prediction_weight: float = 10.0,
  start: error_mixture.Start = 'kmeans',
  num_starts: int = 1,
  update: error_mixture.Update = 'published',
  tol: float = 1e-3,
  max_iter: int = 100,
) -> Found:
  """Fits the mixture to validation rows and chooses its slices.

  Args:
    embeddings: [N, E].
    labels: Classes, integers in [0, C), [N].
    probs: Predictions of them, [N, C]; rows of zeros and a one where they are
      hard.
    seed: Of the start.
    num_slices: khat, 5 in the paper.
    num_components: kbar, 25 in the paper.
    pca_dim: D, at most N and E; None is 128, the paper's, or what is possible.
    label_weight: gamma; 10 is what the authors' evaluation has, 1 the default
      of their class.
    prediction_weight: gammahat.
    start: 'kmeans', 'confusion' or 'random'. The first is the default of the
      authors' newest code, the second, which needs C^2 components, of their
      package 0.1.5: with large weights its components stay in their cells.
    num_starts: The likeliest of so many fits is taken.
    update: Of soft predictions; see `error_mixture`.
    tol: EM stops where the mean logarithm changes by less.
    max_iter: Most steps of EM.

  Raises:
    InputError: The rows do not fit together, are fewer than components, hold
      what is not finite, or are all of one class; or a setting is out of range.
  """
  embeddings, labels, probs = _checked(embeddings, labels, probs)
  if len(np.unique(labels)) < 2:
    raise types.InputError(
      f'all {len(labels)} labels are {labels[0]}: slices need rows of two '
      'classes.'
    )
  check_settings(
    len(embeddings),
    embeddings.shape[1],
    probs.shape[1],
    num_slices=num_slices,
    num_components=num_components,
    pca_dim=pca_dim,
    label_weight=label_weight,
    prediction_weight=prediction_weight,
    start=start,
    num_starts=num_starts,
  )
  count, width = embeddings.shape
  dim = min(128, count - 1, width) if pca_dim is None else pca_dim
  centre, basis = principal(embeddings, dim)
  weights = dict(
    label_weight=float(label_weight), prediction_weight=float(prediction_weight)
  )
  fits = _fits(
    _rows((embeddings - centre) @ basis, labels, probs),
    jax.random.split(jax.random.key(seed), num_starts),
    weights,
    num_components=num_components,
    start=start,
    update=update,
    tol=tol,
    max_iter=max_iter,
  )
  best = int(np.asarray(fits.bound).argmax())
  fit = jax.device_get(jax.tree.map(lambda x: x[best], fits))
  # The authors take the absolute value of the maximum: the same, since rows of
  # both sum to one.
  gaps = (fit.mixture.prediction_probs - fit.mixture.label_probs).max(-1)
  chosen = np.argsort(-gaps, kind='stable')[:num_slices]
  return Found(centre, basis, fit, chosen, gaps[chosen], weights)


def check_settings(
  num_rows: int,
  dim: int,
  num_classes: int,
  *,
  num_slices: int,
  num_components: int,
  pca_dim: int | None,
  label_weight: float,
  prediction_weight: float,
  start: error_mixture.Start,
  num_starts: int,
) -> None:
  """Refuses settings of `discover` before there are rows.

  Args:
    num_rows: N, that slices are to be found in.
    dim: E, of their embeddings.
    num_classes: C.
    num_slices: As `discover` takes it, and so all that follow.
    num_components: kbar.
    pca_dim: D.
    label_weight: gamma.
    prediction_weight: gammahat.
    start: Of EM.
    num_starts: Fits.

  Raises:
    InputError: One is out of range, or there are fewer rows than components.
  """
  types.check_range('[1, inf)', num_starts=num_starts, num_slices=num_slices)
  types.check_range(
    '[0, inf)', label_weight=label_weight, prediction_weight=prediction_weight
  )
  types.check_choice('start', start, tuple(error_mixture.STARTS))
  types.check_range(f'[{num_slices}, inf)', num_components=num_components)
  if start == 'confusion':
    types.check_range(f'[{num_classes**2}, inf)', num_components=num_components)
  if num_rows < num_components:
    raise types.InputError(
      f'{num_rows} rows are fewer than num_components={num_components}: lower '
      'it.'
    )
  if pca_dim is not None:
    types.check_range(f'[1, {min(num_rows, dim)}]', pca_dim=pca_dim)


def log_odds(
  found: Found,
  embeddings: np.ndarray,
  labels: np.ndarray | None = None,
  probs: np.ndarray | None = None,
) -> np.ndarray:
  """log(psi / (1 - psi)) of new rows, [N, k].

  What `scores` rounds to 1 differs here: rows are ranked by this.

  Args:
    found: The slices.
    embeddings: [N, E].
    labels: [N]; without them, and so without `probs`, psi is that of the
      embeddings alone, which the authors' `discover` gives.
    probs: [N, C].

  Raises:
    InputError: The rows do not fit together, or not to those of `discover`.
  """
  if (labels is None) != (probs is None):
    raise types.InputError('labels and probs are given both, or neither.')
  weights, num_classes = found.weights, found.fit.mixture.label_probs.shape[-1]
  if labels is None:
    weights = dict(label_weight=0.0, prediction_weight=0.0)
    labels = np.zeros(len(embeddings), int)
    probs = np.full((len(embeddings), num_classes), 1 / num_classes)
  embeddings, labels, probs = _checked(embeddings, labels, probs)
  width = len(found.centre)
  if embeddings.shape[1] != width or probs.shape[1] != num_classes:
    raise types.InputError(
      f'slices were found with embeddings of {width} numbers and {num_classes} '
      f'classes; got {embeddings.shape[1]} and {probs.shape[1]}.'
    )
  rows = _rows((embeddings - found.centre) @ found.basis, labels, probs)
  return np.asarray(_odds(found.fit.mixture, rows, weights, found.chosen))


def scores(
  found: Found,
  embeddings: np.ndarray,
  labels: np.ndarray | None = None,
  probs: np.ndarray | None = None,
) -> np.ndarray:
  """psi: the probability that a new row is of each slice, [N, k].

  With labels and predictions it is what the paper defines, without them where
  in the space of embeddings the slice is. The arguments are those of
  `log_odds`.
  """
  odds = log_odds(found, embeddings, labels, probs)
  return np.exp(-np.logaddexp(0, -odds))


def principal(rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
  """(mean [E], the `dim` directions of largest variance [E, dim]).

  Directions in which rows do not vary are 0: others may, far beyond them.
  """
  centre = rows.mean(0)
  moved = rows - centre
  if rows.shape[0] >= rows.shape[1]:
    values, vectors = np.linalg.eigh(moved.T.astype(np.float64) @ moved)
    basis = vectors[:, ::-1][:, :dim]
  else:
    # Of wide rows only as many directions as are asked for: a whole singular
    # value decomposition takes many times as long.
    count = len(rows)
    values, vectors = scipy.linalg.eigh(
      moved.astype(np.float64) @ moved.T,
      subset_by_index=(count - min(dim, count), count - 1),
    )
    basis, _ = np.linalg.qr(moved.T @ vectors[:, ::-1])
  values = values[::-1][:dim]
  basis = np.where(values > _LEAST_VARIANCE * values[0], basis, 0)
  return centre, basis.astype(rows.dtype)


@functools.partial(
  jax.jit,
  static_argnames=('num_components', 'start', 'update', 'tol', 'max_iter'),
)
def _fits(rows, rngs, weights, *, num_components, start, **settings):
  def one(rng):
    begin = error_mixture.STARTS[start](rows, num_components, rng)
    return error_mixture.fit(rows, begin, **weights, **settings)

  return jax.vmap(one)(rngs)


@jax.jit
def _odds(mixture, rows, weights, chosen):
  logs = error_mixture.log_joint(mixture, rows, **weights)

  def against_others(number):
    own = jnp.arange(logs.shape[-1]) == number
    others = jnp.where(own[None], -jnp.inf, logs)
    return logs[:, number] - jax.nn.logsumexp(others, axis=-1)

  return jax.vmap(against_others, out_axes=1)(chosen)


def _rows(embeddings, labels, probs):
  # Of JAX's width, 64 bits where those are enabled.
  to_device = functools.partial(
    jnp.asarray, dtype=jax.dtypes.canonicalize_dtype(embeddings.dtype)
  )
  return error_mixture.Rows(
    to_device(embeddings),
    to_device(np.eye(probs.shape[1])[labels]),
    to_device(probs),
    to_device(np.ones(len(labels))),
  )


def _checked(embeddings, labels, probs) -> tuple[Any, Any, Any]:
  """Floating embeddings, integer labels and probabilities, or InputError."""
  embeddings, labels, probs = map(np.asarray, (embeddings, labels, probs))
  if embeddings.ndim != 2 or labels.ndim != 1 or probs.ndim != 2:
    raise types.InputError(
      'embeddings are [N, E], labels [N] and probs [N, C]; got '
      f'{embeddings.shape}, {labels.shape} and {probs.shape}.'
    )
  if not len(embeddings) == len(labels) == len(probs) > 0:
    raise types.InputError(
      f'embeddings, labels and probs have {len(embeddings)}, {len(labels)} and '
      f'{len(probs)} rows: they must be of the same.'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise types.InputError(f'labels are integers; got {labels.dtype}.')
  if not 0 <= labels.min() <= labels.max() < probs.shape[1]:
    raise types.InputError(
      f'labels reach from {labels.min()} to {labels.max()}, and probs are of '
      f'{probs.shape[1]} classes: give one column a class.'
    )
  if embeddings.dtype not in (np.float32, np.float64):
    # Half precision has no room for squares and small variances.
    embeddings = embeddings.astype(np.float32)
  finite_rows.check(embeddings=embeddings, probs=probs)
  largest = abs(embeddings).max(initial=0)
  if largest > _LARGEST:
    raise types.InputError(
      f'embeddings reach {largest:.3g}, too far for sums of their '
      f'squares in 32 bits: divide them, so that none is beyond {_LARGEST:g}.'
    )
  if probs.min() < 0 or abs(probs.sum(1) - 1).max() > 1e-3:
    raise types.InputError(
      'probs are no probabilities, which are >= 0 and sum to 1: take a softmax '
      'of logits.'
    )
  return embeddings, labels, probs
