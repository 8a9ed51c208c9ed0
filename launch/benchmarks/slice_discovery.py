"""EM of the error-aware mixture against scikit-learn's Gaussian mixture."""

import functools
import time
from typing import Any
import warnings

from absl import logging
import numpy as np

from launch.lib import timing

_NUM_ROWS, _DIM, _COMPONENTS, _STEPS = 10_000, 128, 25, 30


def slices(rounds: int) -> dict[str, Any]:
  """30 steps of EM, 10,000 rows of 128 numbers, 25 components.

  Ours models labels and predictions, too, in 32 bits; scikit-learn's, whose
  code Domino's authors extend, embeddings alone, in 64 and in 32. All begin
  with the same responsibilities and none stops early; bounds of embeddings
  alone stand beside each other.
  """
  import jax
  import jax.numpy as jnp
  from sklearn import exceptions
  from sklearn import mixture as sk_mixture

  from repjax.analysis import error_mixture

  rng = np.random.default_rng(0)
  blob = rng.integers(0, 40, _NUM_ROWS)
  z = rng.normal(size=(_NUM_ROWS, _DIM)) + rng.normal(size=(40, _DIM))[blob]
  labels = blob % 2
  one = np.where(labels, rng.beta(8, 2, _NUM_ROWS), rng.beta(2, 8, _NUM_ROWS))
  begin = np.eye(_COMPONENTS)[rng.integers(0, _COMPONENTS, _NUM_ROWS)]
  rows = error_mixture.Rows(
    jnp.asarray(z, jnp.float32),
    jnp.asarray(np.eye(2)[labels], jnp.float32),
    jnp.asarray(np.stack([1 - one, one], 1), jnp.float32),
    jnp.ones(_NUM_ROWS),
  )

  @jax.jit
  def fit(rows, begin, weight):
    return error_mixture.fit(
      rows,
      begin,
      label_weight=weight,
      prediction_weight=weight,
      tol=0.0,
      max_iter=_STEPS,
    )

  start = jnp.asarray(begin, jnp.float32)
  first = error_mixture.estimate(rows, start)

  def ours(weight=10.0):
    began = time.perf_counter()
    fitted = jax.block_until_ready(fit(rows, start, jnp.float32(weight)))
    return time.perf_counter() - began, float(fitted.bound)

  def theirs(dtype):
    model = sk_mixture.GaussianMixture(
      _COMPONENTS,
      covariance_type='diag',
      weights_init=np.full(_COMPONENTS, 1 / _COMPONENTS, dtype),
      means_init=np.asarray(first.means, dtype),
      precisions_init=np.asarray(1 / first.variances, dtype),
      tol=0.0,
      max_iter=_STEPS,
    )
    data = z.astype(dtype)
    began = time.perf_counter()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
      model.fit(data)
    return time.perf_counter() - began, float(model.lower_bound_)

  ours()  # Compiles.
  result: dict[str, Any] = {}
  for bits, dtype in ((64, np.float64), (32, np.float32)):
    ratio = timing.alternate(
      rounds, functools.partial(_seconds, theirs, dtype), lambda: ours()[0]
    )
    logging.info('scikit-learn, %s bits, over ours: %.1f', bits, ratio)
    result[f'scikit-learn of {bits} bits over ours, time'] = ratio
  result['bounds of embeddings, scikit-learn and ours'] = (
    theirs(np.float64)[1],
    ours(0.0)[1],
  )
  result['milliseconds'] = 1000 * min(ours()[0] for _ in range(rounds))
  return result


def _seconds(timed, *args):
  return timed(*args)[0]
