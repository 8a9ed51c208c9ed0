"""SimCLR and SupCon: a step is a loop over pairs, on any number of devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import simclr
from repjax.methods import two_views
from repjax.models import mlp

ROWS, WIDTH, DIM, TAU, RATE = 8, 6, 4, 0.3, 0.2
RNG = np.random.default_rng(0)
BATCH = {
  'features': RNG.normal(size=(ROWS, 5)).astype(np.float32),
  'label': RNG.integers(0, 3, ROWS).astype(np.int32),
  'mask': np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
}


def _views(batch, rng):
  del rng  # Told apart, and drawn by nobody.
  return batch, {**batch, 'features': 0.5 * batch['features'] ** 2 + 1}


def test_a_private_link_is_refused_of_one_row_too():
  tx = optim.dp_sgd(1.0, 1.0, expected_batch_size=1, key=jax.random.key(3))
  row = {name: x[:1] for name, x in BATCH.items()}
  made = _method(tx)
  state = jax.eval_shape(made.init, jax.random.key(0), row)
  with pytest.raises(types.InputError, match='SimCLR compares all rows'):
    jax.eval_shape(made.update, state, row, jax.random.key(1))


def test_a_row_whose_input_has_no_known_name_is_refused():
  made = simclr.make(
    mlp.Mlp(2),
    optax.sgd(RATE),
    views=two_views.by_dropout(),
    inputs=lambda x: ((x['rows'],), {}),
  )
  batch = {**BATCH, 'rows': BATCH['features']}
  del batch['features']
  state = jax.eval_shape(made.init, jax.random.key(0), batch)
  with pytest.raises(types.InputError, match='A batch with an input'):
    jax.eval_shape(made.update, state, batch, jax.random.key(1))


@functools.cache
def _method(tx=None, **settings):
  return simclr.make(
    mlp.Mlp(2, features=(WIDTH,)),
    tx or optax.sgd(RATE),
    views=_views,
    temperature=TAU,
    dim=DIM,
    inputs=model_inputs.features,
    **settings,
  )


def _dense(layer, x):
  return x @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])


def _embedded(params, x):
  """Unit vectors by hand, float64."""
  features = np.maximum(_dense(params['model']['hidden_0'], x), 0)
  projection = params['projection']
  hidden = np.maximum(_dense(projection['hidden_0'], features), 0)
  out = _dense(projection['head'], hidden).astype(np.float64)
  return out / np.linalg.norm(out, axis=-1, keepdims=True)


def _expected(params, alike):
  """Mean over real rows of what both of their views lose."""
  real = np.flatnonzero(BATCH['mask'])
  first, second = (x['features'][real] for x in _views(BATCH, None))
  rows = _embedded(params, np.concatenate([first, second]))
  number = len(real)
  losses = []
  for i in range(2 * number):
    others = [j for j in range(2 * number) if j != i]
    total = np.log(sum(np.exp(rows[i] @ rows[j] / TAU) for j in others))
    positives = [j for j in others if alike(real[i % number], real[j % number])]
    losses.append(np.mean([total - rows[i] @ rows[j] / TAU for j in positives]))
  return np.mean(losses)


def _by_row(i, j):
  return i == j


def _by_label(i, j):
  return BATCH['label'][i] == BATCH['label'][j]


@pytest.mark.parametrize(
  ('positives', 'alike'), [('rows', _by_row), ('labels', _by_label)]
)
def test_a_step_goes_down_the_loss_of_a_loop_over_pairs(positives, alike):
  method = _method(positives=positives)
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  expected = _expected(state.params, alike)
  real = np.flatnonzero(BATCH['mask'])
  vectors = [
    _embedded(state.params, x['features'][real]) for x in _views(BATCH, None)
  ]
  nearest = (vectors[0] @ vectors[1].T).argmax(1)
  state, sums = jax.jit(method.update)(state, BATCH, jax.random.key(1))
  total, weight = sums['loss']
  assert weight == 6
  np.testing.assert_allclose(total / weight, expected, rtol=1e-5)
  assert _expected(state.params, alike) < expected - 1e-3
  assert sums['agreement'][0] == (nearest == np.arange(6)).sum()


@pytest.mark.devices(4)
@pytest.mark.parametrize('positives', ['rows', 'labels'])
def test_four_devices_make_the_step_of_one(positives):
  # With the last two rows, one device holds padding alone.
  method = _method(positives=positives)
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  found = []
  for number in (1, 4):
    devices = jax.local_devices()[:number]
    step = parallel.train_step(method.update, devices)
    new, sums = step(
      parallel.replicate(state, devices),
      parallel.shard(BATCH, devices),
      jax.random.key(1),
    )
    # (Which second views are looked at differs.)
    found.append(jax.device_get((new.params, sums['loss'])))
  chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)


def test_features_are_what_the_head_sees():
  method = _method()
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  found = jax.jit(method.predict)(state, BATCH)['features']
  layer = state.params['model']['hidden_0']
  expected = np.maximum(_dense(layer, BATCH['features']), 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_head_of_the_network_is_not_trained():
  method = _method()
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  new, _ = jax.jit(method.update)(state, BATCH, jax.random.key(1))
  chex.assert_trees_all_equal(
    new.params['model']['head'], state.params['model']['head']
  )


def test_what_cannot_be_is_refused():
  for settings, named in (
    (dict(positives='some'), 'positives'),
    (dict(microbatches=2), 'microbatches'),
    (dict(hidden=-1), 'hidden'),
  ):
    with pytest.raises(types.InputError, match=named):
      _method(**settings)
  method = _method(tx=optax.chain(optim.sam(0.1, groups=2), optax.sgd(RATE)))
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  with pytest.raises(types.InputError, match='no link may look at some'):
    jax.eval_shape(method.update, state, BATCH, jax.random.key(1))
  only = {x: jnp.asarray(BATCH[x]) for x in ('label', 'mask')}
  with pytest.raises((types.InputError, KeyError)):
    method.init(jax.random.key(0), only)


@pytest.mark.parametrize('positives', ['rows', 'labels'])
def test_one_row_a_step_is_refused(positives):
  method = _method(positives=positives)
  row = {name: x[:1] for name, x in BATCH.items()}
  state = jax.jit(method.init)(jax.random.key(0), row)
  with pytest.raises(types.InputError, match=r'one row.*config\.batch_size'):
    jax.jit(method.update)(state, row, jax.random.key(1))
