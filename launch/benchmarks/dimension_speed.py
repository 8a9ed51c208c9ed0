"""Intrinsic dimension: estimates and neighbours, and scikit-dimension's."""

import time
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

_NUM_ROWS, _LATENT_DIM, _DIM, _K = 10_000, 8, 100, 20


def dimension(rounds: int) -> dict[str, Any]:
  """MLE with 20 neighbours, 10,000 rows of 8 dimensions in 100.

  Beside scikit-dimension (extra `parity`), whose estimates stand beside ours:
  the whole call, and what comes after the neighbours, which it does row by row.
  """
  from repjax.analysis import intrinsic_dimension
  from repjax.analysis import nearest_neighbours

  try:
    import skdim
  except ImportError:
    return {'skipped': 'needs pip install -e ".[parity]"'}

  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.standard_normal((_DIM, _LATENT_DIM)))
  rows = rng.standard_normal((_NUM_ROWS, _LATENT_DIM)) @ basis.T
  found = nearest_neighbours.nearest(rows, _K)
  neighbours = found.distances, found.indices
  estimates = {}

  def timed(name, fn):
    start = time.perf_counter()
    estimates[name] = float(fn())
    return time.perf_counter() - start

  def estimate(distances):
    return intrinsic_dimension.mle(distances, normaliser='k-1')

  def theirs(**kwargs):
    return skdim.id.MLE().fit(rows, n_neighbors=_K, **kwargs).dimension_

  whole = timing.alternate(
    rounds,
    lambda: timed('scikit-dimension', theirs),
    lambda: timed(
      'repjax',
      lambda: estimate(nearest_neighbours.nearest(rows, _K).distances),
    ),
  )
  after = timing.alternate(
    rounds,
    lambda: timed(
      'scikit-dimension', lambda: theirs(precomputed_knn_arrays=neighbours)
    ),
    lambda: timed('repjax', lambda: estimate(found.distances)),
  )
  logging.info('scikit-dimension over ours: %.1f, after: %.1f', whole, after)
  return {
    'scikit-dimension over ours, time of the whole call': whole,
    'the same, given the neighbours': after,
    'estimates': estimates,
    'rechecked rows': found.rechecked,
  }
