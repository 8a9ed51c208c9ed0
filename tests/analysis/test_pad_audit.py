"""Audits of padding: what strides consume, even sizes, foveation, constants."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from repjax.analysis import padding
from repjax.layers import padding as layers
from repjax.models import conv_net
from repjax.models import resnet
from repjax.models import strided_conv_net
from repjax.types import InputError


def strided(**settings):
  return strided_conv_net.StridedConvNet(4, **settings)


def small_resnet(norm='group'):
  return resnet.PreActResNet(3, stage_sizes=(1, 1), width=16, norm=norm)


def init(model, image):
  compiled = jax.jit(functools.partial(model.init, train=False))
  return compiled(jax.random.key(0), image)


@pytest.mark.parametrize(
  ('size', 'own', 'consumed'),
  [
    (32, 'both', [(1, 1), (1, 0), (1, 1), (1, 0), (1, 0)]),
    (33, 'both', [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]),
    (32, 'SAME', [(1, 1), (0, 1), (1, 1), (0, 1), (0, 1)]),
    (33, 'SAME', [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]),
  ],
)
def test_each_convolution_consumes_what_its_stride_reaches(size, own, consumed):
  audit = padding.pad_audit(strided(padding=own), (size, size, 1), train=False)
  assert [x.name for x in audit] == [f'conv_{i}' for i in range(5)]
  for layer, expected in zip(audit, consumed, strict=True):
    assert [w.consumed for w in layer.windows] == [expected] * 2
    assert layer.is_even == (expected[0] == expected[1])
    assert ('uneven' in str(layer)) == (not layer.is_even)


def test_a_resnet_of_imagenet_is_uneven_wherever_it_halves_224_pixels():
  model = resnet.ResNet(1000, stage_sizes=(1, 1, 1, 1), block='basic')
  audit = padding.pad_audit(model, (224, 225, 3), train=False)
  halving = [x for x in audit if x.windows[0].stride == 2]
  # The stem, pooling, and a convolution and a shortcut in each of three stages.
  assert [x.kind for x in halving] == ['conv', 'pool', *['conv'] * 6]
  assert [x.windows[0].consumed for x in halving[:2]] == [(3, 2), (1, 0)]
  assert [x.windows[1].consumed for x in halving[:2]] == [(3, 3), (1, 1)]
  for layer in audit:
    assert layer.windows[0].is_even == (layer.windows[0].stride == 1)
    assert layer.windows[1].is_even
  assert str(audit[1]).startswith('pool after stem: pool 3 x 3, stride 2 x 2')


@pytest.mark.parametrize(
  ('model', 'shape', 'expected'),
  [
    (strided(), (32, 33, 1), ((25, 33), (33,))),
    (strided(padding='SAME'), (30, 41, 1), ((25, 33), (41,))),
    (conv_net.ConvNet(3), (30, 30, 3), ((24, 32),) * 2),
    # One place less than the kernel is padded, and that on one side.
    (nn.Conv(2, (2, 2), padding='SAME'), (8, 8, 1), ((), ())),
  ],
)
def test_even_sizes_follow_the_rule(model, shape, expected):
  kwargs = {} if isinstance(model, nn.Conv) else dict(train=False)
  assert padding.even_sizes(model, shape, **kwargs) == expected


def test_even_sizes_are_the_nearest_of_all_and_those_that_the_paper_names():
  def is_even(size):
    audit = padding.pad_audit(strided(), (size, size, 1), train=False)
    return all(x.is_even for x in audit)

  even = [size for size in range(9, 60) if is_even(size)]
  assert even == [9, 17, 25, 33, 41, 49, 57]  # a 2^3 + 1.
  assert padding.even_sizes(strided(), (50, 50, 1), train=False)[0] == (49, 57)
  model = resnet.ResNet(10, stage_sizes=(1, 1, 1, 1), block='basic')
  found = padding.even_sizes(model, (224, 224, 3), train=False)
  assert found == ((193, 225), (193, 225))


def test_a_padded_model_is_audited_as_the_one_in_it():
  audit = padding.pad_audit(strided(), (32, 32, 1), train=False)
  mirrored = layers.Padded(strided(), 'symmetric')
  assert padding.pad_audit(mirrored, (32, 32, 1), train=False) == audit
  balanced = layers.Padded(strided(), 'balanced')
  with pytest.raises(InputError, match='conv_1: a kernel of extent 3'):
    padding.pad_audit(balanced, (32, 32, 1), train=False)
  assert all(
    x.is_even for x in padding.pad_audit(balanced, (33, 33, 1), train=False)
  )


@pytest.mark.parametrize('mode', ['zero', 'reflect', 'circular', 'replicate'])
def test_foveation_counts_the_ways_through_the_layers(mode):
  # Of a network of ones without bias, the sum of outputs has that gradient.
  model = layers.Padded(strided(channels=(1, 1, 1), strides=(1, 2, 1)), mode)
  audit = padding.pad_audit(model, (8, 9, 1), train=False)
  image = np.ones((1, 8, 9, 1), np.float32)
  ones = jax.tree.map(
    lambda x: np.full(x.shape, x.ndim == 4, np.float32), init(model, image)
  )
  ones['params']['head']['kernel'] = np.ones((1, 4), np.float32)
  places = np.prod([w.out for w in audit[-1].windows])

  def total(image):
    return model.apply(ones, image, train=False)[0, 0] * places

  gradient = np.asarray(jax.jit(jax.grad(total))(image))
  np.testing.assert_allclose(
    padding.foveation(audit, mode), gradient[0, ..., 0], rtol=1e-5
  )


def test_foveation_is_flat_where_places_are_treated_alike():
  audit = padding.pad_audit(
    strided(channels=(1, 1), strides=(1, 1)), (7, 7, 1), train=False
  )
  for mode in ('circular', 'symmetric'):
    np.testing.assert_array_equal(padding.foveation(audit, mode), 81.0)
  assert padding.foveation(audit, 'zero')[0, 0] == 25.0  # (2 + 3)^2.
  whole = padding.pad_audit(small_resnet(), (9, 9, 1), train=False)
  with pytest.raises(InputError, match='without shortcuts'):
    padding.foveation(whole)
  path = [x for x in whole if 'shortcut' not in x.name]
  assert padding.foveation(path).shape == (9, 9)
  with pytest.raises(InputError, match='needs a layer'):
    padding.foveation([])


@pytest.mark.parametrize(
  ('mode', 'is_flat'),
  [('circular', True), ('symmetric', True), ('replicate', True)]
  + [('zero', False)],
)
def test_a_constant_image_stays_constant_unless_padding_is_zero(mode, is_flat):
  # Not of groups: one channel in each makes zeros of such maps, and of their
  # rounding, which it divides by its deviation, maps of their own.
  model = layers.Padded(small_resnet(norm='batch'), mode)
  image = jax.random.normal(jax.random.key(1), (1, 9, 9, 1))
  variables = init(model, image)
  found = padding.constant_response(model, variables, (9, 9, 1), train=False)
  names = {x.name for x in padding.pad_audit(model, (9, 9, 1), train=False)}
  assert set(found) == names
  for x in found.values():
    assert (x.std((0, 1)).max() < 1e-5 * np.abs(x).max()) == is_flat


def test_partial_convolutions_of_ones_are_flat_in_the_first_layer():
  model = layers.Padded(strided(), 'partial')
  variables = init(model, np.zeros((1, 9, 9, 1), np.float32))
  found = padding.constant_response(
    model, variables, (9, 9, 1), value=2.0, train=False
  )
  # A window that sees less counts for more: only kernels whose border weighs
  # as much as their middle make the same of it.
  kernel = np.asarray(variables['params']['conv_0']['kernel'])
  np.testing.assert_allclose(
    found['conv_0'][4, 4], 2 * kernel.sum((0, 1, 2)), rtol=1e-4, atol=1e-5
  )
  corner = 2 * kernel[1:, 1:].sum((0, 1, 2)) * 9 / 4
  np.testing.assert_allclose(
    found['conv_0'][0, 0], corner, rtol=1e-4, atol=1e-5
  )


def test_a_model_without_convolutions_is_told():
  with pytest.raises(InputError, match='Dense calls no convolution'):
    padding.pad_audit(nn.Dense(3), (8, 8, 1))


class _WithMeanPool(nn.Module):
  counted: bool

  @nn.compact
  def __call__(self, image):
    x = nn.Conv(4, (3, 3))(image)
    return nn.avg_pool(
      x, (3, 3), (1, 1), 'SAME', count_include_pad=self.counted
    )


def test_a_mean_pool_is_one_pool_however_it_counts():
  one, other = (
    padding.pad_audit(_WithMeanPool(counted), (9, 9, 3))
    for counted in (True, False)
  )
  assert [x.kind for x in one] == [x.kind for x in other] == ['conv', 'pool']
  assert padding.foveation(other)[4, 4] == 81


class _Looped(nn.Module):
  @nn.compact
  def __call__(self, image):
    body = nn.scan(
      lambda conv, x, _: (conv(x), None),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=3,
    )
    return body(nn.Conv(3, (3, 3)), image, None)[0]


def test_convolutions_in_a_loop_are_refused():
  with pytest.raises(InputError, match='stand in a loop'):
    padding.pad_audit(_Looped(), (9, 9, 3))
