"""An unfolded convolution is a convolution, with the same parameters."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from repjax.layers import unfolded_conv


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [1, 3, 4])
def test_it_is_the_convolution_of_its_parameters(size, stride):
  image = np.random.default_rng(0).random((2, 9, 8, 3), np.float32)
  ours = unfolded_conv.UnfoldedConv(5, size=size, stride=stride)
  theirs = nn.Conv(5, (size, size), strides=stride, padding='VALID')
  variables = theirs.init(jax.random.key(0), image)
  variables['params']['bias'] += np.arange(5, dtype=np.float32)
  np.testing.assert_allclose(
    ours.apply(variables, image), theirs.apply(variables, image), atol=1e-5
  )
  like = jax.tree.map(np.shape, ours.init(jax.random.key(1), image))
  assert like == jax.tree.map(np.shape, variables)
