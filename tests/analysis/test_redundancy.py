"""Graphs of redundancy against what formulas make redundant."""

import itertools

import numpy as np
import pytest

from repjax import types
from repjax.analysis import games
from repjax.analysis import redundancy
from repjax.analysis import shapley


def _told(value, dim):
  return shapley.exact(
    games.Game(lambda x: np.asarray([value(y) for y in x], float), dim)
  )


def _structure(told, threshold=1e-9):
  edges = redundancy.graph(told, threshold)
  return redundancy.structure(edges, told.interactions)


def test_planted_groups_are_found_exactly():
  # Two saturating groups, one feature alone, one that says nothing.
  told = _told(
    lambda x: 2.0 * (x[0] or x[1]) + (x[2] or x[3] or x[4]) + x[5], 7
  )
  found = _structure(told)
  assert [x.tolist() for x in found.groups] == [[0, 1], [2, 3, 4]]
  assert found.looseness == (0.0, 0.0)
  assert found.sinks.tolist() == [6]
  assert found.sources.tolist() == [0, 1, 2, 3, 4, 5]
  kept = redundancy.kept(found, told.values)
  assert kept[[0, 1]].sum() == kept[[2, 3, 4]].sum() == kept[5] == 1
  assert not kept[6]


def test_a_chain_points_from_the_largest_to_the_smallest():
  weights = np.asarray([1.0, 4.0, 3.0, 2.0])
  told = _told(lambda x: (x * weights).max(), 4)
  edges = redundancy.graph(told, 1e-9)
  order = np.argsort(-weights)
  for i, j in itertools.permutations(range(4), 2):
    assert edges[i, j] == (weights[i] > weights[j])
  found = _structure(told)
  assert not found.groups
  assert found.sources.tolist() == [order[0]]
  assert found.sinks.tolist() == [order[-1]]
  assert redundancy.kept(found, told.values).nonzero()[0] == [order[0]]
  for transform in ('softplus', 'relu', 'abs'):
    score = redundancy.influence(told, transform=transform)
    np.testing.assert_array_equal(np.argsort(-score), order)


def test_an_additive_game_has_nothing_redundant():
  told = _told(lambda x: float(x @ [3.0, 1.0, 2.0]), 3)
  found = _structure(told)
  assert not found.groups
  assert found.alone.tolist() == [0, 1, 2]
  assert redundancy.kept(found, told.values).all()
  score = redundancy.influence(told)
  np.testing.assert_array_equal(np.argsort(-score), [0, 2, 1])


def test_walks_begin_anywhere_where_no_player_adds():
  told = _told(lambda x: -float(x @ [3.0, 1.0, 2.0]), 3)
  np.testing.assert_array_equal(
    redundancy.influence(told), redundancy.influence(told, personal=False)
  )


def test_structure_of_any_graph_is_that_of_reachable_nodes():
  rng = np.random.default_rng(0)
  for _ in range(30):
    edges = (rng.random((7, 7)) < 0.15) & ~np.eye(7, dtype=bool)
    reach = np.linalg.matrix_power(np.eye(7) + edges, 7) > 0
    same = reach & reach.T
    found = redundancy.structure(edges, np.zeros((7, 7)))
    groups = {tuple(np.flatnonzero(x)) for x in same if x.sum() > 1}
    assert {tuple(x) for x in found.groups} == groups
    for i in range(7):
      has_out = (reach[i] & ~same[i]).any()
      has_in = (reach[:, i] & ~same[i]).any()
      assert (i in found.sources) == (has_out and not has_in)
      assert (i in found.sinks) == (has_in and not has_out)
      assert (i in found.alone) == (not has_in and not has_out)


def test_kept_players_reach_all_others_and_are_the_largest_of_their_group():
  rng = np.random.default_rng(1)
  for _ in range(30):
    edges = (rng.random((6, 6)) < 0.25) & ~np.eye(6, dtype=bool)
    found = redundancy.structure(edges, np.zeros((6, 6)))
    values = rng.normal(size=6)
    kept = redundancy.kept(found, values)
    reach = np.linalg.matrix_power(np.eye(6) + edges, 6) > 0
    assert reach[kept].any(0).all()
    for i in np.flatnonzero(kept):
      assert values[i] == values[reach[i] & reach[:, i]].max()


def test_a_group_of_a_high_threshold_says_how_loose_it_is():
  told = _told(lambda x: max(2.0 * x[0], 1.9 * x[1]), 2)
  assert not _structure(told).groups
  found = _structure(told, threshold=0.1)
  assert [x.tolist() for x in found.groups] == [[0, 1]]
  assert found.looseness[0] == pytest.approx(0.05)


def test_edges_may_have_to_be_sure():
  told = shapley.permutations(
    games.Game(lambda x: (x[:, 0] & x[:, 1]) * 0.1 + x[:, 2] * 1.0, 3),
    num=60,
    seed=3,
  )
  at = abs(told.interactions[0, 1]) + 1e-9  # As near as can be.
  assert redundancy.graph(told, at)[0, 1]
  assert not redundancy.graph(told, at, confidence=0.95)[0, 1]
  assert redundancy.graph(told, 0.2, confidence=0.95)[0, 1]


def _walk(weights, damping, restart):
  rank = restart
  total = weights.sum(1, keepdims=True)
  steps = np.where(total > 0, weights / np.maximum(total, 1e-300), restart)
  for _ in range(500):
    rank = damping * rank @ steps + (1 - damping) * restart
  return rank


def test_pagerank_is_where_a_walk_ends():
  rng = np.random.default_rng(2)
  weights = rng.random((6, 6)) * (rng.random((6, 6)) < 0.4)
  weights[2] = 0.0  # Leads nowhere.
  restart = rng.random(6)
  for begin in (None, restart):
    even = np.full(6, 1 / 6) if begin is None else begin / begin.sum()
    found = redundancy.pagerank(weights, damping=0.7, restart=begin)
    np.testing.assert_allclose(found, _walk(weights, 0.7, even), atol=1e-12)
    assert found.sum() == pytest.approx(1.0)


def test_weights_that_are_none_are_refused():
  with pytest.raises(types.InputError, match='weights must be'):
    redundancy.pagerank(-np.ones((2, 2)))
  with pytest.raises(types.InputError, match='a weight above 0'):
    redundancy.pagerank(np.ones((2, 2)), restart=np.zeros(2))
  told = _told(lambda x: float(x[0]), 2)
  with pytest.raises(types.InputError, match='transform must be'):
    redundancy.influence(told, transform='none')
  with pytest.raises(types.InputError, match='threshold must be'):
    redundancy.graph(told, -1.0)
