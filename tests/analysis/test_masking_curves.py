"""What becomes of predictions when players are masked, counted by hand."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import games
from repjax.analysis import masking_curves
from repjax.analysis import redundancy

_WEIGHTS = np.asarray([1.0, 4.0, 2.0])


def test_areas_are_plain_means_above_the_empty_value():
  game = games.Game(lambda x: x @ _WEIGHTS - 2.0, 3)
  ranking = np.asarray([1, 2, 0])
  values, area = masking_curves.along(game, ranking, 'insertion')
  np.testing.assert_allclose(values, [-2, 2, 4, 5])
  assert area == pytest.approx((0 + 4 + 6) / 3)
  values, area = masking_curves.along(game, ranking, 'deletion')
  np.testing.assert_allclose(values, [5, 1, -1, -2])
  assert area == pytest.approx((7 + 3 + 1) / 3)
  # What is below the empty value counts for 0.
  game = games.Game(lambda x: x @ [-1.0, 1.0], 2)
  _, area = masking_curves.along(game, np.asarray([0, 1]), 'insertion')
  assert area == 0.0


def _masking(dim=3):
  def predict(rows):
    score = rows @ _WEIGHTS[:dim] - 3.0
    return np.stack([-score, score], -1)

  players = games.columns(dim, np.zeros(dim))
  return games.masking(predict, players, compiled=False)


def test_agreement_is_with_the_models_own_prediction():
  rows = np.asarray([[1.0, 1, 1], [1, 0, 1], [0, 1, 0]])
  present = np.asarray([[[1, 1, 1], [0, 1, 0], [1, 0, 1]]] * 3, bool)
  same = masking_curves.agreement(_masking(), rows, present)
  # Scores over 3: rows (4), (0), (1); with 1 alone (1), (-3), (1); without it
  # (0: no class above the other, the first is taken), (0), (-3).
  np.testing.assert_array_equal(
    same, [[True, True, False], [True, True, True], [True, True, False]]
  )
  one = masking_curves.agreement(_masking(), rows, present[:, 1])
  np.testing.assert_array_equal(one, same[:, 1:2])


def test_the_lowest_of_each_ranking_go_first():
  rankings = np.asarray([[2, 0, 1, 3], [3, 1, 2, 0]])
  found = masking_curves.lowest_masked(rankings, [0, 0.25, 0.5, 1])
  np.testing.assert_array_equal(
    found[0], [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(found[1, 2], [0, 1, 0, 1])


@pytest.mark.parametrize(
  ('share', 'gone'), [(0.04, 0), (0.28, 2), (0.3, 3), (0.29, 2), (0.99, 9)]
)
def test_no_more_than_the_share_of_a_ranking_goes(share, gone):
  rankings = np.random.default_rng(0).permutation(10)[None]
  found = masking_curves.lowest_masked(rankings, [share])
  assert (~found).sum() == gone
  hundred = masking_curves.lowest_masked(np.arange(100)[None], [share])
  assert (~hundred).sum() == round(100 * share)


@pytest.mark.parametrize(
  ('share', 'left'), [(0, 0), (0.3, 3), (0.55, 5), (1, 10)]
)
def test_so_many_of_each_group_stay(share, left):
  edges = np.zeros((13, 13), bool)
  edges[:10, :10] = True
  edges[10, 11] = edges[11, 10] = True
  found = redundancy.structure(
    edges & ~np.eye(13, dtype=bool), np.zeros((13, 13))
  )
  rng = np.random.default_rng(0)
  stays = masking_curves.groups_masked(found, share, rng=rng)
  assert stays[:10].sum() == left
  assert stays[10:12].sum() == int(2 * share)
  assert stays[12]
  others = {
    tuple(masking_curves.groups_masked(found, 0.5, rng=rng)) for _ in range(9)
  }
  assert len(others) > 1


def test_rankings_and_outputs_are_checked():
  game = games.Game(lambda x: x.sum(1), 3)
  with pytest.raises(types.InputError, match='names each of the 3 players'):
    masking_curves.along(game, np.asarray([0, 1, 1]), 'insertion')
  with pytest.raises(types.InputError, match='kind must be'):
    masking_curves.along(game, np.asarray([0, 1, 2]), 'both')
  one = games.masking(
    lambda x: x.sum(-1), games.columns(3, np.zeros(3)), compiled=False
  )
  with pytest.raises(types.InputError, match='two outputs'):
    masking_curves.agreement(one, np.ones((1, 3)), np.ones((1, 3), bool))
  with pytest.raises(types.InputError, match='shares must be'):
    masking_curves.lowest_masked(np.asarray([[0, 1, 2]]), [0.5, -0.5])


def test_a_model_that_says_nothing_agrees_with_nothing():
  silent = games.masking(
    lambda x: x * np.nan, games.columns(3, np.zeros(3)), compiled=False
  )
  with pytest.raises(types.NonFiniteError, match='NaN for row 0'):
    masking_curves.agreement(silent, np.ones((1, 3)), np.ones((1, 3), bool))
