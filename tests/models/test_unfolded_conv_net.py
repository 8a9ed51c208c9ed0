"""A network of unfolded convolutions: names, rows, and what does not fit."""

import functools

import jax
import numpy as np
import pytest

from repjax import types
from repjax.models import unfolded_conv_net


def test_layers_have_names_and_rows_their_own_logits():
  model = unfolded_conv_net.UnfoldedConvNet(
    4, channels=(2, 3), kernels=(3, 3), strides=(2, 1)
  )
  image = np.random.default_rng(0).normal(size=(3, 12, 12, 3))
  init, train, predict = (
    jax.jit(functools.partial(f, train=x))
    for f, x in (
      (model.init, False),
      (model.apply, True),
      (model.apply, False),
    )
  )
  variables = init(jax.random.key(0), image)
  assert set(variables['params']) == {'conv_0', 'conv_1', 'hidden', 'head'}
  logits = np.asarray(train(variables, image))
  assert logits.shape == (3, 4)
  np.testing.assert_allclose(
    logits[1:2], predict(variables, image[1:2]), rtol=1e-5
  )


def test_a_kernel_that_does_not_fit_is_refused():
  model = unfolded_conv_net.UnfoldedConvNet(
    2, channels=(2, 2), kernels=(5, 5), strides=(2, 2)
  )
  with pytest.raises(types.InputError, match='does not fit into 4 x 4'):
    jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), np.zeros((1, 12, 12, 3)), train=False
      )
    )
