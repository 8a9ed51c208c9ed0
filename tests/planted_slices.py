"""Rows of which it is known where a classifier fails."""

import numpy as np


def draw(num_rows=600, seed=0):
  """Two classes, eight blobs; one blob is nearly always misread."""
  rng = np.random.default_rng(seed)
  blob = rng.integers(0, 8, num_rows)
  centres = 4.0 * np.random.default_rng(9).normal(size=(8, 12))
  embeddings = centres[blob] + rng.normal(size=(num_rows, 12))
  labels = (blob >= 4).astype(int)
  wrong = rng.random(num_rows) < np.where(blob == 6, 0.8, 0.1)
  one = np.where(labels ^ wrong, 0.8, 0.2)
  return (
    embeddings.astype(np.float32),
    labels,
    np.stack([1 - one, one], 1).astype(np.float32),
    blob == 6,
  )
