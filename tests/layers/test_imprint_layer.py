"""An imprint goes in front of a model, or behind a layer of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import imprint
from repjax.models import mlp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 2, 3)).astype(np.float32)


@pytest.mark.parametrize('kind', imprint.KINDS)
@pytest.mark.parametrize('connection', imprint.CONNECTIONS)
def test_rows_and_connections_are_those_of_numpy(kind, connection):
  layer = imprint.Imprint(4, kind, connection, gain=0.7)
  weight, bias = RNG.normal(size=(6, 4)), RNG.normal(size=4)
  back, offset = RNG.normal(size=(4, 6)), RNG.normal(size=6)
  params = {'rows': {'kernel': weight, 'bias': bias}}
  if connection == 'linear':
    params['back'] = {'kernel': back, 'bias': offset}
  out = layer.apply(
    {'params': jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}, X
  )
  flat = X.reshape(5, 6).astype(float)
  seen = np.maximum(flat @ weight + bias, 0)
  if kind == 'sparse':
    seen = np.clip(flat @ weight + bias, 0, 0.7)
  expected = {
    'linear': seen @ back + offset,
    'addition': flat + seen.mean(1)[:, None],
    'cat': np.hstack([seen, flat[:, 4:]]),
    'softmax': flat,
  }[connection]
  np.testing.assert_allclose(out, expected.reshape(X.shape), atol=2e-6)


class Reader(nn.Module):
  """Embeds tokens and sums what it sees."""

  @nn.compact
  def __call__(self, tokens):
    seen = nn.Embed(7, 3, name='token_embedding')(tokens)
    return nn.Dense(2, name='head')(seen.sum(1))


def test_it_stands_behind_a_layer_that_is_named():
  tokens = RNG.integers(0, 7, (4, 5))
  layer = imprint.Imprint(3, 'cumulative', 'addition')
  model = imprint.Imprinted(Reader(), layer, after='token_embedding')
  variables = model.init(jax.random.key(0), tokens)
  params = variables['params']
  assert params['imprint']['rows']['kernel'].shape == (15, 3)
  embedded = params['model']['token_embedding']['embedding'][tokens]
  changed = layer.apply({'params': params['imprint']}, embedded)
  head = params['model']['head']
  np.testing.assert_allclose(
    model.apply(variables, tokens),
    np.asarray(changed.sum(1) @ head['kernel'] + head['bias'][None]),
    rtol=1e-5,
  )


def test_it_stands_behind_a_block_that_returns_more():
  class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x), 'state'

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x, state = Two(name='block')(x)
      assert state == 'state'
      return x

  layer = imprint.Imprint(3, 'cumulative', 'addition')
  model = imprint.Imprinted(Net(), layer, after='block')
  found, variables = model.init_with_output(jax.random.key(0), X[:, 0])
  params = variables['params']
  plain = Net().apply({'params': params['model']}, X[:, 0])
  expected = layer.apply({'params': params['imprint']}, plain)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('layer', 'after', 'inputs', 'says'),
  [
    (imprint.Imprint(3), '', np.ones((2, 4), int), 'embeds tokens'),
    (imprint.Imprint(1), '', np.ones((2, 4)), 'num_rows'),
    (imprint.Imprint(3, 'dense'), '', np.ones((2, 4)), 'kind'),
    (imprint.Imprint(3, connection='sum'), '', np.ones((2, 4)), 'connection'),
    (imprint.Imprint(5, connection='cat'), '', np.ones((2, 4)), 'fewer rows'),
    (imprint.Imprint(3), 'hiden_0', np.ones((2, 4)), "mean 'hidden_0'"),
  ],
)
def test_what_does_not_fit_is_refused(layer, after, inputs, says):
  model = imprint.Imprinted(mlp.Mlp(2, (3,)), layer, after)
  with pytest.raises(types.InputError, match=says):
    model.init(jax.random.key(0), inputs, train=False)
