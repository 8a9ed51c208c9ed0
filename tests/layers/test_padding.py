"""Padding of every kind, against np.pad and sums over windows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import layer_inputs
from repjax.layers import pad_arithmetic
from repjax.layers import padding
from repjax.models import resnet
from repjax.privacy import clipping
from repjax.types import InputError

_NUMPY = dict(
  zero='constant',
  circular='wrap',
  symmetric='symmetric',
  reflect='reflect',
  replicate='edge',
)


def valid_conv(x, kernel, stride):
  """Sums over windows of [H, W, C], one after the other."""
  k = kernel.shape[0]
  rows, columns = ((n - k) // stride + 1 for n in x.shape[:2])
  out = np.zeros((rows, columns, kernel.shape[-1]))
  for i in range(rows):
    for j in range(columns):
      at = x[i * stride : i * stride + k, j * stride : j * stride + k]
      out[i, j] = np.tensordot(at, kernel, 3)
  return out


def oracle(x, kernel, mode, pads, stride=1):
  around = [pads, pads, (0, 0)]
  if mode != 'partial':
    return valid_conv(np.pad(x, around, mode=_NUMPY[mode]), kernel, stride)
  sums = valid_conv(np.pad(x, around), kernel, stride)
  inside = np.pad(np.ones((*x.shape[:2], 1)), around)
  ones = np.ones((*kernel.shape[:2], 1, 1))
  # Liu et al., eq. 4: of the window's places over those in the map.
  return sums * ones.sum() / valid_conv(inside, ones, stride)


def setting(size=(6, 5), channels=2, features=3, kernel=3):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(*size, channels)).astype(np.float32)
  weights = rng.normal(size=(kernel, kernel, channels, features))
  return x, weights.astype(np.float32), rng


class Net(nn.Module):
  """One convolution."""

  padding: object = 1
  kernel: int = 3
  stride: int = 1
  use_bias: bool = True
  features: int = 3

  @nn.compact
  def __call__(self, image):
    return nn.Conv(
      self.features,
      (self.kernel, self.kernel),
      strides=self.stride,
      padding=self.padding,
      use_bias=self.use_bias,
      bias_init=nn.initializers.normal(1.0),
      name='conv',
    )(image)


@pytest.mark.parametrize(
  ('kernel', 'stride', 'own', 'pads'),
  [(3, 1, 1, (1, 1)), (3, 2, 'SAME', None), (5, 1, ((2, 1), (2, 1)), (2, 1))],
)
@pytest.mark.parametrize('mode', [*_NUMPY, 'partial'])
def test_values_and_gradients_are_those_of_numpy(
  mode, kernel, stride, own, pads
):
  # SAME pads 6 places by (0, 1) for a stride of 2, and 5 by (1, 1).
  x, weights, rng = setting((6, 6), kernel=kernel)
  pads = pads or (0, 1)
  bias = rng.normal(size=3).astype(np.float32)
  model = padding.Padded(Net(own, kernel, stride), mode)
  variables = {'params': {'conv': {'kernel': weights, 'bias': bias}}}
  found, pull = jax.vjp(lambda v, y: model.apply(v, y), variables, x[None])
  expected = oracle(x, weights, mode, pads, stride)
  np.testing.assert_allclose(found[0], expected + bias, rtol=1e-4, atol=1e-4)

  g = rng.normal(size=expected.shape)
  slopes, slope = pull(jnp.asarray(g[None], jnp.float32))
  # It is linear in the map and in the kernel: a slope is what a place of one
  # of them alone makes.
  for at in np.ndindex(x.shape):
    one = np.zeros(x.shape)
    one[at] = 1
    expected = (g * oracle(one, weights, mode, pads, stride)).sum()
    np.testing.assert_allclose(slope[0][at], expected, rtol=1e-4, atol=1e-4)
  for at in [(0, 0, 0, 0), (kernel - 1, 1, 1, 2), (1, kernel - 1, 0, 1)]:
    one = np.zeros(weights.shape)
    one[at] = 1
    expected = (g * oracle(x, one, mode, pads, stride)).sum()
    of_kernel = slopes['params']['conv']['kernel']
    np.testing.assert_allclose(of_kernel[at], expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    slopes['params']['conv']['bias'], g.sum((0, 1)), rtol=1e-4
  )


def test_balanced_padding_is_alike_on_both_sides_and_all_consumed():
  x, weights, _ = setting((8, 8), kernel=4)
  model = padding.Padded(Net('SAME', 4, 2, use_bias=False), 'balanced')
  variables = {'params': {'conv': {'kernel': weights}}}
  expected = oracle(x, weights, 'zero', (1, 1), 2)
  np.testing.assert_allclose(
    model.apply(variables, x[None])[0], expected, rtol=1e-4, atol=1e-4
  )
  # SAME on 9 places: (1, 1) for a kernel of 3; on 8 it is (0, 1).
  balanced = padding.Padded(Net('SAME', 3, 2), 'balanced')
  balanced.init(jax.random.key(0), jnp.zeros((1, 9, 9, 2)))
  with pytest.raises(
    InputError, match=r'conv: a kernel of extent 3 .* an even'
  ):
    balanced.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
  with pytest.raises(InputError, match='an odd kernel'):
    padding.Padded(Net('SAME', 4, 1), 'balanced').init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 2))
    )


@pytest.mark.parametrize('mode', padding.MODES)
def test_a_network_keeps_its_parameters_and_sizes(mode):
  plain = resnet.PreActResNet(3, stage_sizes=(1, 1), width=16, norm='group')
  image = jax.random.normal(jax.random.key(1), (2, 9, 9, 1))
  variables = plain.init(jax.random.key(0), image, train=False)
  model = padding.Padded(plain, mode)
  own = model.init(jax.random.key(0), image, train=False)
  jax.tree.map(np.testing.assert_array_equal, own, variables)
  logits = model.apply(variables, image, train=False)
  assert logits.shape == (2, 3)
  same = mode in ('zero', 'balanced')  # 9 and 5 places are consumed evenly.
  usual = plain.apply(variables, image, train=False)
  assert np.allclose(logits, usual, atol=1e-5) == same


def test_modes_of_flax_are_those_of_the_same_name():
  x, weights, _ = setting()
  variables = {'params': {'conv': {'kernel': weights, 'bias': np.ones(3)}}}
  for own, mode in (('CIRCULAR', 'circular'), ('REFLECT', 'reflect')):
    expected = Net(own).apply(variables, x[None])
    found = padding.Padded(Net(1), mode).apply(variables, x[None])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    back = padding.Padded(Net(own), 'zero').apply(variables, x[None])
    usual = Net(1).apply(variables, x[None])
    np.testing.assert_allclose(back, usual, rtol=1e-5, atol=1e-5)
    assert not np.allclose(usual, expected)


@pytest.mark.parametrize('mode', ['circular', 'symmetric', 'partial'])
def test_a_layer_called_twice_shares_its_kernel_under_any_transform(mode):
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      conv = nn.Conv(2, (3, 3), padding=1, name='conv')
      return nn.remat(lambda module, y: module(y))(conv, conv(x))

  x, _, _ = setting()
  model = padding.Padded(Twice(), mode)
  variables = model.init(jax.random.key(0), x[None])
  assert set(variables['params']) == {'conv'}
  kernel = np.asarray(variables['params']['conv']['kernel'])
  once = oracle(x, kernel, mode, (1, 1))
  twice = oracle(once, kernel, mode, (1, 1))
  run = jax.jit(jax.vmap(model.apply, (None, 0)))
  found = run(variables, np.stack([x, x])[:, None])
  np.testing.assert_allclose(found[1, 0], twice, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mode', ['reflect', 'partial', 'balanced'])
def test_clipped_gradients_are_those_of_this_padding(mode):
  model = padding.Padded(Net('CIRCULAR'), mode)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(4, 6, 6, 2)).astype(np.float32)
  params = jax.jit(model.init)(jax.random.key(0), image)['params']

  def losses(params, rows, rng=None):
    del rng  # Nothing is drawn.
    return (model.apply({'params': params}, rows) ** 2).mean((1, 2, 3))

  gradient = jax.jit(jax.grad(lambda p, row: losses(p, row[None]).sum()))

  def clipped(row):
    grads = jax.device_get(gradient(params, row))
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
    return jax.tree.map(lambda x: x * min(1, 0.3 / norm), grads)

  expected = jax.tree.map(lambda *x: sum(x), *map(clipped, image))
  ghost = clipping.clipped_gradient(losses, 0.3, method='ghost')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    jax.jit(ghost)(params, image).grads,
    expected,
  )


def test_who_asks_what_a_layer_sees_gets_the_padded_map_once():
  model = padding.Padded(Net(1), 'symmetric')
  x, _, _ = setting()
  variables = model.init(jax.random.key(0), x[None])
  _, seen = layer_inputs.with_input_of(
    lambda: model.apply(variables, x[None]), 'conv'
  )
  expected = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode='symmetric')
  np.testing.assert_array_equal(seen[0], expected.ravel())


def test_one_dimension_and_none_that_a_causal_layer_has():
  x = jnp.arange(6.0).reshape((1, 6, 1))
  kernel = np.array([1.0, 10.0, 100.0]).reshape((3, 1, 1))
  variables = {'params': {'kernel': kernel}}

  def run(mode, pads):
    conv = nn.Conv(1, (3,), padding=pads, use_bias=False)
    with padding.padded(mode):
      return np.asarray(conv.apply(variables, x)).ravel()

  assert run('circular', 1)[0] == 5 + 0 + 100
  assert run('replicate', 1)[-1] == 4 + 50 + 500
  assert run('circular', 'CAUSAL')[0] == 0  # It looks at no later place.


@pytest.mark.parametrize(
  ('mode', 'size', 'widest'), [('reflect', 2, 1), ('circular', 1, 1)]
)
def test_padding_wider_than_the_map_is_refused(mode, size, widest):
  x = jnp.zeros((1, size, size, 2))
  model = padding.Padded(Net(2, 5), mode)
  with pytest.raises(InputError, match=f'conv: {mode} .* at most {widest} '):
    model.init(jax.random.key(0), x)
  # The widest that there is passes.
  padding.Padded(Net(2, 5), mode).init(
    jax.random.key(0), jnp.zeros((1, 3, 3, 2))
  )


def test_bad_input_is_told_in_one_line():
  x = jnp.zeros((1, 4, 4, 2))
  with pytest.raises(InputError, match='padding mode must be one of'):
    padding.Padded(Net(), 'mirror').init(jax.random.key(0), x)
  with pytest.raises(InputError, match='Dense calls no convolution'):
    padding.Padded(nn.Dense(3), 'reflect').init(jax.random.key(0), x)
  with pytest.raises(InputError, match='Net calls no convolution'):
    padding.Padded(Net('VALID'), 'reflect').init(jax.random.key(0), x)
  dilated = nn.Conv(3, (3, 3), input_dilation=2)
  with pytest.raises(InputError, match='dilates or crops'):
    padding.Padded(dilated, 'reflect').init(jax.random.key(0), x)
  with pytest.raises(InputError, match='padding mode must be one of'):
    pad_arithmetic.uses(pad_arithmetic.Window(4, 3), 'mirror')
