"""The small AlexNet against its sizes, and who draws dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.models import alexnet


def test_sizes_are_those_of_the_authors():
  model = alexnet.AlexNet(10)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )
  )['params']
  assert {
    name: dict(layer)['kernel'].shape for name, layer in shapes.items()
  } == {
    'conv_0': (4, 4, 3, 64),
    'conv_1': (3, 3, 64, 128),
    'conv_2': (2, 2, 128, 256),
    'hidden_0': (1024, 2048),
    'hidden_1': (2048, 2048),
    'head': (2048, 10),
  }
  assert all(set(layer) == {'kernel'} for layer in shapes.values())


def test_dropout_is_off_in_evaluation_only():
  model = alexnet.AlexNet(3, channels=(2, 3, 4), features=(8,))
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 1)))
  variables = model.init(jax.random.key(0), image, train=False)

  def train(seed):
    return model.apply(
      variables, image, train=True, rngs={'dropout': jax.random.key(seed)}
    )

  plain = model.apply(variables, image, train=False)
  np.testing.assert_array_equal(
    plain, model.apply(variables, image, train=False)
  )
  assert not np.allclose(train(0), train(1))
  assert not np.allclose(train(0), plain)


@pytest.mark.parametrize('side', [8, 16])
def test_images_that_nothing_is_left_of_are_refused(side):
  with pytest.raises(types.InputError, match=f'{side} x {side} .* too small'):
    alexnet.AlexNet(3).init(
      jax.random.key(0), jnp.zeros((1, side, side, 1)), train=False
    )
