"""The small network whose strides consume padding on one side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.models import strided_conv_net
from repjax.types import InputError


def build(**settings):
  return strided_conv_net.StridedConvNet(
    3, channels=(4, 6), strides=(1, 2), **settings
  )


def test_layers_and_where_they_pad():
  image = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
  logits = {}
  for kind in ('both', 'SAME'):
    model = build(padding=kind)
    variables = model.init(jax.random.key(1), image, train=False)
    assert set(variables['params']) == {'conv_0', 'conv_1', 'head'}
    logits[kind] = model.apply(variables, image, train=False)
    assert logits[kind].shape == (2, 3)
  assert not np.allclose(logits['both'], logits['SAME'])
  # The two sides are mirror images of each other: so are kernels and images.
  flipped = jax.tree.map(
    lambda x: x[::-1, ::-1] if x.ndim == 4 else x, variables
  )
  mirrored = build(padding='both').apply(
    flipped, image[:, ::-1, ::-1], train=False
  )
  np.testing.assert_allclose(mirrored, logits['SAME'], rtol=1e-4, atol=1e-6)


def test_settings_out_of_range_are_told():
  image = jnp.zeros((1, 6, 6, 1))
  with pytest.raises(InputError, match='padding must be one of'):
    build(padding='VALID').init(jax.random.key(0), image, train=False)
  wrong = strided_conv_net.StridedConvNet(3, channels=(4,), strides=(1, 2))
  with pytest.raises(InputError, match='one number a layer'):
    wrong.init(jax.random.key(0), image, train=False)
