"""Pyraformer's encoder against PyTorch's own functions, weights copied.

The authors' `Model` (ant-research/Pyraformer, commit 84af4db, the predictor of
all steps at once), fed the same way outside of this repository, agreed to
1.1e-6.
"""

import jax
import numpy as np
import pytest

from repjax.layers import pyramid
from repjax.layers import pyramid_graph
from repjax.layers import series_embedding
from repjax.models import pyraformer

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
functional = torch.nn.functional


def _random(layer, *args, **named):
  """Variables of a layer with every number drawn, variances above 0."""
  shapes = jax.eval_shape(
    lambda *x: layer.init(*x, train=False, **named), jax.random.key(0), *args
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (
      (0.2 + 0.5 * rng.random(x.shape)).astype(np.float32)
      - (0.4 if len(x.shape) > 1 else 0)
    ),
    shapes,
  )


def _inputs(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _torch(x):
  return torch.tensor(np.asarray(x))


def _linear(x, params):
  kernel = _torch(params['kernel']).reshape(x.shape[-1], -1)
  x = x @ kernel
  return x + _torch(params['bias']).reshape(-1) if 'bias' in params else x


def _norm(x, params, eps):
  return functional.layer_norm(
    x, x.shape[-1:], _torch(params['scale']), _torch(params['bias']), eps
  )


def test_coarse_nodes_are_strided_convolutions_with_batch_norm():
  graph = pyramid_graph.Pyramid(length=41, children=(4, 3))
  layer = pyramid.CoarseNodes(pyramid=graph, bottleneck=5)
  tokens = _inputs(2, 41, 7)
  variables = _random(layer, tokens)
  params, stats = variables['params'], variables['batch_stats']
  below = _linear(_torch(tokens), params['down']).swapaxes(1, 2)
  levels = []
  for i, count in enumerate(graph.children):
    kernel = _torch(params[f'conv{i}']['kernel']).reshape(count, 5, 5)
    below = functional.conv1d(
      below,
      kernel.permute(2, 1, 0),
      _torch(params[f'conv{i}']['bias']),
      stride=count,
    )
    norm, moved = params[f'norm{i}'], stats[f'norm{i}']
    below = functional.elu(
      functional.batch_norm(
        below,
        _torch(moved['mean']),
        _torch(moved['var']),
        _torch(norm['scale']),
        _torch(norm['bias']),
      )
    )
    levels.append(below)
  coarse = _linear(torch.cat(levels, 2).swapaxes(1, 2), params['up'])
  nodes = torch.cat([_torch(tokens), coarse], 1)
  np.testing.assert_allclose(
    layer.apply(variables, tokens, train=False),
    _norm(nodes, params['norm'], 1e-5),
    atol=1e-5,
  )


def test_a_block_is_masked_attention_and_a_network_each_with_its_norm():
  graph = pyramid_graph.Pyramid(length=41, children=(4, 3))
  block = pyraformer.Block(3, 4, 6, pyramid.Pyramidal(pyramid=graph))
  tokens = _inputs(2, graph.num_nodes, 7)
  variables = _random(block, tokens)
  params = variables['params']
  index, valid, _ = pyramid_graph.neighbours(graph)
  mask = np.zeros((graph.num_nodes,) * 2, bool)
  for i, (row, real) in enumerate(zip(index, valid, strict=True)):
    mask[i, row[real]] = True
  x = _torch(tokens)
  query, key, value = (
    _linear(x, params[name]).reshape(2, -1, 3, 4).swapaxes(1, 2)
    for name in ('query', 'key', 'value')
  )
  seen = functional.scaled_dot_product_attention(
    query, key, value, attn_mask=_torch(mask)
  )
  seen = _linear(seen.swapaxes(1, 2).reshape(2, -1, 12), params['out'])
  x = _norm(x + seen, params['attention_norm'], 1e-6)
  hidden = functional.gelu(_linear(x, params['up']))
  x = _norm(x + _linear(hidden, params['down']), params['mlp_norm'], 1e-6)
  np.testing.assert_allclose(
    block.apply(variables, tokens, train=False), x, atol=1e-5
  )


def test_values_are_embedded_by_a_circular_convolution():
  layer = series_embedding.SeriesEmbedding(8)
  values, covariates = _inputs(2, 11, 3), _inputs(2, 11, 4)
  variables = _random(layer, values, covariates)
  params = variables['params']
  kernel = _torch(params['value']['kernel']).reshape(3, 3, 8).permute(2, 1, 0)
  padded = functional.pad(_torch(values).swapaxes(1, 2), (1, 1), 'circular')
  tokens = functional.conv1d(padded, kernel, _torch(params['value']['bias']))
  tokens = tokens.swapaxes(1, 2) + _linear(
    _torch(covariates), params['covariates']
  )
  angle = np.arange(11)[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)
  places = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(11, 8)
  np.testing.assert_allclose(
    layer.apply(variables, values, covariates, train=False),
    tokens + _torch(places),
    atol=1e-5,
  )
