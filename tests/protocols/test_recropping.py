"""Crops that follow the strides change the cost, not what is learnt."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.layers import crop_sizes
from repjax.layers import diffstride
from repjax.methods import supervised
from repjax.protocols import recropping
from repjax.protocols import side_by_side
from repjax.types import InputError

_SEEDS = (3, 5)


class Energy(nn.Module):
  """Classifies by the energy that a stride leaves, the same at any rate."""

  sizes: tuple | str

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    pool = diffstride.DiffStride((2.0, 2.0), 1.5, sizes=self.sizes, name='pool')
    energy = jnp.square(pool(image)).mean((1, 2))
    return nn.Dense(3, name='head')(energy)


def method(sizes):
  # One layer's crop, or the word for all of the map.
  own = sizes if isinstance(sizes, str) else sizes[0]
  return supervised.make(Energy(own), optax.sgd(0.2, momentum=0.9))


@pytest.fixture(scope='module')
def columns():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(40, 16, 16, 2)).astype(np.float32)
  label = rng.integers(0, 3, 40).astype(np.int32)
  image[label == 1] += 2 * (-1) ** np.arange(16)[:, None, None]
  return side_by_side.per_seed({'image': image, 'label': label}, _SEEDS)


@pytest.fixture(scope='module')
def train(columns):
  test = {name: x[0] for name, x in columns.items()}
  return functools.partial(
    recropping.train,
    'strides',
    columns=columns,
    test=test,
    seeds=_SEEDS,
    batch_size=8,
    steps=12,
    every=4,
    start=[(2.0, 2.0)],
    smoothness=1.5,
    room=1.3,
  )


def test_what_is_learnt_is_what_a_mask_alone_would_learn(train, columns):
  found = train(method)
  test = {name: x[0] for name, x in columns.items()}
  masked = side_by_side.train(
    'mask', method('full'), columns, test, seeds=_SEEDS, batch_size=8, steps=12
  )
  at, strides = found.strides['pool/strides']
  np.testing.assert_array_equal(at, [4, 8, 12])
  assert strides.shape == (3, 2, 2)
  expected = masked.states.params['pool']['strides']
  assert abs(expected - 2).max() > 0.05
  np.testing.assert_allclose(strides[-1], expected, rtol=1e-4)
  np.testing.assert_allclose(
    found.trained.outputs['logits'], masked.outputs['logits'], atol=1e-3
  )
  # 16 / (2 / 1.3) + 3 places, made even: less than all.
  assert found.sizes[0] == ((14, 14),)
  assert len(found.sizes) == 3 and 1 <= found.num_compiled <= 3


def test_layers_are_counted_and_numbers_checked(train):
  with pytest.raises(InputError, match='2 layers begin'):
    train(method, start=[(2.0, 2.0)] * 2)
  with pytest.raises(InputError, match='room'):
    train(method, room=0.5)


def test_crops_hold_the_smallest_stride_of_all_seeds(train, monkeypatch):
  def fit(method, states, columns, order, **how):
    yield order.shape[1], states, {'loss': np.zeros(2)}

  strides = np.array([[2.0, 3.0], [4.0, 1.5]])
  found = [(('pool', 'strides'), strides)]
  monkeypatch.setattr(recropping.seed_loop, 'fit', fit)
  monkeypatch.setattr(recropping.learnt, 'in_order', lambda params: found)
  sizes = train(method, steps=8).sizes
  roomy = [(2.0 / 1.3, 1.5 / 1.3)]
  assert sizes[1] == crop_sizes.chain((16, 16), roomy, 1.5, multiple=2)
  assert sizes[1] != sizes[0]
