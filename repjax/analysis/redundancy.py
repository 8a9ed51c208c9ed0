"""Host side: what can be left out, and what matters most, by directed graphs.

Masoomi et al., 'Explanations of Black-Box Models Based on Directional Feature
Interactions', ICLR 2022. https://arxiv.org/abs/2304.07670

Two graphs are made of an explanation map E (`repjax.analysis.shapley`). Edges
of G weigh E[i, j], what j still adds where i is. The redundancy graph H has an
edge from i to j where that is nothing, |E[i, j]| <= threshold: edges lead to
what is redundant. Players that can be reached from each other, strongly
connected groups of H, are mutually redundant, any one of them will do; what has
edges in but not out (a sink) is redundant given others, what has edges out but
not in (a source) makes others redundant.

An exact 0 of a monotone game makes H transitive. A threshold above 0 does not:
`Structure.looseness` says by how much a group is one.
"""

from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from repjax import types
from repjax.analysis import shapley


class Structure(NamedTuple):
  """Who makes whom redundant.

  Attributes:
    component: Number of each player's strongly connected component, [d].
    groups: Components of two players or more: mutually redundant, sorted.
    looseness: Largest |E[i, j]| inside of each group.
    sources: Players of components with edges out and none in, sorted.
    sinks: Players of components with edges in and none out, sorted.
    alone: Players of components with neither, sorted.
  """

  component: np.ndarray
  groups: tuple[np.ndarray, ...]
  looseness: tuple[float, ...]
  sources: np.ndarray
  sinks: np.ndarray
  alone: np.ndarray


def graph(
  explanation: shapley.Explanation,
  threshold: float,
  *,
  confidence: float = 0.0,
  seed: int = 0,
) -> np.ndarray:
  """The redundancy graph H, [d, d] bool, without edges to oneself.

  Args:
    explanation: Of a game.
    threshold: On |E[i, j]|, in units of the game's values: of probabilities
      another one than of logits. The paper has 1e-5 to 1e-2.
    confidence: Share of bootstrap samples of the orders that must be below the
      threshold; 0 for the estimate alone, as in the paper.
    seed: Of these samples.
  """
  types.check_range('[0, inf)', threshold=threshold)
  types.check_range('[0, 1]', confidence=confidence)
  edges = np.abs(explanation.interactions) <= threshold
  if confidence:
    sure = shapley.within(explanation, threshold, seed=seed)
    edges &= sure >= confidence
  np.fill_diagonal(edges, False)
  return edges


def structure(edges: np.ndarray, interactions: np.ndarray) -> Structure:
  """Groups, sources and sinks of a redundancy graph.

  The authors' code takes for sources and sinks the lowest and the highest
  PageRank of each weakly connected piece of the condensed graph; these here are
  what the paper defines, all of them, whatever the shape of the graph.

  Args:
    edges: H, [d, d].
    interactions: E, for the looseness of groups, [d, d].
  """
  number, component = csgraph.connected_components(
    sparse.csr_matrix(edges), directed=True, connection='strong'
  )
  members = [np.flatnonzero(component == c) for c in range(number)]
  groups = sorted((x for x in members if len(x) > 1), key=lambda x: x[0])
  given, measured = np.nonzero(edges)
  across = component[given] != component[measured]
  has_out = np.isin(component, component[given[across]])
  has_in = np.isin(component, component[measured[across]])
  return Structure(
    component=component,
    groups=tuple(groups),
    looseness=tuple(
      float(np.abs(interactions[np.ix_(x, x)]).max()) for x in groups
    ),
    sources=np.flatnonzero(has_out & ~has_in),
    sinks=np.flatnonzero(has_in & ~has_out),
    alone=np.flatnonzero(~has_in & ~has_out),
  )


def kept(found: Structure, values: np.ndarray) -> np.ndarray:
  """Who stays where all that is redundant goes, [d] bool.

  Of each component that no edge leads to, the player with the largest Shapley
  value; all others are redundant given those.

  Args:
    found: The structure of a redundancy graph.
    values: Shapley values, [d].
  """
  stays = np.zeros(len(values), bool)
  heads = np.union1d(found.sources, found.alone)
  for component in np.unique(found.component[heads]):
    members = np.flatnonzero(found.component == component)
    stays[members[values[members].argmax()]] = True
  return stays


def pagerank(
  weights: np.ndarray,
  *,
  damping: float = 0.85,
  restart: np.ndarray | None = None,
) -> np.ndarray:
  """How often a walk along weighted edges is at each node, [d].

  Page, Brin, Motwani and Winograd, 'The PageRank Citation Ranking', 1999
  (http://ilpubs.stanford.edu:8090/422). The stationary distribution itself, by
  one linear system, no iteration.

  Args:
    weights: Of edges from row to column, [d, d], not negative.
    damping: Share of steps along edges; others, and those from a node without
      edges, go to a node drawn from `restart`.
    restart: Weights of where walks begin again, [d]; equal by default.

  Raises:
    InputError: A weight is negative or not finite.
  """
  types.check_range('[0, 1)', damping=damping)
  weights = np.asarray(weights, float)
  dim = len(weights)
  restart = np.ones(dim) if restart is None else np.asarray(restart, float)
  for name, x in (('weights', weights), ('restart', restart)):
    if not (np.isfinite(x).all() and (x >= 0).all()):
      raise types.InputError(f'{name} must be finite and 0 or more.')
  if not restart.any():
    raise types.InputError('restart must have a weight above 0.')
  restart = restart / restart.sum()
  total = weights.sum(1, keepdims=True)
  steps = np.where(total > 0, weights / np.where(total > 0, total, 1), restart)
  return np.linalg.solve(
    np.eye(dim) - damping * steps.T, (1 - damping) * restart
  )


def influence(
  explanation: shapley.Explanation,
  *,
  transform: Literal['softplus', 'relu', 'abs', 'sigmoid'] = 'softplus',
  damping: float = 0.85,
  personal: bool = True,
) -> np.ndarray:
  """PageRank of G: who matters given those that matter, [d].

  As in the authors' code the diagonal of E, 0, is transformed with the rest, so
  that walks by 'softplus' and 'sigmoid' may stay where they are.

  Args:
    explanation: Of a game.
    transform: What makes weights of E, which may be negative.
    damping: Share of steps along edges, 0.85 in the paper.
    personal: Whether walks begin again by Shapley values, the positive ones;
      where there are none, anywhere. (There the authors' code takes off the
      largest, and so begins at its player alone.)
  """
  transforms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'softplus': lambda x: np.logaddexp(0, x),
    'relu': lambda x: np.maximum(x, 0),
    'abs': np.abs,
    'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
  }
  types.check_choice('transform', transform, tuple(transforms))
  positive = np.maximum(explanation.values, 0)
  return pagerank(
    transforms[transform](explanation.interactions),
    damping=damping,
    restart=positive if personal and positive.any() else None,
  )
