"""Scores of attacks are loops over images."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import backdoor_scores
from repjax.analysis import neighbour_agreement


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_success_leaves_out_the_wanted_class():
  label = np.array([0, 1, 2, 1, 0])
  predicted = np.array([[1, 1, 1, 1, 0], [0, 1, 2, 1, 0]])
  np.testing.assert_allclose(
    backdoor_scores.success(predicted, label, wanted=1), [2 / 3, 0]
  )
  with pytest.raises(types.InputError, match='wanted class 1'):
    backdoor_scores.success(np.ones(2), np.ones(2), wanted=1)


def test_the_z_score_is_a_loop_over_pairs():
  rng = np.random.default_rng(0)
  clean, triggered = unit(rng, 7, 4), unit(rng, 7, 4)
  pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
  without = [clean[i] @ clean[j] for i, j in pairs]
  with_it = [triggered[i] @ triggered[j] for i, j in pairs]
  expected = (np.mean(with_it) - np.mean(without)) / np.std(without)
  found = backdoor_scores.z_score(clean, triggered)
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  assert backdoor_scores.z_score(clean, np.tile(clean[:1], (7, 1))) > 1
  with pytest.raises(types.InputError, match='pairs of the same images'):
    backdoor_scores.z_score(clean[:1], triggered[:1])


def _broken(rng):
  embeddings = unit(rng, 7, 4)
  embeddings[2, 1] = np.nan
  return embeddings


@pytest.mark.parametrize(
  ('draw', 'message'),
  [
    (lambda rng: unit(rng, 2, 4), 'three or more'),
    (lambda rng: np.tile(unit(rng, 1, 4), (7, 1)), 'all images for one'),
    # Rounding is no spread.
    (
      lambda rng: (
        np.tile(unit(rng, 1, 4), (7, 1)).astype(np.float32)
        * (1 + 1e-7 * rng.normal(size=(7, 1)))
      ),
      'all images for one',
    ),
    (_broken, 'must be finite'),
  ],
)
def test_without_a_spread_there_is_no_z_score(draw, message):
  rng = np.random.default_rng(0)
  clean = draw(rng)
  with pytest.raises(types.InputError, match=message):
    backdoor_scores.z_score(clean, unit(rng, *clean.shape))


def test_agreement_is_a_loop_over_neighbours():
  rng = np.random.default_rng(1)
  features, text = rng.normal(size=(9, 3)), unit(rng, 9, 5)
  found = neighbour_agreement.agreement(features, text, neighbours=3)
  for i in range(9):
    distance = np.linalg.norm(features - features[i], axis=1)
    nearest = [j for j in np.argsort(distance) if j != i][:3]
    np.testing.assert_allclose(
      found[i], np.mean([text[i] @ text[j] for j in nearest]), rtol=1e-9
    )
  with pytest.raises(types.InputError, match='neighbours'):
    neighbour_agreement.agreement(features, text, neighbours=9)


@pytest.mark.parametrize(
  ('features', 'text', 'message'),
  [
    (np.eye(5), np.eye(6), '5 rows and text of 6'),
    (np.diag([1, 1, np.nan, 1, 1]), np.eye(5), 'features of row 2'),
    (np.eye(5), np.diag([1, np.inf, 1, 1, 1]), 'text of row 1'),
  ],
)
def test_rows_that_have_no_neighbours_or_no_text_are_refused(
  features, text, message
):
  with pytest.raises(types.InputError, match=message):
    neighbour_agreement.agreement(features, text, neighbours=2)


def test_bags_count_rare_words_alone():
  tokens = np.array([[1, 2, 0], [1, 3, 3], [1, 2, 3]])
  mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0]])
  found = neighbour_agreement.bags(tokens, mask, size=5)
  np.testing.assert_allclose(found[:, 1], 0)  # All texts have it.
  np.testing.assert_allclose(found[0], [0, 0, 1, 0, 0])
  np.testing.assert_allclose(found[1], [0, 0, 0, 1, 0])
  np.testing.assert_allclose(found[2], [0, 0, 1, 0, 0])
