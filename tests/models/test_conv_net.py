"""The network of coloured MNIST, layer by layer."""

import jax
import numpy as np
import pytest
from scipy import signal

from repjax.models import conv_net
from repjax.types import InputError


def test_it_is_convolutions_pooling_norms_and_a_mean():
  model = conv_net.ConvNet(3, channels=(4, 2))
  image = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
  variables = model.init(jax.random.key(0), image, train=False)
  params = variables['params']
  x = image.astype(float)
  for index in range(2):
    kernel = np.asarray(params[f'conv_{index}']['kernel'])
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for row in range(len(x)):
      for to in range(kernel.shape[-1]):
        for start in range(x.shape[-1]):
          out[row, :, :, to] += signal.correlate2d(
            x[row, :, :, start], kernel[:, :, start, to], 'same'
          )
    side = out.shape[1] // 2  # What is left over is dropped.
    out = out[:, : 2 * side, : 2 * side]
    out = out.reshape(len(x), side, 2, side, 2, -1).max((2, 4))
    x = np.maximum(out / np.sqrt(1 + 1e-5), 0)  # Fresh running statistics.
  expected = x.mean((1, 2)) @ np.asarray(params['head']['kernel'])
  found = model.apply(variables, image, train=False)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_paper_has_so_many_parameters():
  model = conv_net.ConvNet(9)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32), train=False
    )
  )
  counts = [x.size for x in jax.tree.leaves(shapes['params'])]
  convolutions = 9 * (3 * 64 + 64 * 128 + 128 * 256) + 64 + 128 + 256
  norms, head = 2 * (64 + 128 + 256), 256 * 9 + 9
  assert sum(counts) == convolutions + norms + head


def test_images_that_cannot_be_halved_so_often_are_refused():
  model = conv_net.ConvNet(3, channels=(2,) * 5)
  with pytest.raises(InputError, match='28 x 28 pixels cannot be halved 5'):
    model.init(jax.random.key(0), np.zeros((1, 28, 28, 1)), train=False)
