"""Classifiers of an episode against NumPy, one query at a time."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.methods import few_shot

RNG = np.random.default_rng(0)
SUPPORT = RNG.uniform(0.1, 2, (3, 4, 6)).astype(np.float32)
QUERY = RNG.uniform(0.1, 2, (9, 6)).astype(np.float32)
KEY = jax.random.key(0)


def _logits(classify):
  return np.asarray(jax.jit(classify)(SUPPORT, QUERY, KEY))


def test_nearest_centroid():
  logits = _logits(few_shot.nearest_centroid())
  for query, found in zip(QUERY, logits, strict=True):
    wanted = [-((query - rows.mean(0)) ** 2).sum() for rows in SUPPORT]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_cosine():
  logits = _logits(few_shot.cosine())
  for query, found in zip(QUERY, logits, strict=True):
    means = [
      np.mean([x / np.linalg.norm(x) for x in rows], 0) for rows in SUPPORT
    ]
    wanted = [
      query @ m / np.linalg.norm(query) / np.linalg.norm(m) for m in means
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize('neighbours', [1, 3, 4, 6, 8, 12])
def test_nearest_neighbours_vote_and_the_nearest_breaks_ties(neighbours):
  logits = _logits(few_shot.nearest_neighbours(neighbours=neighbours))
  rows, labels = SUPPORT.reshape(12, 6), np.repeat(np.arange(3), 4)
  for query, found in zip(QUERY, logits, strict=True):
    order = labels[np.argsort(((rows - query) ** 2).sum(1))][:neighbours]
    votes = np.bincount(order, minlength=3)
    tied = np.flatnonzero(votes == votes.max())
    assert found.argmax() == next(x for x in order if x in tied)
    np.testing.assert_array_equal(np.floor(found), votes)


def test_logistic_regression_of_a_map_is_that_of_the_mapped_rows():
  for transform in (few_shot.tukey(0.5), few_shot.normalize):
    plain = jax.jit(few_shot.logistic_regression())
    np.testing.assert_array_equal(
      few_shot.on(transform, plain)(SUPPORT, QUERY, KEY),
      plain(transform(SUPPORT), transform(QUERY), KEY),
    )


def test_tukeys_ladder():
  np.testing.assert_array_equal(few_shot.tukey(1.0)(QUERY), QUERY)
  np.testing.assert_allclose(few_shot.tukey(0.5)(QUERY), QUERY**0.5)
  np.testing.assert_allclose(few_shot.tukey(0)(QUERY), np.log(QUERY), atol=1e-4)


def test_more_neighbours_than_rows_are_refused():
  with pytest.raises(types.InputError, match='neighbours=13 of 12 rows'):
    few_shot.nearest_neighbours(neighbours=13)(SUPPORT, QUERY, KEY)
