"""Each domain is normalised by its own rows, and by those of training."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.adapt import bn_adapt
from repjax.adapt import norm_layers
from repjax.layers import norms
from repjax.methods import erm
from repjax.models import unfolded_conv_net

_NET = dict(channels=(4,), kernels=(2,), strides=(1,), hidden_dim=5)


def method_of(normalize=True):
  model = unfolded_conv_net.UnfoldedConvNet(3, normalize=normalize, **_NET)
  return erm.make(model, optax.sgd(0.1))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(12, 3, 3, 2)).astype(np.float32),
    'label': rng.integers(0, 3, 12),
    'group': np.arange(12) % 3,
    'mask': (np.arange(12) < 10).astype(np.float32),
  }


@pytest.fixture(scope='module')
def state(batch):
  state = method_of().init(jax.random.key(0), batch)
  shift = dict(mean=np.arange(4, dtype='f4'), var=1 + np.arange(4, dtype='f4'))
  return state.replace(model_state={'batch_stats': {'norm_0': shift}})


class _TwoKinds(nn.Module):
  """A norm of one value a row, and behind it one of four."""

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = norms.BatchNorm()(x.reshape((len(x), -1)), train=train, mask=mask)
    x = x[:, :16].reshape((len(x), 2, 2, 4))
    x = norms.BatchNorm()(x, train=train, mask=mask)
    return nn.Dense(3)(x.mean((1, 2)))


def test_the_norm_that_needs_most_rows_counts(state, batch):
  least = functools.partial(norm_layers.least_rows, batch=batch)
  assert least(method_of().predict, state) == 1
  method = erm.make(_TwoKinds(), optax.sgd(0.1))
  other = jax.eval_shape(method.init, jax.random.key(0), batch)
  assert least(method.predict, other) == 2


def by_hand(state, batch, prior):
  """Logits of real rows, with blended statistics of each group."""
  params = jax.device_get(state.params)
  image, kernel = batch['image'], params['conv_0']['kernel']
  x = np.zeros((12, 2, 2, 4))
  for i in range(2):
    for j in range(2):
      x += np.einsum(
        'nhwc,cf->nhwf', image[:, i : i + 2, j : j + 2], kernel[i, j]
      )
  x += params['conv_0']['bias']
  old = state.model_state['batch_stats']['norm_0']
  for group in range(3):
    rows = (batch['group'] == group) & (batch['mask'] > 0)
    share = rows.sum() / (rows.sum() + prior)
    mean = share * x[rows].mean((0, 1, 2)) + (1 - share) * old['mean']
    var = share * x[rows].var((0, 1, 2)) + (1 - share) * old['var']
    x[rows] = (x[rows] - mean) / np.sqrt(var + 1e-5)
  x = x * params['norm_0']['scale'] + params['norm_0']['bias']
  x = np.maximum(x, 0).reshape(12, -1)
  for name in ('hidden', 'head'):
    x = x @ params[name]['kernel'] + params[name]['bias']
    x = np.maximum(x, 0) if name == 'hidden' else x
  return x


@pytest.mark.parametrize('prior', [0.5, 4.0])
def test_statistics_are_blended_by_domain(state, batch, prior):
  adapted = bn_adapt.predictor(method_of(), num_groups=3, prior=prior)
  found = jax.jit(adapted.predict)(state, batch)['logits']
  expected = by_hand(state, batch, prior)
  np.testing.assert_allclose(found[:10], expected[:10], rtol=1e-3, atol=1e-4)


def test_rows_of_no_domain_keep_the_statistics_of_training(state, batch):
  plain = method_of()
  adapted = bn_adapt.predictor(plain, num_groups=2, prior=0.5)
  stray = {**batch, 'group': np.array([0, 1, -1, 5, 0, 1, 2, 1, 0, 0, 0, 0])}
  found = jax.jit(adapted.predict)(state, stray)['logits']
  expected = jax.jit(plain.predict)(state, stray)['logits']
  rows = np.array([2, 3, 6])
  np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-6)
  # They are nothing to the statistics of the others either.
  without = dict(stray, mask=stray['mask'] * np.isin(stray['group'], [0, 1]))
  same = jax.jit(adapted.predict)(state, without)['logits']
  rows = np.array([0, 1, 4, 5, 7, 8, 9])
  np.testing.assert_allclose(found[rows], same[rows], rtol=1e-6)
  assert (np.abs(found - expected)[rows] > 1e-3).any(1).all()


def test_a_large_prior_is_the_network_as_it_was_trained(state, batch):
  plain = method_of()
  adapted = bn_adapt.predictor(plain, num_groups=3, prior=1e9)
  found, expected = (
    jax.jit(x.predict)(state, batch)['logits'] for x in (adapted, plain)
  )
  np.testing.assert_allclose(found[:10], expected[:10], rtol=1e-4, atol=1e-5)


def test_rows_of_other_domains_and_padding_count_for_nothing(state, batch):
  adapted = bn_adapt.predictor(method_of(), num_groups=3, prior=1.0)
  predict = jax.jit(adapted.predict)
  other = batch['image'].copy()
  other[batch['group'] == 1] *= -3
  other[10:] = np.nan
  first, second = (
    predict(state, {**batch, 'image': x})['logits'][:10]
    for x in (batch['image'], other)
  )
  kept = batch['group'][:10] != 1
  np.testing.assert_array_equal(first[kept], second[kept])
  assert (first[~kept] != second[~kept]).any()


def test_what_cannot_adapt_is_said(state, batch):
  with pytest.raises(types.InputError, match='prior'):
    bn_adapt.predictor(method_of(), num_groups=3, prior=0.0)
  adapted = bn_adapt.predictor(method_of(), num_groups=3, prior=1.0)
  without = {k: x for k, x in batch.items() if k != 'group'}
  with pytest.raises(types.InputError, match="'group'"):
    adapted.predict(state, without)
  plain = method_of(normalize=False)
  bare = bn_adapt.predictor(plain, num_groups=3, prior=1.0)
  with pytest.raises(types.InputError, match='no batch norm'):
    bare.predict(plain.init(jax.random.key(0), batch), batch)


class _Forgets(nn.Module):
  """Takes a mask, and does not pass it on."""

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = nn.Dense(4)(x.reshape(len(x), -1))
    return nn.Dense(3)(norms.BatchNorm(name='norm')(x, train=train))


def test_a_norm_without_the_mask_is_named(batch):
  method = erm.make(_Forgets(), optax.sgd(0.1))
  begun = method.init(jax.random.key(0), batch)
  with pytest.raises(
    types.InputError, match="'norm' is called without the mask"
  ):
    bn_adapt.predictor(method, num_groups=3, prior=1.0).predict(begun, batch)
