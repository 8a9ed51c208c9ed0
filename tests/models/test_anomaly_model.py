"""The network equals the authors' on their own weights.

anomaly_golden.json holds outputs of https://github.com/thuml/Anomaly-Transformer
(PyTorch 2.13 on a CPU, calls of `.cuda()` left out), two windows, for weights
that `_torch_weights` draws again.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import anomaly_transformer as training
from repjax.models import anomaly_transformer

_GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'anomaly_golden.json').read_text()
)
_SHAPE = _GOLDEN['shape']
_LENGTH, _CHANNELS, _DIM, _HEADS, _LAYERS, _MLP = (
  _SHAPE[x]
  for x in (
    'length',
    'channels',
    'hidden_dim',
    'num_heads',
    'num_layers',
    'mlp_dim',
  )
)
_MODEL = anomaly_transformer.AnomalyTransformer(
  hidden_dim=_DIM, num_heads=_HEADS, num_layers=_LAYERS, mlp_dim=_MLP
)
_apply = jax.jit(functools.partial(_MODEL.apply, train=False))


def _torch_weights():
  """(path of ours, weight, bias) in PyTorch's layout, in the order of names."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(scale=0.5, size=shape).astype(np.float32)

  yield ('embedding',), draw(_DIM, _CHANNELS, 3), None
  for i in range(_LAYERS):
    for name, size in (
      ('key', _DIM),
      ('out', _DIM),
      ('query', _DIM),
      ('sigma', _HEADS),
      ('value', _DIM),
    ):
      bias = draw(size)
      yield (f'attention_{i}', name), draw(size, _DIM), bias
    for name, shape in (('hidden', (_MLP, _DIM)), ('out', (_DIM, _MLP))):
      bias = draw(shape[0])
      yield (f'{name}_{i}',), draw(*shape, 1)[..., 0], bias
    for name in ('attention_norm', 'out_norm'):
      bias = draw(_DIM)
      yield (f'{name}_{i}',), draw(_DIM), bias
  bias = draw(_DIM)
  yield ('norm',), draw(_DIM), bias
  bias = draw(_CHANNELS)
  yield ('head',), draw(_CHANNELS, _DIM), bias


def _params():
  """Those weights in our layout."""
  made = {}
  size = _DIM // _HEADS
  for path, weight, bias in _torch_weights():
    leaf = {'bias': bias} if bias is not None else {}
    if 'norm' in path[-1]:
      leaf['scale'] = weight
    elif path[-1] == 'embedding':
      leaf['kernel'] = weight.transpose(2, 1, 0)
    else:
      leaf['kernel'] = weight.T
    if path[-1] in ('query', 'key', 'value'):
      leaf = {
        'kernel': leaf['kernel'].reshape(_DIM, _HEADS, size),
        'bias': bias.reshape(_HEADS, size),
      }
    elif path[-1] == 'out' and len(path) == 2:
      leaf['kernel'] = leaf['kernel'].reshape(_HEADS, size, _DIM)
    inner = made
    for part in path[:-1]:
      inner = inner.setdefault(part, {})
    inner[path[-1]] = leaf
  return made


@pytest.fixture(scope='module')
def series():
  shape = (2, _LENGTH, _CHANNELS)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope='module')
def params(series):
  made = _params()
  fresh = jax.eval_shape(
    lambda: _MODEL.init(jax.random.key(0), series, train=False)
  )['params']
  shapes = jax.tree.map(lambda x: x.shape, fresh)
  assert shapes == jax.tree.map(lambda x: x.shape, made)
  return made


def _golden(name, *shape):
  return np.reshape(_GOLDEN[name], shape)


def test_outputs_and_associations_are_the_authors(params, series):
  output = _apply({'params': params}, series)
  np.testing.assert_allclose(
    output.series, _golden('reconstruction', *series.shape), atol=1e-5
  )
  maps = (_LAYERS, 2, _HEADS, _LENGTH, _LENGTH)
  found = output.associations
  for name, shape, values in (
    ('prior', maps, [x.prior for x in found]),
    ('series', maps, [x.series for x in found]),
    ('sigma', maps[:-1], [x.sigma for x in found]),
  ):
    np.testing.assert_allclose(
      np.stack(values), _golden(name, *shape), atol=1e-5
    )


def test_the_score_is_the_authors_at_their_temperature(params, series):
  method = training.make(_MODEL, optax.sgd(0.1), temperature=1 / (50 * _LAYERS))
  batch = {'series': jnp.asarray(series), 'mask': jnp.ones(2)}
  state = jax.jit(method.init)(jax.random.key(0), batch).replace(params=params)
  found = jax.jit(method.predict)(state, batch)
  for name in ('discrepancy', 'score'):
    np.testing.assert_allclose(
      found[name], _golden(name, 2, _LENGTH), atol=1e-5, rtol=1e-4
    )


def test_windows_wrap_around_in_the_embedding(params):
  still = np.zeros((1, _LENGTH, _CHANNELS), np.float32)
  series = still.copy()
  series[0, -1] = 5.0
  before, after = (
    np.asarray(_apply({'params': params}, x).associations[0].sigma)
    for x in (still, series)
  )
  # Widths of the first layer are a function of each position's embedding.
  moved = np.abs(after - before)[0].max(0)
  assert (moved[[0, -2, -1]] > 1e-4).all()
  assert (moved[1:-2] < 1e-6).all()


def test_dropout_is_drawn_in_training_alone(params, series):
  model = _MODEL.clone(dropout_rate=0.5)
  same = jax.jit(functools.partial(model.apply, train=False))(
    {'params': params}, series
  )
  np.testing.assert_array_equal(
    same.series, _apply({'params': params}, series).series
  )
  rngs = [{'dropout': jax.random.key(i)} for i in range(2)]
  train = jax.jit(functools.partial(model.apply, train=True))
  first, second = (
    train({'params': params}, series, rngs=x).series for x in rngs
  )
  assert abs(first - second).max() > 0.1


def test_widths_that_heads_do_not_divide_are_refused(series):
  with pytest.raises(types.InputError, match='multiple of num_heads'):
    _MODEL.clone(num_heads=5).init(jax.random.key(0), series, train=False)
