"""Pyramidal attention: dense attention under the mask of its graph."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import pyramid
from repjax.layers import pyramid_graph


def _graph(**fields):
  return pyramid_graph.Pyramid(**fields)


def _mask(graph):
  """Oracle: who sees whom, bool [n, n], by loops over the definition."""
  sizes = list(graph.sizes)
  starts = np.cumsum([0, *sizes])
  seen = np.zeros((graph.num_nodes,) * 2, bool)
  for start, size in zip(starts, sizes, strict=False):
    for i, j in itertools.product(range(size), repeat=2):
      seen[start + i, start + j] = abs(i - j) <= graph.adjacent // 2
  for level, count in enumerate(graph.children):
    for i in range(sizes[level]):
      parent = min(i // count, sizes[level + 1] - 1)
      child, parent = starts[level] + i, starts[level + 1] + parent
      seen[child, parent] = seen[parent, child] = True
  return seen


def _distances(seen):
  """Oracle: hops between all nodes, by powers of the mask."""
  found = np.where(np.eye(len(seen), dtype=bool), 0, len(seen))
  reach = np.eye(len(seen), dtype=bool)
  for distance in range(1, len(seen)):
    reach = reach @ seen
    found[(found == len(seen)) & reach] = distance
  return found


_GRAPHS = (
  dict(length=64),
  dict(length=169),
  dict(length=50, children=(5, 3), adjacent=5),
  dict(length=50, children=(5, 3), leftover='own_parent'),
  dict(length=23, children=(2, 2, 2), adjacent=1),
  dict(length=9, children=()),
)


@pytest.mark.parametrize('fields', _GRAPHS)
def test_lists_of_neighbours_are_those_of_the_definition(fields):
  graph = _graph(**fields)
  index, valid, back = pyramid_graph.neighbours(graph)
  seen = np.zeros((graph.num_nodes,) * 2, bool)
  for i, (row, real) in enumerate(zip(index, valid, strict=True)):
    assert len(set(row[real])) == real.sum()
    seen[i, row[real]] = True
  np.testing.assert_array_equal(seen, _mask(graph))
  # `back` leads from an edge to its reverse.
  width = index.shape[1]
  for i, k in np.argwhere(valid):
    other, place = divmod(back[i, k], width)
    assert (other, index[other, place]) == (index[i, k], i)


@pytest.mark.parametrize('fields', _GRAPHS)
def test_the_inspector_measures_what_a_search_of_all_pairs_does(fields):
  graph = _graph(**fields)
  distances = _distances(_mask(graph))
  found = pyramid_graph.inspect(graph, num_layers=2)
  assert found.diameter == distances.max()
  assert found.end_to_end == distances[0, graph.length - 1]
  heard = pyramid_graph.heard_after(graph)
  assert found.receptive_field == (heard <= 2).sum()
  assert bool(found.warning) == (heard.max() > 2)
  assert found.num_edges == _mask(graph).sum()
  assert found.max_degree == _mask(graph).sum(1).max()
  wide = pyramid_graph.inspect(graph, num_layers=int(heard.max()))
  assert not wide.warning
  assert ('not connected' in found.warning) == (graph.adjacent == 1)


def test_steps_are_heard_through_the_nodes_that_are_made_of_them():
  # As gradients say, with one layer: tokens 16 to 23.
  found = pyramid_graph.inspect(_graph(length=24, children=(4,)), num_layers=1)
  assert found.receptive_field == 8
  # Published for ETTh1: n_S - 1 = 1 <= (A - 1) N / 2.
  found = pyramid_graph.inspect(_graph(length=169), num_layers=4)
  assert (found.receptive_field, found.warning) == (169, '')
  found = pyramid_graph.inspect(_graph(length=1024), num_layers=4)
  assert found.receptive_field == 5 * 64
  assert 'do not join the ends' in found.warning


def test_edges_grow_linearly():
  # Of 1.328 L nodes each sees A = 3 of its level, and .328 L edges lead up and
  # .328 L * 4 = 1.312 L down and up again: 3.98 + 2 * 1.312 = 6.6.
  for length in (64, 256, 1024, 4096, 16_384):
    index = pyramid_graph.neighbours(_graph(length=length)).valid
    assert abs(index.sum() / length / 6.6 - 1) < 0.03


def test_hops_between_ends_as_published_and_with_few_nodes_on_top():
  fixed, grown = [], []
  for length in (64, 256, 1024, 4096):
    fixed.append(pyramid_graph.inspect(_graph(length=length), num_layers=4))
    count = round(length ** (1 / 3))
    grown.append(
      pyramid_graph.inspect(
        _graph(length=length, children=(count,) * 3), num_layers=4
      )
    )
  assert [x.end_to_end for x in fixed] == [6, 9, 21, 69]
  assert [x.end_to_end for x in grown] == [6, 6, 6, 6]
  assert 'do not join the ends' in fixed[2].warning
  assert str(fixed[2]).endswith(fixed[2].warning)


def test_the_published_graph_of_etth1():
  graph = _graph(length=169)
  assert graph.sizes == (169, 42, 10, 2)
  assert pyramid_graph.neighbours(graph).valid.sum() == 1103
  assert graph.ancestors(168).tolist() == [168, 210, 220, 222]
  own = _graph(length=169, leftover='own_parent')
  assert own.sizes == (169, 43, 11, 3)
  assert pyramid_graph.neighbours(own).valid.sum(1).max() <= 8


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(length=60), 'a level of the pyramid has no nodes'),
    (dict(length=64, adjacent=2), 'odd number of adjacent'),
    (dict(length=64, children=(1,)), 'children must be at least 2'),
    (dict(length=64, leftover='none'), 'leftover must be one of'),
  ],
)
def test_graphs_that_cannot_be(fields, message):
  with pytest.raises(types.InputError, match=message):
    _graph(**fields)


def _dense(query, key, value, seen):
  """Oracle: masked dense attention in NumPy, float64."""
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) / query.shape[-1] ** 0.5
  scores = np.where(seen, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqk,bkhd->bqhd', weights, value)


def _inputs(graph, seed=0, batch=2, heads=2, dim=3):
  rng = np.random.default_rng(seed)
  shape = (batch, graph.num_nodes, heads, dim)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize('in_blocks', [False, True])
@pytest.mark.parametrize('fields', _GRAPHS[1:4])
def test_it_is_dense_attention_under_the_mask_forward_and_backward(
  fields, in_blocks, monkeypatch
):
  if in_blocks:  # Of 10 nodes, and the last block meets the one before.
    monkeypatch.setattr(pyramid, '_BLOCK_NUMBERS', 1)
    monkeypatch.setattr(pyramid, '_SMALLEST_BLOCK', 10)
  graph = _graph(**fields)
  query, key, value, weights = _inputs(graph)
  attend = pyramid.Pyramidal(pyramid=graph)
  seen = _mask(graph)
  np.testing.assert_allclose(
    jax.jit(lambda *x: attend(*x))(query, key, value),
    _dense(query, key, value, seen),
    atol=1e-5,
  )

  def masked(query, key, value):
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, precision='highest')
    scores = jnp.where(seen, scores / query.shape[-1] ** 0.5, -jnp.inf)
    return jnp.einsum(
      'bhqk,bkhd->bqhd', jax.nn.softmax(scores), value, precision='highest'
    )

  def gradient(fn):
    loss = jax.jit(jax.grad(lambda *x: (fn(*x) * weights).sum(), (0, 1, 2)))
    return loss(query, key, value)

  for actual, expected in zip(gradient(attend), gradient(masked), strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_nothing_comes_from_beyond_n_hops():
  graph = _graph(length=64)
  distances = _distances(_mask(graph))
  attend = pyramid.Pyramidal(pyramid=graph)
  query, _, _, _ = _inputs(graph, batch=1)
  node = 17

  def after(layers):
    def value(x):
      for _ in range(layers):
        x = attend(x, x, x)
      return x[0, node].sum()

    return np.abs(jax.jit(jax.grad(value))(query))[0].sum((1, 2))

  for layers in (1, 2, 3):
    gradient = after(layers)
    far = distances[node] > layers
    assert far.any()
    assert (gradient[far] == 0).all()
    assert (gradient[~far] > 0).all()


def test_dropout_in_blocks_is_that_of_all_nodes_at_once(monkeypatch):
  graph = _graph(length=23, children=(2, 2, 2))
  query, key, value, weights = _inputs(graph)

  def dropped(broadcast):
    attend = pyramid.Pyramidal(pyramid=graph)
    return jax.jit(
      jax.value_and_grad(
        lambda *x: (
          weights
          * attend(
            *x,
            dropout_rng=jax.random.key(0),
            dropout_rate=0.5,
            broadcast_dropout=broadcast,
          )
        ).sum(),
        (0, 1, 2),
      )
    )(query, key, value)

  at_once = [dropped(x) for x in (False, True)]
  monkeypatch.setattr(pyramid, '_BLOCK_NUMBERS', 1)
  monkeypatch.setattr(pyramid, '_SMALLEST_BLOCK', 16)
  in_blocks = [dropped(x) for x in (False, True)]
  chex.assert_trees_all_close(in_blocks, at_once, atol=1e-5)


def test_memory_of_a_step_does_not_grow_with_length():
  def temporary(length):
    graph = _graph(length=length)
    attend = pyramid.Pyramidal(pyramid=graph)
    x = jax.ShapeDtypeStruct((1, graph.num_nodes, 2, 32), np.float32)
    compiled = jax.jit(attend).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # What is written down beside the output is that of one block of nodes.
  assert temporary(8192) < 1.2 * temporary(2048)


def test_dropout_keeps_the_mean_and_its_gradient():
  graph = _graph(length=16, children=(4, 4))
  query, key, value, _ = _inputs(graph, batch=1)
  attend = pyramid.Pyramidal(pyramid=graph)

  def dropped(value, rng):
    return attend(
      query,
      key,
      value,
      dropout_rng=rng,
      dropout_rate=0.5,
      broadcast_dropout=False,
    )

  rngs = jax.random.split(jax.random.key(0), 2000)
  mean = jax.jit(
    lambda v: jax.lax.map(lambda r: dropped(v, r), rngs, batch_size=100).mean(0)
  )(value)
  expected = jax.jit(attend)(query, key, value)
  np.testing.assert_allclose(mean, expected, atol=0.15)

  # It is linear in values, and so must its own backward pass be.
  @jax.jit
  def both_ways(value):
    out, pull = jax.vjp(lambda v: dropped(v, rngs[0]), value)
    return (pull(jnp.ones_like(out))[0] * value).sum(), out.sum()

  np.testing.assert_allclose(*both_ways(value), rtol=1e-4)


@pytest.mark.parametrize('length', [64, 4096])
def test_no_rows_have_no_attention_and_no_gradient(length):
  graph = _graph(length=length)
  x = jnp.zeros((0, graph.num_nodes, 2, 3))

  def attended(*args):
    return pyramid.Pyramidal(pyramid=graph)(*args)

  assert jax.eval_shape(attended, x, x, x[..., :2]).shape == x[..., :2].shape
  grads = jax.eval_shape(
    jax.grad(lambda *args: attended(*args).sum(), (0, 1, 2)), x, x, x
  )
  assert [y.shape for y in grads] == [x.shape] * 3


def test_inputs_of_another_graph_are_refused():
  attend = pyramid.Pyramidal(pyramid=_graph(length=64))
  x = np.zeros((1, 64, 2, 3), np.float32)
  with pytest.raises(types.InputError, match='pyramid has 85 nodes'):
    attend(x, x, x)
  x = np.zeros((1, 85, 2, 3), np.float32)
  with pytest.raises(types.InputError, match='no bias and no mask'):
    attend(x, x, x, mask=np.ones((1, 1, 85, 85), bool))
  # Nothing is asked of it where others would show weights.
  attend(x, x, x, module=object())


@pytest.mark.parametrize('leftover', ['last_parent', 'own_parent'])
def test_coarse_nodes_are_strided_convolutions(leftover):
  graph = _graph(length=23, children=(4, 2), leftover=leftover)
  layer = pyramid.CoarseNodes(pyramid=graph, bottleneck=3)
  tokens = np.random.default_rng(0).normal(size=(2, 23, 5)).astype(np.float32)
  init, apply = (
    jax.jit(functools.partial(x, train=False))
    for x in (layer.init, layer.apply)
  )
  variables = init(jax.random.key(0), tokens)
  nodes = np.asarray(apply(variables, tokens))
  assert nodes.shape == (2, graph.num_nodes, 5)
  # Oracle: node by node. Running statistics are 0 and 1 at first.
  params = jax.tree.map(np.asarray, variables['params'])

  def dense(x, name):
    return x @ params[name]['kernel'] + params[name]['bias']

  below, expected = dense(tokens, 'down'), [tokens]
  for i, (count, size) in enumerate(
    zip(graph.children, graph.sizes[1:], strict=True)
  ):
    level = np.zeros((2, size, 3))
    for node in range(size):
      group = below[:, node * count : (node + 1) * count]
      full = np.zeros((2, count, 3))
      full[:, : group.shape[1]] = group
      x = dense(full.reshape(2, -1), f'conv{i}') / np.sqrt(1 + 1e-5)
      level[:, node] = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    below = level
    expected.append(dense(level, 'up'))
  x = np.concatenate(expected, 1)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1) + 1e-5)[..., None]
  np.testing.assert_allclose(nodes, x, atol=2e-5)
