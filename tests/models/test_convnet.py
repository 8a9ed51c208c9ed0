"""Products of windows are convolutions."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.models import convnet


@pytest.mark.parametrize(('size', 'stride'), [(1, 1), (3, 1), (3, 2), (4, 3)])
def test_a_dense_layer_over_windows_is_a_convolution(size, stride):
  rng = np.random.default_rng(size + stride)
  x = rng.normal(size=(2, 9, 7, 3))
  kernel = rng.normal(size=(size, size, 3, 5))
  made = np.asarray(convnet.windows(x, size, stride)) @ kernel.reshape(-1, 5)
  rows, columns = (len(range(0, n - size + 1, stride)) for n in (9, 7))
  assert made.shape == (2, rows, columns, 5)
  for i in range(rows):
    for j in range(columns):
      top, left = i * stride, j * stride
      window = x[:, top : top + size, left : left + size]
      np.testing.assert_allclose(
        made[:, i, j],
        np.einsum('bhwc,hwcd->bd', window, kernel),
        rtol=1e-4,
        atol=1e-5,
      )


def test_layers_have_names_and_rows_their_own_logits():
  model = convnet.ConvNet(4, channels=(2, 3), kernels=(3, 3), strides=(2, 1))
  image = np.random.default_rng(0).normal(size=(3, 12, 12, 3))
  variables = model.init(jax.random.key(0), image, train=False)
  assert set(variables['params']) == {'conv_0', 'conv_1', 'hidden', 'head'}
  logits = model.apply(variables, image, train=True)
  assert logits.shape == (3, 4)
  np.testing.assert_allclose(
    logits[1:2], model.apply(variables, image[1:2], train=False), rtol=1e-5
  )


def test_a_kernel_that_does_not_fit_is_refused():
  model = convnet.ConvNet(2, channels=(2, 2), kernels=(5, 5), strides=(2, 2))
  with pytest.raises(types.InputError, match='does not fit into 4 x 4'):
    jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), np.zeros((1, 12, 12, 3)), train=False
      )
    )
