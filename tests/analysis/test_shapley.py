"""Shapley values and explanation maps against orders that are all counted."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from repjax import types
from repjax.analysis import games
from repjax.analysis import kernel_shapley
from repjax.analysis import redundancy
from repjax.analysis import shapley


def _game(value, dim):
  """The game of a function of one coalition."""
  return games.Game(
    lambda coalitions: np.asarray([value(x) for x in coalitions], float), dim
  )


def _random(dim, seed=0):
  table = np.random.default_rng([seed, dim]).normal(size=2**dim)
  return games.Game(lambda x: table[x @ (1 << np.arange(dim))], dim)


def _by_all_orders(game):
  """phi and E as the definition by orders has them, [d] and [d, d]."""
  dim = game.num_players
  phi, given = np.zeros(dim), np.zeros((dim, dim))
  orders = list(itertools.permutations(range(dim)))
  for order in orders:
    present = np.zeros(dim, bool)
    before = float(game.values(present[None])[0])
    for j in order:
      seen = present.copy()
      present[j] = True
      after = float(game.values(present[None])[0])
      phi[j] += after - before
      given[seen, j] += after - before
      before = after
  return phi / len(orders), given / len(orders)


_EXACT = {
  'exact': shapley.exact,
  'kernel': lambda game: kernel_shapley.kernel(game, num=2**game.num_players),
}
_ways = pytest.mark.parametrize('way', list(_EXACT.values()), ids=list(_EXACT))


@_ways
@pytest.mark.parametrize('dim', [1, 2, 3, 5])
def test_all_orders_are_counted(way, dim):
  game = _random(dim)
  phi, given = _by_all_orders(game)
  told = way(game)
  np.testing.assert_allclose(told.values, phi, atol=1e-12)
  np.testing.assert_allclose(told.interactions, given, atol=1e-12)
  assert told.values.sum() == pytest.approx(told.full - told.empty, abs=1e-12)
  assert not told.interactions_error.any()


@_ways
def test_both_parts_add_up(way):
  told = way(_random(9))
  off = ~np.eye(9, dtype=bool)
  both = told.interactions + told.without
  np.testing.assert_allclose(
    both[off], np.tile(told.values, (9, 1))[off], atol=1e-12
  )
  assert not np.diag(told.interactions).any()
  assert not np.diag(told.without).any()


def test_a_row_of_the_map_is_the_shapley_vector_of_the_masked_game():
  game = _random(6, seed=1)
  told = shapley.exact(game)
  for i in range(6):
    masked = games.Game(lambda x, i=i: game.values(x) * x[:, i], 6)
    phi, _ = _by_all_orders(masked) if i == 0 else (None, None)
    phi = shapley.exact(masked).values if phi is None else phi
    others = np.arange(6) != i
    np.testing.assert_allclose(
      told.interactions[i, others], phi[others], atol=1e-12
    )


@_ways
@pytest.mark.parametrize(
  ('value', 'given', 'phi'),
  [
    (lambda x: 3.0 * x[0] + x[1], [[0, 0.5], [1.5, 0]], [3, 1]),
    (lambda x: x[0] or x[1], [[0, 0], [0, 0]], [0.5, 0.5]),
    (lambda x: x[0] and x[1], [[0, 0.5], [0.5, 0]], [0.5, 0.5]),
    (lambda x: x[0] != x[1], [[0, -0.5], [-0.5, 0]], [0, 0]),
    # The smaller one is redundant given the larger one, and not conversely.
    (lambda x: max(2.0 * x[0], 1.0 * x[1]), [[0, 0], [0.5, 0]], [1.5, 0.5]),
  ],
  ids=['additive', 'or', 'and', 'xor', 'max'],
)
def test_games_with_known_maps(way, value, given, phi):
  told = way(_game(value, 2))
  np.testing.assert_allclose(told.interactions, given, atol=1e-12)
  np.testing.assert_allclose(told.values, phi, atol=1e-12)


def test_an_additive_game_has_half_of_every_weight_everywhere():
  weights = np.random.default_rng(2).normal(size=7)
  for way in _EXACT.values():
    told = way(games.Game(lambda x: x @ weights, 7))
    expected = np.tile(weights / 2, (7, 1)) * ~np.eye(7, dtype=bool)
    np.testing.assert_allclose(told.interactions, expected, atol=1e-12)


def test_sampled_maps_converge_and_know_their_errors():
  game = _random(8, seed=3)
  true = shapley.exact(game)
  off = ~np.eye(8, dtype=bool)
  nums, errors, scaled = (64, 256, 1024, 4096), [], []
  for num in nums:
    gaps = []
    for seed in range(8):
      told = shapley.permutations(game, num=num, seed=seed)
      assert told.values.sum() == pytest.approx(told.full - told.empty)
      gap = (told.interactions - true.interactions)[off]
      gaps.append(np.square(gap).mean())
      scaled.append(gap / told.interactions_error[off])
      scaled.append((told.values - true.values) / told.values_error)
    errors.append(np.sqrt(np.mean(gaps)))
  slope = np.polyfit(np.log(nums), np.log(errors), 1)[0]
  assert -0.6 < slope < -0.4
  assert 0.85 < np.concatenate(scaled).std() < 1.15


def test_a_kernel_of_few_coalitions_is_near_and_knows_its_errors():
  game = _random(11, seed=4)
  true = shapley.exact(game)
  off = ~np.eye(11, dtype=bool)
  scaled = []
  for seed in range(8):
    told = kernel_shapley.kernel(game, num=500, seed=seed)
    assert told.calls <= 502
    assert told.values.sum() == pytest.approx(told.full - told.empty)
    gap = told.interactions - true.interactions
    scaled.append((gap / np.where(off, told.interactions_error, 1))[off])
  assert 0.7 < np.concatenate(scaled).std() < 1.4


def test_drawn_coalitions_count_as_much_as_their_size_does_as_a_whole():
  # Worth 1 with 0 and four others: 0 brings that about where it comes fifth of
  # ten. Only coalitions of five are drawn.
  game = games.Game(lambda x: x[:, 0] & (x.sum(1) == 5), 10)
  told = kernel_shapley.kernel(game, num=1020, resamples=2)
  assert told.values[0] == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize('dim', [5, 12])
def test_interactions_cost_no_call_beyond_those_of_values(dim):
  asked = []
  game = _random(dim, seed=5)

  def counted(coalitions):
    asked.append(len(coalitions))
    return game.values(coalitions)

  counting = games.Game(counted, dim)
  told = shapley.permutations(counting, num=50)
  # Each order asks for d - 1 coalitions, and all share the empty and full one.
  assert told.calls == sum(asked) <= 50 * (dim - 1) + 2
  asked.clear()
  told = kernel_shapley.kernel(counting, num=300)
  assert told.calls == sum(asked) <= min(300, 2**dim - 2) + 2
  asked.clear()
  assert shapley.exact(counting).calls == sum(asked) == 2**dim


def test_bootstrap_says_how_sure_a_small_interaction_is():
  # 0 and 1 are redundant given each other; 2 adds .2 where 3 is, half the time.
  game = _game(lambda x: float(x[0] or x[1]) + 0.2 * (x[2] and x[3]), 4)
  told = shapley.permutations(game, num=300, seed=1)
  sure = shapley.within(told, 0.01, resamples=300)
  assert sure[0, 1] == sure[1, 0] == 1.0
  assert sure[2, 3] == sure[3, 2] == 0.0
  # Near the threshold neither is sure: as often as a normal law says.
  at = told.interactions[2, 3]
  assert 0.3 < shapley.within(told, at, resamples=300)[2, 3] < 0.7
  error = told.interactions_error[2, 3]
  above = shapley.within(told, at + error, resamples=2000)[2, 3]
  assert above == pytest.approx(0.84, abs=0.04)
  np.testing.assert_array_equal(
    shapley.within(shapley.exact(game), 0.01),
    np.abs(shapley.exact(game).interactions) <= 0.01,
  )


def test_a_single_drawn_pair_has_no_standard_error():
  told = kernel_shapley.kernel(_random(8), num=16)
  assert np.isfinite(told.values).all()
  assert np.isnan(told.values_error).all()
  assert np.isnan(told.interactions_error).all()


def test_what_cannot_be_explained_is_refused():
  with pytest.raises(types.InputError, match=r'2\^21 coalitions'):
    shapley.exact(games.Game(lambda x: x[:, 0], 21))
  for way in (shapley.exact, shapley.permutations, kernel_shapley.kernel):
    with pytest.raises(types.InputError, match='no players'):
      way(games.Game(lambda x: np.zeros(len(x)), 0))
  with pytest.raises(types.InputError, match='num must be'):
    shapley.permutations(_random(3), num=1)
  with pytest.raises(types.InputError, match='num must be'):
    kernel_shapley.kernel(_random(5), num=9)
  told = kernel_shapley.kernel(_random(11), num=100)
  with pytest.raises(types.InputError, match='explain by permutations'):
    shapley.within(told, 0.1)


def test_the_authors_code_on_a_forest():
  # What their `shapley_sampling.py` gave for values of a random forest on six
  # columns of breast cancers, with 12,800 orders a player (zero baseline).
  path = pathlib.Path(__file__).with_name('shapley_authors.json')
  golden = json.loads(path.read_text('utf-8'))
  table, num = np.asarray(golden['table']), golden['num']
  game = games.Game(lambda x: table[x @ (1 << np.arange(6))], 6)
  true = shapley.exact(game)
  error = shapley.permutations(game, num=num)
  theirs = np.asarray(golden['interactions'])
  off = ~np.eye(6, dtype=bool)
  gap = (theirs - true.interactions)[off] / error.interactions_error[off]
  assert abs(gap).max() < 4
  assert abs((golden['values'] - true.values) / error.values_error).max() < 4
  # Their rows are the given players, too: turned around it would be far off.
  turned = (theirs.T - true.interactions)[off] / error.interactions_error[off]
  assert abs(turned).max() > 100
  told = true._replace(values=np.asarray(golden['values']), interactions=theirs)
  edges = redundancy.graph(told, golden['threshold'])
  found = redundancy.structure(edges, theirs)
  assert [x.tolist() for x in found.groups] == golden['groups']
  for transform, scores in golden['pagerank'].items():
    ours = redundancy.influence(told, transform=transform, personal=False)
    # Theirs makes ten steps.
    np.testing.assert_allclose(ours, scores, atol=1e-3)
