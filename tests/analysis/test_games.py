"""Games of models on rows of which only some players are seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import ensemble

from repjax import types
from repjax.analysis import games

_SOME = np.asarray(
  [[0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 1]], bool
)


def _linear(x):
  return jnp.stack([x.sum(-1), (x * x).sum(-1)], -1)


@pytest.mark.parametrize('compiled', [True, False])
@pytest.mark.parametrize('at_once', [2, 100])
def test_absent_columns_have_the_baseline(compiled, at_once):
  row, baseline = np.asarray([1.0, 2.0, 3.0]), np.asarray([0.5, -1.0, 0.0])
  players = games.columns(3, baseline)
  predict = _linear if compiled else lambda x: np.asarray(_linear(x))
  made = games.masking(predict, players, compiled=compiled, at_once=at_once)
  seen = np.where(_SOME, row, baseline)
  expected = np.stack([seen.sum(-1), (seen**2).sum(-1)], -1)
  np.testing.assert_allclose(made.outputs(row, _SOME), expected, rtol=1e-6)
  # Without a name for it, what the whole row has most of is explained.
  np.testing.assert_allclose(
    made.game(row).values(_SOME), expected[:, 1], rtol=1e-6
  )
  np.testing.assert_allclose(
    made.game(row, output=0).values(_SOME), expected[:, 0], rtol=1e-6
  )


def test_several_baselines_are_averaged_and_counted():
  row = np.asarray([1.0, 2.0, 3.0])
  background = np.random.default_rng(0).normal(size=(7, 3))
  made = games.masking(_linear, games.columns(3, background))
  values, calls = games.evaluate(made.game(row, output=1), _SOME)
  expected = [
    np.mean([(np.where(x, row, b) ** 2).sum() for b in background])
    for x in _SOME
  ]
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert calls == 4 * 7  # One coalition is there twice.


def test_columns_of_one_word_belong_together():
  players = games.columns([0, 1, 1, 2], np.zeros(4), names=('a', 'b', 'c'))
  made = games.masking(lambda x: x, players)
  np.testing.assert_array_equal(
    made.outputs(np.arange(1.0, 5.0), np.asarray([[0, 1, 0], [1, 0, 1]], bool)),
    [[0, 2, 3, 0], [1, 0, 0, 4]],
  )


def test_equal_coalitions_of_many_players_are_asked_for_once():
  rng = np.random.default_rng(0)
  for dim in (3, 40, 64, 70, 200):
    coalitions = rng.random((50, dim)) < 0.5
    coalitions = coalitions[rng.integers(0, 50, 300)]
    weights = rng.normal(size=dim)
    game = games.Game(lambda x, weights=weights: x @ weights, dim)
    values, calls = games.evaluate(game, coalitions)
    np.testing.assert_allclose(values, coalitions @ weights)
    assert calls == len(np.unique(coalitions, axis=0))


def test_rectangles_of_an_image():
  players = games.grid((4, 6, 2), rows=2, columns=3, baseline=(7.0, 8.0))
  np.testing.assert_array_equal(players.owner[:2], [[0, 0, 1, 1, 2, 2]] * 2)
  np.testing.assert_array_equal(players.owner[2:], [[3, 3, 4, 4, 5, 5]] * 2)
  made = games.masking(lambda x: x.reshape(len(x), -1), players)
  image = np.ones((4, 6, 2), np.float32)
  seen = made.outputs(image, np.arange(6)[None] != 4).reshape(4, 6, 2)
  expected = image.copy()
  expected[2:, 2:4] = 7.0, 8.0
  np.testing.assert_array_equal(seen, expected)


def test_superpixels_follow_colours_and_places():
  image = np.zeros((12, 12, 3), np.float32)
  image[:, 5:] = 1.0
  found = games.superpixels(image, 4, compactness=0.1)
  # No part has both colours, and every part owns something.
  for part in range(found.owner.max() + 1):
    assert np.unique(image[found.owner == part]).size == 1
  assert len(found.names) >= 2
  even = games.superpixels(np.zeros((8, 8, 1)), 4)
  assert sorted(np.bincount(even.owner.ravel())) == [16] * 4
  for shape in ((8, 512, 1), (512, 8, 1)):
    assert len(games.superpixels(np.zeros(shape), 10).names) == 10


def test_superpixels_begin_with_colours_in_the_middles_of_a_grid():
  # The middles of two parts of five are .75 and 3.25: colours 3 and 6, and 0 is
  # nearer to the first. From 0 and 6, or from 3 and 0, it would go otherwise.
  image = np.reshape([0.0, 3.0, 3.0, 6.0, 0.0], (1, 5, 1))
  found = games.superpixels(image, 2, compactness=0.01)
  np.testing.assert_array_equal(
    found.owner == found.owner[0, 3], image[..., 0] == 6
  )


def test_tokens_are_players_but_for_special_ones():
  ids = np.asarray([101, 7, 8, 7, 102, 0, 0])
  players = games.tokens(ids, absent=3, always=(101, 102, 0))
  np.testing.assert_array_equal(players.owner, [-1, 0, 1, 2, -1, -1, -1])
  assert players.names == ('7', '8', '7')
  made = games.masking(lambda x: x.astype(jnp.float32), players)
  np.testing.assert_array_equal(
    made.outputs(ids, np.asarray([[1, 0, 0]], bool)),
    [[101, 7, 3, 3, 102, 0, 0]],
  )


def test_estimators_of_scikit_learn_are_black_boxes():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(200, 3))
  label = (rows[:, 0] + rows[:, 1] > 0).astype(int)
  for model in (
    ensemble.RandomForestClassifier(10, random_state=0),
    ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0),
  ):
    model.fit(rows, label)
    made = games.masking(
      model.predict_proba,
      games.columns(np.int64(3), np.zeros(3)),
      compiled=False,
    )
    np.testing.assert_allclose(
      made.outputs(rows[0], _SOME),
      model.predict_proba(np.where(_SOME, rows[0], 0.0)),
    )


def test_mistakes_are_said_in_one_line():
  players = games.columns(3, np.zeros(3))
  made = games.masking(_linear, players)
  with pytest.raises(types.InputError, match=r'shape \(4,\) and its baseline'):
    made.outputs(np.zeros(4), _SOME)
  with pytest.raises(types.InputError, match='rows of shape'):
    games.columns(3, np.zeros(4))
  with pytest.raises(types.InputError, match='own nothing'):
    games.columns([0, 2, 2], np.zeros(3))
  with pytest.raises(types.InputError, match='3 players need'):
    games.columns(3, np.zeros(3), names=('a', 'b'))
  for owner in ([-1, -1], []):
    nobody = games.columns(np.asarray(owner, int), np.zeros(len(owner)))
    with pytest.raises(types.InputError, match='no players'):
      games.masking(_linear, nobody)
  with pytest.raises(types.InputError, match='no players'):
    games.evaluate(games.Game(lambda x: x.sum(1), 0), np.zeros((1, 0), bool))
  with pytest.raises(types.InputError, match='no baseline'):
    games.columns(3, np.zeros((0, 3)))
  with pytest.raises(types.InputError, match=r'output must be in \[0, 1\]'):
    games.evaluate(made.game(np.zeros(3), output=2), _SOME)
  broken = games.masking(lambda x: jnp.log(x - 1.0), players)
  with pytest.raises(types.NonFiniteError, match=r'\[1\] are present'):
    games.evaluate(broken.game(np.full(3, 2.0), 0), _SOME[3:4])
  with pytest.raises(types.InputError, match='one value a coalition'):
    games.evaluate(games.Game(lambda x: x, 3), _SOME)
