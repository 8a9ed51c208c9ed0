"""Pyraformer's encoder against PyTorch's own functions, weights copied.

The authors' `Model` (ant-research/Pyraformer, commit 84af4db), fed the same way
outside of this repository, agreed to 1.1e-6 with either predictor.
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


def _coarse(tokens, graph, params, stats):
  """The finest nodes and those above them, torch [B, L, D] -> [B, n, D]."""
  below = _linear(tokens, params['down']).swapaxes(1, 2)
  width, levels = below.shape[1], []
  for i, count in enumerate(graph.children):
    kernel = _torch(params[f'conv{i}']['kernel']).reshape(count, width, width)
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
  return _norm(torch.cat([tokens, coarse], 1), params['norm'], 1e-5)


def _block(x, context, params, mask=None):
  """Attention under a mask and a network, each with its norm."""
  heads = params['query']['kernel'].shape[1]
  query, key, value = (
    _linear(y, params[name]).reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    for name, y in (('query', x), ('key', context), ('value', context))
  )
  mask = None if mask is None else _torch(mask)
  seen = functional.scaled_dot_product_attention(
    query, key, value, attn_mask=mask
  )
  seen = _linear(seen.swapaxes(1, 2).reshape(*x.shape[:2], -1), params['out'])
  x = _norm(x + seen, params['attention_norm'], 1e-6)
  hidden = functional.gelu(_linear(x, params['up']))
  return _norm(x + _linear(hidden, params['down']), params['mlp_norm'], 1e-6)


def _embedded(values, covariates, params):
  """A circular convolution, covariates and places, [B, L, D]."""
  values, length = _torch(values), values.shape[1]
  kernel = _torch(params['value']['kernel'])
  dim = kernel.shape[1]
  kernel = kernel.reshape(3, -1, dim).permute(2, 1, 0)
  padded = functional.pad(values.swapaxes(1, 2), (1, 1), 'circular')
  tokens = functional.conv1d(padded, kernel, _torch(params['value']['bias']))
  tokens = tokens.swapaxes(1, 2) + _linear(
    _torch(covariates), params['covariates']
  )
  angle = (
    np.arange(length)[:, None] / 10_000 ** (np.arange(0, dim, 2) / dim)
  ).astype(np.float32)
  places = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, dim)
  return tokens + _torch(places)


def _mask(graph):
  """Who sees whom, bool [n, n]."""
  index, valid, _ = pyramid_graph.neighbours(graph)
  mask = np.zeros((graph.num_nodes,) * 2, bool)
  for i, (row, real) in enumerate(zip(index, valid, strict=True)):
    mask[i, row[real]] = True
  return mask


def test_coarse_nodes_are_strided_convolutions_with_batch_norm():
  graph = pyramid_graph.Pyramid(length=41, children=(4, 3))
  layer = pyramid.CoarseNodes(pyramid=graph, bottleneck=5)
  tokens = _inputs(2, 41, 7)
  variables = _random(layer, tokens)
  np.testing.assert_allclose(
    layer.apply(variables, tokens, train=False),
    _coarse(
      _torch(tokens), graph, variables['params'], variables['batch_stats']
    ),
    atol=1e-5,
  )


def test_a_block_is_masked_attention_and_a_network_each_with_its_norm():
  graph = pyramid_graph.Pyramid(length=41, children=(4, 3))
  block = pyraformer.Block(3, 4, 6, pyramid.Pyramidal(pyramid=graph))
  tokens = _inputs(2, graph.num_nodes, 7)
  variables = _random(block, tokens)
  x = _torch(tokens)
  np.testing.assert_allclose(
    block.apply(variables, tokens, train=False),
    _block(x, x, variables['params'], _mask(graph)),
    atol=1e-5,
  )


def test_values_are_embedded_by_a_circular_convolution():
  layer = series_embedding.SeriesEmbedding(8)
  values, covariates = _inputs(2, 11, 3), _inputs(2, 11, 4)
  variables = _random(layer, values, covariates)
  np.testing.assert_allclose(
    layer.apply(variables, values, covariates, train=False),
    _embedded(values, covariates, variables['params']),
    atol=1e-5,
  )


def test_the_decoder_looks_at_all_nodes_and_then_at_rows_before_its_own():
  model = pyraformer.Pyraformer(
    horizon=6,
    length=41,
    children=(4, 3),
    predictor='decoder',
    hidden_dim=8,
    mlp_dim=6,
    num_heads=3,
    head_dim=4,
    num_layers=2,
    bottleneck=5,
    dropout_rate=0.0,
  )
  series, covariates = _inputs(2, 41, 3), _inputs(2, 47, 4)
  variables = _random(model, series, covariates)
  params, stats = variables['params'], variables['batch_stats']
  nodes = _coarse(
    _embedded(series, covariates[:, :41], params['embedding']),
    model.pyramid,
    params['coarse'],
    stats['coarse'],
  )
  for name in ('layer0', 'layer1'):
    nodes = _block(nodes, nodes, params[name], _mask(model.pyramid))
  x = _embedded(
    np.zeros_like(series[:, :6]), covariates[:, 41:], params['future']
  )
  x = _block(x, nodes, params['decoder0'])
  # All nodes, and of the rows to come those up to its own.
  mask = np.tril(
    np.ones((6, len(_mask(model.pyramid)) + 6), bool), nodes.shape[1]
  )
  x = _block(x, torch.cat([nodes, x], 1), params['decoder1'], mask)
  np.testing.assert_allclose(
    model.apply(variables, series, covariates, train=False).mean,
    _linear(x, params['mean']),
    atol=1e-5,
  )
