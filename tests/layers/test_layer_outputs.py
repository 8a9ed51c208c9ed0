"""Layers of an unmodified network are read, and changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import layer_inputs
from repjax.layers import layer_outputs
from repjax.models import mlp
from repjax.models import vit


@pytest.fixture(scope='module')
def made():
  model = mlp.Mlp(3, features=(4,))
  image = np.random.default_rng(0).normal(size=(5, 2, 2, 1))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), image)

  def forward():
    return model.apply(variables, image, train=False)

  params = jax.tree.map(np.asarray, variables['params'])
  first = next(x for x in params if params[x]['kernel'].shape == (4, 4))
  hidden = image.reshape(5, 4) @ params[first]['kernel'] + params[first]['bias']
  return forward, first, hidden, params['head']


def test_outputs_are_what_the_layer_computes(made):
  forward, first, hidden, _ = made
  outputs, seen = jax.jit(
    lambda: layer_outputs.with_outputs_of(forward, (first, 'head'))
  )()
  np.testing.assert_allclose(seen[first], hidden, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(seen['head'], outputs, rtol=1e-6)


def test_units_that_are_off_are_0_for_what_follows(made):
  forward, first, hidden, head = made
  off = np.array([False, True, False, True])
  found = layer_outputs.without_units(forward, {first: off})
  kept = np.maximum(np.where(off, 0, hidden), 0)
  expected = kept @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  none = layer_outputs.without_units(forward, {first: jnp.zeros(4)})
  np.testing.assert_array_equal(none, forward())


def test_a_block_that_returns_more_is_read_by_what_it_passes_on():
  model = vit.ViT(
    3,
    patch_size=2,
    hidden_dim=8,
    mlp_dim=12,
    num_heads=2,
    num_layers=2,
    head_init=jax.nn.initializers.normal(1.0),
  )
  image = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), image)

  def forward():
    return model.apply(variables, image, train=False)

  layers = ('block_0', 'block_0/attention')
  _, seen = jax.jit(lambda: layer_outputs.with_outputs_of(forward, layers))()
  assert {x.shape for x in seen.values()} == {(2, 5, 8)}
  # What attention adds is the difference of two outputs of the block.
  off = {'block_0/attention': np.ones(8)}
  found = jax.jit(lambda: layer_outputs.without_units(forward, off))()
  plain = jax.jit(forward)()
  assert found.shape == plain.shape
  assert np.abs(np.subtract(found, plain)).max() > 0


def test_an_unknown_layer_is_named_with_those_there_are(made):
  forward = made[0]
  with pytest.raises(types.InputError, match=r"no layer 'haed'.*head"):
    layer_outputs.with_outputs_of(forward, ('haed',))


def test_a_choice_has_a_place_for_each_unit(made):
  with pytest.raises(types.InputError, match='has 3 units'):
    layer_outputs.without_units(made[0], {'head': np.zeros(2)})


def test_a_layer_that_is_applied_twice_is_refused(made):
  forward = made[0]

  def twice():
    forward()
    return forward()

  with pytest.raises(types.InputError, match='2 times'):
    layer_outputs.with_outputs_of(twice, ('head',))


def test_what_is_rematerialised_is_refused_and_may_still_be_changed():
  model = vit.ViT(
    3,
    **dict(patch_size=2, hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=2),
    remat=True,
  )
  image = jnp.ones((2, 4, 4, 1))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), image)

  def forward():
    return model.apply(variables, image, train=False)

  for read in (
    lambda: layer_outputs.with_outputs_of(forward, ('block_0/mlp',)),
    lambda: layer_inputs.with_input_of(forward, 'block_0/mlp'),
  ):
    with pytest.raises(types.InputError, match=r'block_0/mlp.*remat=False'):
      read()
  _, seen = jax.jit(lambda: layer_outputs.with_outputs_of(forward, ('head',)))()
  assert seen['head'].shape == (2, 3)
  off = {'block_0': np.zeros(8)}
  found = jax.jit(lambda: layer_outputs.without_units(forward, off))()
  np.testing.assert_allclose(found, jax.jit(forward)(), rtol=1e-6)
