"""The network that a recipe predicts with is found by watching it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks

from repjax import types
from repjax.export import networks
from repjax.methods import supervised
from repjax.models import mlp


def trained(**settings):
  """(method, state after two steps, batch) of a small classifier."""
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(4, 2, 2, 1)).astype(np.float32),
    'label': np.array([0, 1, 2, 0]),
    'mask': np.ones(4, np.float32),
  }
  method = supervised.make(
    mlp.Mlp(3, features=(5,)), optax.sgd(0.5), **settings
  )
  state = method.init(jax.random.key(0), batch)
  for i in range(2):
    state, _ = method.update(state, batch, jax.random.key(i))
  return method, state, batch


@pytest.mark.parametrize('ema_decay', [0.0, 0.9])
def test_what_is_found_says_what_the_method_predicts(ema_decay):
  method, state, batch = trained(ema_decay=ema_decay)
  found = networks.of(method, state, batch)
  assert isinstance(found.module, mlp.Mlp)
  assert [x.shape for x in found.args] == [(4, 2, 2, 1)]
  logits = small_networks.outputs(found, batch['image'])
  expected = method.predict(state, batch)['logits']
  np.testing.assert_allclose(logits, expected, rtol=1e-6)
  averaged = (
    found.params['head']['kernel'] is not state.params['head']['kernel']
  )
  assert averaged == bool(ema_decay)


def test_nothing_is_computed():
  method, state, batch = trained()
  shapes = jax.eval_shape(lambda x: x, batch)
  found = networks.of(method, state, shapes)
  assert found.params['head']['bias'] is state.params['head']['bias']


def test_one_of_several_is_named():
  method, state, batch = trained()
  other = mlp.Mlp(2, features=())
  more = jax.jit(
    lambda: other.init(jax.random.key(1), batch['image'], train=False)
  )()

  def predict(state, batch):
    own, others = state
    extra = other.apply(others, batch['image'], train=False)
    return {**method.predict(own, batch), 'other': extra}

  both = types.Predictor(predict)
  with pytest.raises(types.InputError, match=r'Mlp, Mlp: name one.*--network'):
    networks.of(both, (state, more), batch)
  none = types.Predictor(lambda state, batch: {'rows': batch['mask']})
  with pytest.raises(types.InputError, match=r'no network.*--format=jax'):
    networks.of(none, state, batch)


def test_adapters_are_no_part_of_the_base():
  network = small_networks.with_lora('bert')
  paths = {
    '/'.join(k.key for k in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(network.params)
  }
  plain = small_networks.named('bert')
  expected = {
    '/'.join(k.key for k in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(plain.params)
  }
  assert paths == expected
  (text,), _ = small_networks.inputs('bert')
  np.testing.assert_allclose(
    small_networks.outputs(network.merged, text),
    small_networks.outputs(network, text),
    atol=1e-5,
  )
  assert plain.merged is plain
  assert jnp.shape(network.params['head']['bias']) == (3,)
