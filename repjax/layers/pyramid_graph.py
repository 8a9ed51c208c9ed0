"""Host side: the graph of Pyraformer: who sees whom, and how far.

Liu et al., 'Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time
Series Modeling and Forecasting', ICLR 2022, section 3.1.
https://openreview.net/forum?id=0EXmFzUn5I
"""

import dataclasses
import functools
import itertools
from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid:
  """A tree over a sequence whose levels are chains.

  A node sees its neighbours at its own scale, its children and its parent.
  Nodes are numbered level by level, the finest first.

  Attributes:
    length: L, nodes of the finest level.
    children: C of each coarser level; () for no tree.
    adjacent: A, odd: how many nodes of its own scale one sees, itself included.
    leftover: Where the last level's nodes go that fill no group of C.
      'last_parent', as published (the authors' `get_mask`): the last parent
      takes them, too, and a level has floor(n / C) nodes. 'own_parent': they
      have one of their own, a level has ceil(n / C) nodes, and nobody sees more
      than A + C + 1.
  """

  length: int
  children: tuple[int, ...] = (4, 4, 4)
  adjacent: int = 3
  leftover: Literal['last_parent', 'own_parent'] = 'last_parent'

  def __post_init__(self):
    types.check_choice('leftover', self.leftover, ('last_parent', 'own_parent'))
    if self.length < 1 or self.adjacent < 1 or self.adjacent % 2 == 0:
      raise types.InputError(
        'A pyramid needs length >= 1 and an odd number of adjacent nodes; got '
        f'length={self.length}, adjacent={self.adjacent}'
      )
    if any(x < 2 for x in self.children):
      raise types.InputError(
        f'children must be at least 2 at every level; got {self.children}'
      )
    if not all(self.sizes):
      raise types.InputError(
        f'a level of the pyramid has no nodes: children={self.children} of '
        f'length={self.length} give levels of {self.sizes}; give a longer '
        'input, or fewer levels'
      )

  @property
  def sizes(self) -> tuple[int, ...]:
    """Nodes of each level, the finest first."""
    sizes = [self.length]
    for count in self.children:
      extra = count - 1 if self.leftover == 'own_parent' else 0
      sizes.append((sizes[-1] + extra) // count)
    return tuple(sizes)

  @property
  def num_nodes(self) -> int:
    """Nodes of all levels."""
    return sum(self.sizes)

  def parents(self, level: int) -> np.ndarray:
    """Place within the next level of each node's parent, [n_level]."""
    places = np.arange(self.sizes[level]) // self.children[level]
    return np.minimum(places, self.sizes[level + 1] - 1)

  def ancestors(self, node: int) -> np.ndarray:
    """A node of the finest level and those above it, one a level, [S]."""
    starts, found = np.cumsum([0, *self.sizes]), [node]
    for level in range(len(self.children)):
      found.append(int(self.parents(level)[found[-1]]))
    return np.asarray(found) + starts[:-1]


class Neighbours(NamedTuple):
  """Lists of neighbours, padded to one length K.

  The graph has no direction: who is seen by a node sees it.

  Attributes:
    nodes: int32 [n, K]; 0 where `valid` is False.
    valid: bool [n, K].
    back: int32 [n, K]: node i stands at place back[i, k] % K in the list of
      nodes[i, k]; as a number in the lists of all, [n * K].
  """

  nodes: np.ndarray
  valid: np.ndarray
  back: np.ndarray


@functools.lru_cache(maxsize=16)
def neighbours(pyramid: Pyramid) -> Neighbours:
  """Whom each node sees, in O(n K) time and memory."""
  queries, keys = _edges(pyramid)
  order = np.lexsort((keys, queries))
  queries, keys = queries[order], keys[order]
  num_nodes = pyramid.num_nodes
  degrees = np.bincount(queries, minlength=num_nodes)
  first = np.cumsum(degrees) - degrees
  places = np.arange(len(queries)) - first[queries]
  width = int(degrees.max())
  shape = (num_nodes, width)
  index, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
  index[queries, places], valid[queries, places] = keys, True
  # Sorted by (key, query), edges stand in the order of their own reverses.
  reverse = np.lexsort((queries, keys))
  back = np.zeros(shape, np.int32)
  back[queries, places] = (queries * width + places)[reverse]
  for x in (index, valid, back):
    x.flags.writeable = False  # They are shared by all calls.
  return Neighbours(index, valid, back)


def _edges(pyramid):
  """(who sees, who is seen), one entry an edge and direction."""
  starts = np.cumsum([0, *pyramid.sizes])
  queries, keys = [], []
  for start, size in zip(starts, pyramid.sizes, strict=False):
    reach = pyramid.adjacent // 2
    for offset in range(-reach, reach + 1):
      nodes = np.arange(max(0, -offset), min(size, size - offset))
      queries.append(start + nodes)
      keys.append(start + nodes + offset)
  for level, (below, above) in enumerate(itertools.pairwise(starts[:-1])):
    child = below + np.arange(pyramid.sizes[level])
    parent = above + pyramid.parents(level)
    queries += [child, parent]
    keys += [parent, child]
  return np.concatenate(queries), np.concatenate(keys)


class Inspection(NamedTuple):
  """What is known of a pyramid before anything is trained.

  Attributes:
    sizes: Nodes of each level.
    num_edges: Pairs (who sees, who is seen), each node's own included.
    edges_per_step: Edges over the length of the sequence.
    share_of_dense: Edges over those of full attention between all nodes.
    max_degree: The most that one node sees.
    end_to_end: Hops from the first node of the sequence to the last.
    diameter: The most hops between any two nodes; their number where some
      are not connected.
    receptive_field: Steps that a forecast hears from within the given number
      of layers (`heard_after`).
    warning: '' or what is wrong with it, in one line.
  """

  sizes: tuple[int, ...]
  num_edges: int
  edges_per_step: float
  share_of_dense: float
  max_degree: int
  end_to_end: int
  diameter: int
  receptive_field: int
  warning: str

  def __str__(self) -> str:
    levels = ' / '.join(str(x) for x in self.sizes)
    lines = [
      f'levels {levels}: {sum(self.sizes)} nodes',
      f'{self.num_edges:,} edges, {self.edges_per_step:.2f} a step, '
      f'{self.share_of_dense:.1%} of dense; one node sees {self.max_degree} '
      'at most',
      f'{self.end_to_end} hops from end to end, diameter {self.diameter}',
      f'a forecast hears from {self.receptive_field} of {self.sizes[0]} steps',
    ]
    return '\n'.join([*lines, *([self.warning] if self.warning else [])])


def inspect(pyramid: Pyramid, *, num_layers: int) -> Inspection:
  """Sizes, edges and reach of a pyramid; searches breadth first.

  The paper's claim of O(1) hops between any two nodes holds for C that grows
  with L^(1 / (S - 1)), not for a fixed C: this is where it shows.

  Args:
    pyramid: The graph.
    num_layers: N, layers of attention, each of which goes one hop.
  """
  num_nodes, length = pyramid.num_nodes, pyramid.length
  last = hops(pyramid, length - 1)
  # Twice from the farthest node: exact for chains of trees (see its test).
  far = max(
    int(hops(pyramid, start).max())
    for start in {0, length - 1, int(last.argmax())}
  )
  num_edges = int(neighbours(pyramid).valid.sum())
  heard = heard_after(pyramid)
  reached = int((heard <= num_layers).sum())
  warning = ''
  if reached < length:
    needed = int(heard.max())
    remedy = (
      f'Give more layers (num_layers >= {needed}), more levels, or more '
      'children a node.'
      if needed < num_nodes
      else 'Some are not connected at all: raise adjacent.'
    )
    warning = (
      f'WARNING: {num_layers} layers do not join the ends: a forecast hears '
      f'from {reached} of {length} steps. {remedy}'
    )
  return Inspection(
    sizes=pyramid.sizes,
    num_edges=num_edges,
    edges_per_step=num_edges / length,
    share_of_dense=num_edges / num_nodes**2,
    max_degree=int(neighbours(pyramid).valid.sum(1).max()),
    end_to_end=int(last[0]),
    diameter=far,
    receptive_field=reached,
    warning=warning,
  )


def heard_after(pyramid: Pyramid) -> np.ndarray:
  """Layers after which a forecast hears from each step, int [L].

  What is read out are the last step and its ancestors, and a coarse node is
  made of the steps below it before the first layer, so that of two nodes of the
  top N layers join those that are (A - 1) N / 2 apart, as the paper counts. n
  where there is no way.
  """
  read = pyramid.ancestors(pyramid.length - 1)
  near = np.min([hops(pyramid, int(x)) for x in read], axis=0)
  heard = near[: pyramid.length].copy()
  start, width = pyramid.length, 1
  for size, count in zip(pyramid.sizes[1:], pyramid.children, strict=True):
    width *= count
    above = np.repeat(near[start : start + size], width)[: pyramid.length]
    heard[: len(above)] = np.minimum(heard[: len(above)], above)
    start += size
  return heard


def hops(pyramid: Pyramid, node: int) -> np.ndarray:
  """Hops from a node to each of all, int [n]; n where there is no way."""
  index, valid, _ = neighbours(pyramid)
  nowhere = pyramid.num_nodes
  found = np.full(nowhere, nowhere)
  found[node], front, distance = 0, np.array([node]), 0
  while front.size:
    distance += 1
    seen = np.unique(index[front][valid[front]])
    front = seen[found[seen] == nowhere]
    found[front] = distance
  return found
