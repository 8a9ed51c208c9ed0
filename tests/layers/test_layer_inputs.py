"""Captured inputs, times the kernel, are what the layer gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import layer_inputs
from repjax.optim import gradient_projection

pytestmark = pytest.mark.versions


def draw(*shape):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check(layer, inputs):
  """Columns' kernel = output, the kernel flattened as GPM flattens it."""
  output, variables = jax.jit(layer.init_with_output)(jax.random.key(0), inputs)
  captured = layer_inputs.layer_inputs(lambda: layer.apply(variables, inputs))
  assert list(captured) == ['']
  kernel = variables['params']['kernel']
  size = captured[''].shape[0]
  axes = gradient_projection.input_axes(('kernel',), kernel.shape)
  assert size == np.prod(kernel.shape[:axes])
  found = captured[''].T @ kernel.reshape(size, -1)
  np.testing.assert_allclose(
    found, output.reshape(len(found), -1), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  'settings',
  [
    dict(kernel_size=(3, 2), padding='SAME', strides=(2, 1)),
    dict(kernel_size=(2, 3), padding=((1, 2), (0, 1)), kernel_dilation=2),
    dict(kernel_size=(4, 3), padding='CIRCULAR', strides=2),
    dict(kernel_size=(2, 2), padding=1, input_dilation=2),
  ],
  ids=lambda x: '-'.join(str(v) for v in x.values()),
)
def test_patches_are_ordered_as_the_kernel(settings):
  check(nn.Conv(5, use_bias=False, **settings), draw(2, 6, 7, 3))


def test_causal_convolutions_of_sequences():
  check(nn.Conv(5, 3, padding='CAUSAL', use_bias=False), draw(2, 9, 3))


def test_dense_layers_over_any_axes():
  check(nn.Dense(5, use_bias=False), draw(2, 4, 3))
  check(nn.DenseGeneral(4, axis=(1, -1), use_bias=False), draw(2, 3, 2, 5))


class Twice(nn.Module):
  """One layer on two inputs, and an attention."""

  @nn.compact
  def __call__(self, image, *, train=False, mask=None):
    del train, mask
    layer = nn.Dense(6, name='layer')
    x = layer(nn.relu(layer(image)))
    attention = nn.MultiHeadDotProductAttention(2, name='attention')
    return attention(x).mean(1)


def test_layers_of_an_attention_and_layers_applied_twice():
  model, image = Twice(), draw(3, 5, 6)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  mask = jnp.array([1, 0, 1.0])
  found = layer_inputs.representations(
    model, variables, {'image': image, 'mask': mask}, rows={'layer': 1}
  )
  shapes = {name: x.shape for name, x in found.items()}
  inner = ('query', 'key', 'value', 'out')
  assert shapes == {
    'layer': (6, 2 * 1 * 5),
    **{f'attention/{name}': (6, 2 * 5) for name in inner},
  }
  # The second row is padding.
  np.testing.assert_array_equal(found['layer'][:, :5], image[0].T)
  for name in inner:
    kernel = variables['params']['attention'][name]['kernel']
    axes = gradient_projection.input_axes((name, 'kernel'), kernel.shape)
    assert np.prod(kernel.shape[:axes]) == 6
  # What enters `out` is what follows from the scores by hand.
  params = variables['params']['attention']
  tokens = found['attention/query'].T.reshape(2, 5, 6)
  query, key, value = (
    np.einsum('bld,dhk->blhk', tokens, params[name]['kernel'])
    for name in inner[:3]
  )
  scores = np.einsum('blhk,bmhk->bhlm', query, key) / 3**0.5
  mixed = np.einsum('bhlm,bmhk->blhk', jax.nn.softmax(scores), value)
  np.testing.assert_allclose(
    found['attention/out'], mixed.reshape(10, 6).T, rtol=1e-4, atol=1e-5
  )


def test_what_has_no_columns_is_refused_by_name():
  def capture(layer, inputs):
    variables = jax.jit(layer.init)(jax.random.key(0), inputs)
    layer_inputs.layer_inputs(lambda: layer.apply(variables, inputs))

  with pytest.raises(types.InputError, match='grouped convolution'):
    capture(nn.Conv(4, (3,), feature_group_count=2), draw(1, 4, 2))
  with pytest.raises(types.InputError, match='batch_dims'):
    capture(nn.DenseGeneral(4, batch_dims=(0,)), draw(2, 4))
  layer = nn.Dense(3)
  variables = layer.init(jax.random.key(0), draw(2, 4))
  with pytest.raises(types.InputError, match='jit'):
    layer_inputs.layer_inputs(
      lambda: jax.jit(layer.apply)(variables, draw(2, 4))
    )
  with pytest.raises(types.InputError, match="'haed'"):
    layer_inputs.layer_inputs(
      lambda: layer.apply(variables, draw(2, 4)), rows={'haed': 3}
    )
