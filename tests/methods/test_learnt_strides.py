"""Learnt strides are reported beside the loss, and change nothing."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import trees
from repjax.layers import diffstride
from repjax.layers import downsampling
from repjax.methods import dann
from repjax.methods import learnt_strides
from repjax.methods import supervised
from repjax.models import resnet


def _method(kind):
  stride = downsampling.Downsampling(
    kind=kind, strides=(2.0, 3.0), smoothness=1.0
  )
  model = resnet.PreActResNet(2, stage_sizes=(1, 1, 1), width=4, stride=stride)
  return supervised.make(model, optax.sgd(0.1))


@pytest.fixture
def batch():
  image = jax.random.normal(jax.random.key(0), (4, 24, 24, 1))
  return dict(image=image, label=jnp.arange(4) % 2, mask=jnp.ones(4))


def test_a_step_reports_the_strides_that_it_began_with(batch):
  plain = _method('diffstride')
  made = learnt_strides.reporting(plain)
  rng = jax.random.key(1)
  state = jax.jit(made.init)(rng, batch)
  update, bare = jax.jit(made.update), jax.jit(plain.update)
  after, sums = update(state, batch, rng)
  expected, usual = bare(state, batch, rng)
  chex.assert_trees_all_equal(after, expected)
  told = {k: float(x) for k, (x, _) in sums.items() if k not in usual}
  assert list(told) == [
    f'stride/{stage}/{axis}'
    for stage in ('stage_1', 'stage_2')
    for axis in (0, 1)
  ]
  np.testing.assert_allclose(list(told.values()), [2, 2, 3, 3])
  _, later = update(after, batch, rng)
  moved = [abs(float(later[name][0]) - x) for name, x in told.items()]
  assert min(moved) > 1e-7


class _Twice(nn.Module):
  """Two layers under one name, of one stride each."""

  @nn.compact
  def __call__(self, image):
    for i in range(2):
      start = (2.0 + i, 2.0 + i)
      pool = diffstride.DiffStride(start, 1.0, shared=True, name=f'pool_{i}')
      image = pool(image)
    return nn.Dense(2)(image.mean((1, 2)))


class _Net(nn.Module):
  @nn.compact
  def __call__(self, image, *, train, mask):
    del train, mask
    return _Twice(name='body')(image)


def test_layers_that_share_their_first_name_are_told_apart(batch):
  made = learnt_strides.reporting(supervised.make(_Net(), optax.sgd(0.1)))
  rng = jax.random.key(1)
  state = jax.jit(made.init)(rng, batch)
  _, sums = jax.jit(made.update)(state, batch, rng)
  told = {k: float(x) for k, (x, _) in sums.items() if k[:6] == 'stride'}
  assert told == {'stride/body/pool_0': 2.0, 'stride/body/pool_1': 3.0}


def test_what_a_crop_does_not_hold_is_not_told(batch):
  made = learnt_strides.reporting(_method('diffstride'))
  rng = jax.random.key(1)
  state = jax.jit(made.init)(rng, batch)
  update = jax.jit(made.update)

  def told_at(value):
    params = trees.map_with_path(
      lambda path, x: jnp.full_like(x, value) if path[-1] == 'strides' else x,
      state.params,
    )
    _, sums = update(state.replace(params=params), batch, rng)
    return {k: float(x) for k, (x, _) in sums.items() if k[:6] == 'stride'}

  # Crops are those that the first strides of 2 and 3 need.
  assert told_at(1.0) == told_at(1.5)
  first = [told_at(1.0)[f'stride/stage_{i}/0'] for i in (1, 2)]
  assert 1.5 < first[0] <= 2.0 < first[1] <= 3.0, first
  assert told_at(2.5)['stride/stage_1/0'] == 2.5


def test_a_network_without_them_reports_what_it_did(batch):
  plain = _method('strided')
  made = learnt_strides.reporting(plain)
  rng = jax.random.key(1)
  state = jax.jit(made.init)(rng, batch)
  _, sums = jax.jit(made.update)(state, batch, rng)
  _, usual = jax.jit(plain.update)(state, batch, rng)
  assert sums.keys() == usual.keys()


class _Headed(nn.Module):
  @nn.compact
  def __call__(self, image, *, train, mask):
    del train, mask
    pool = diffstride.DiffStride((2.0, 2.0), smoothness=1.0, name='pool')
    return nn.Dense(2, name='head')(pool(image).mean((1, 2)))


def test_a_method_that_trains_more_than_the_network_reports_them(batch):
  rows = dict(batch, group=batch['label'])

  def told(method):
    made = learnt_strides.reporting(method)
    state = jax.jit(made.init)(jax.random.key(0), rows)
    _, sums = jax.jit(made.update)(state, rows, jax.random.key(1))
    return {k: float(x) for k, (x, _) in sums.items() if k[:6] == 'stride'}

  plain = told(supervised.make(_Headed(), optax.sgd(0.1)))
  made = dann.make(_Headed(), optax.sgd(0.1), num_groups=2, weight=1.0)
  assert told(made) == plain
  assert set(plain) == {'stride/pool/0', 'stride/pool/1'}
