"""What networks start from, where the papers say so, and what they pool."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax.layers import downsampling
from repjax.layers import equalised
from repjax.layers import spectral_norm
from repjax.models import beit
from repjax.models import dvae
from repjax.models import pyraformer
from repjax.models import resnet
from repjax.models import vit_discriminator

KEY = jax.random.key(0)


def drawn(model, *args, **settings):
  """Path, joined by '/', -> the parameter, drawn for some input."""
  variables = jax.jit(functools.partial(model.init, **settings))(KEY, *args)
  found = trees.flatten(variables['params'])
  return {'/'.join(path): np.asarray(x) for path, x in found.items()}


def classifier(**fields):
  encoder = beit.Encoder(
    4,
    hidden_dim=128,
    mlp_dim=8,
    num_heads=2,
    num_layers=2,
    relative='none',
    **fields,
  )
  return beit.Classifier(encoder, 64)


def test_beits_head_starts_at_a_thousandth():
  image = jnp.zeros((1, 8, 8, 3))
  params = drawn(classifier(), image, train=False)
  kernel = params['head/kernel']
  assert kernel.std() == pytest.approx(1e-3 * 0.02, rel=0.05)
  # A normal that is not cut: of 8,192 numbers some lie beyond three sigma.
  assert abs(kernel).max() > 3 * 1e-3 * 0.02
  assert not params['head/bias'].any()
  other = drawn(classifier().clone(head_scale=0.5), image, train=False)
  np.testing.assert_allclose(other['head/kernel'], 500 * kernel, rtol=1e-5)


@pytest.mark.parametrize('scale', [0.1, 1e-5])
def test_all_of_beits_branches_start_at_the_layer_scale(scale):
  image = jnp.zeros((1, 8, 8, 3))
  params = drawn(classifier(layer_scale=scale), image, train=False)
  gammas = [
    x for path, x in params.items() if 'scale' in path and 'norm' not in path
  ]
  assert len(gammas) == 4  # Two a block.
  for gamma in gammas:
    np.testing.assert_array_equal(gamma, np.full(128, scale, np.float32))


@pytest.mark.parametrize(
  ('layer', 'args', 'settings'),
  [
    (equalised.EqualisedDense(64), (jnp.ones((1, 64)),), {}),
    (
      spectral_norm.SpectralDense(64),
      (jnp.ones((1, 64)),),
      dict(train=False),
    ),
  ],
)
def test_kernels_of_vitgan_start_from_a_normal_of_variance_1(
  layer, args, settings
):
  params = drawn(layer, *args, **settings)
  assert params['kernel'].std() == pytest.approx(1.0, rel=0.05)
  assert abs(params['kernel'].mean()) < 0.05
  assert not params['bias'].any()


def test_a_slow_layer_starts_as_a_fast_one():
  x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
  fast, slow = (equalised.EqualisedDense(6, rate=c) for c in (1.0, 0.01))
  params = drawn(slow, x)
  assert params['kernel'].std() == pytest.approx(100, rel=0.3)
  outputs = [
    jax.jit(lambda x, layer=layer: layer.apply(layer.init(KEY, x), x))(x)
    for layer in (fast, slow)
  ]
  np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-6)


def test_the_discriminators_token_starts_from_a_normal():
  model = vit_discriminator.VitDiscriminator(
    hidden_dim=256, mlp_dim=8, num_heads=2, num_layers=1
  )
  params = drawn(model, jnp.zeros((1, 8, 8, 3)), train=False)
  assert params['token'].std() == pytest.approx(1.0, rel=0.15)


def test_a_forecasters_head_is_xaviers_and_has_no_bias():
  model = pyraformer.Pyraformer(
    horizon=40, length=16, children=(4, 2), hidden_dim=32, mlp_dim=8, head_dim=2
  )
  params = drawn(model, jnp.ones((1, 16, 3)), jnp.ones((1, 56, 2)), train=False)
  kernel = params['mean/kernel']
  # One token and its ancestor on each of two scales.
  assert kernel.shape == (3 * 32, 40 * 3)
  assert kernel.std() == pytest.approx((2 / sum(kernel.shape)) ** 0.5, rel=0.05)
  assert 'mean/bias' not in params


def test_dalles_encoder_takes_the_largest_of_four_places():
  model = dvae.DalleEncoder(5, hidden_dim=4, blocks_per_group=1)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(1, 16, 16, 3)).astype(np.float32)
  shapes = jax.eval_shape(model.init, KEY, image)['params']

  def quiet(path, x):
    """Branches of blocks say nothing, and widths are copied."""
    if path[-2:] == ('id_path', 'kernel'):
      return np.eye(*x.shape[2:], dtype=x.dtype)[None, None]
    if 'conv_4' in path or path[-1] == 'bias':
      return np.zeros(x.shape, x.dtype)
    return rng.normal(0, 0.1, x.shape).astype(x.dtype)

  params = trees.map_with_path(quiet, shapes)
  found = jax.jit(model.apply)({'params': params}, image)
  first = params['input']
  x = jax.lax.conv_general_dilated(
    image,
    first['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  x = np.asarray(x) + np.asarray(first['bias'])
  x = x.reshape(1, 2, 8, 2, 8, 4).max((2, 4))
  x = np.concatenate([x, np.zeros((1, 2, 2, 28))], -1)
  logits = params['logits']
  kernel, bias = map(np.asarray, (logits['kernel'], logits['bias']))
  expected = np.maximum(x, 0) @ kernel[0, 0] + bias
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['preact', 'basic'])
def test_a_shortcut_is_pooled_as_the_branch_is(kind):
  """Of a block whose branch says nothing, the pooled input is left."""
  stride = downsampling.Downsampling('spectral', strides=(2.0,))
  _, pooling = stride.stages(2)
  stage = resnet.Stage(kind, 1, 5, pooling)
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (stage.init, stage.apply)
  )
  variables = init(KEY, x)
  params = jax.tree.map(np.array, variables['params'])
  block = params['block_0']
  if kind == 'preact':
    block['conv_1']['kernel'] *= 0
  found = apply({**variables, 'params': params}, x)
  assert found.shape == (2, 4, 4, 5)
  kernel = block['shortcut']['kernel'][0, 0]
  # Norms of a fresh block change nothing but by their epsilon.
  source = np.maximum(x, 0) if kind == 'preact' else x
  expected = np.asarray(jax.jit(pooling.layer('pool'))(source)) @ kernel
  if kind == 'basic':
    expected = np.maximum(expected, 0)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
