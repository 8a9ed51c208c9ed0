"""MoCo: its step by hand, in its order, and its queue, first in, first out."""

import chex
import jax
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import moco
from repjax.methods import model_inputs
from repjax.models import mlp

ROWS, WIDTH, DIM, TAU, MOMENTUM = 4, 6, 3, 0.3, 0.7
RNG = np.random.default_rng(0)


def _batch(mask=(1, 1, 1, 1)):
  x = RNG.normal(size=(ROWS, 5)).astype(np.float32)
  return {'features': x, 'mask': np.asarray(mask, np.float32)}


BATCHES = [_batch() for _ in range(3)]


def _views(batch, rng):
  del rng  # Told apart, and drawn by nobody.
  return batch, {**batch, 'features': 0.5 * batch['features'] ** 2 + 1}


def _make(tx=None, **settings):
  settings = {'queue_size': 2 * ROWS, 'momentum': MOMENTUM, **settings}
  return moco.make(
    mlp.Mlp(2, features=(WIDTH,)),
    tx or optax.sgd(0.2),
    views=_views,
    temperature=TAU,
    dim=DIM,
    inputs=model_inputs.features,
    **settings,
  )


METHOD = _make()
INIT, UPDATE = jax.jit(METHOD.init), jax.jit(METHOD.update)


def _dense(layer, x):
  return x @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])


def _embedded(params, x):
  """Unit vectors by hand, float64."""
  features = np.maximum(_dense(params['model']['hidden_0'], x), 0)
  projection = params['projection']
  hidden = np.maximum(_dense(projection['hidden_0'], features), 0)
  out = _dense(projection['head'], hidden).astype(np.float64)
  return out / np.linalg.norm(out, axis=-1, keepdims=True)


def test_what_it_remembers_of_rows_is_not_private():
  tx = optim.dp_sgd(1.0, 1.0, expected_batch_size=ROWS, key=jax.random.key(3))
  made = _make(tx=tx)
  state = jax.eval_shape(made.init, jax.random.key(0), BATCHES[0])
  with pytest.raises(types.InputError, match='MoCo compares all rows'):
    jax.eval_shape(made.update, state, BATCHES[0], jax.random.key(1))


def test_steps_are_those_of_the_paper_in_its_order():
  state = INIT(jax.random.key(0), BATCHES[0])
  queue = []
  for batch in BATCHES:
    first, second = (x['features'] for x in _views(batch, None))
    # 1. The key network moves first; 2. the queue is as it was.
    key_params = jax.tree.map(
      lambda k, q: MOMENTUM * k + (1 - MOMENTUM) * q,
      *jax.device_get((state.extra.key_params, state.params)),
    )
    query, key = _embedded(state.params, first), _embedded(key_params, second)
    losses = []
    for q, k in zip(query, key, strict=True):
      logits = np.array([q @ k, *(q @ x for x in queue)]) / TAU
      losses.append(np.log(np.exp(logits).sum()) - logits[0])
    nearer = [
      all(q @ k > q @ x for x in queue) for q, k in zip(query, key, strict=True)
    ]
    before = state
    state, sums = UPDATE(state, batch, jax.random.key(1))
    total, weight = sums['loss']
    np.testing.assert_allclose(total / weight, np.mean(losses), atol=1e-5)
    assert sums['accuracy'][0] == sum(nearer)
    chex.assert_trees_all_close(state.extra.key_params, key_params, atol=1e-6)
    moved = jax.tree.map(
      lambda x, y: float(abs(x - y).max()),
      *jax.device_get((before.params, state.params)),
    )
    # While the queue is empty there is nothing to tell a key from.
    assert (max(jax.tree.leaves(moved)) > 1e-4) == bool(queue)
    # 3. The latest 2 x ROWS keys, in order.
    queue = [*queue, *key][-2 * ROWS :]
  # The third batch is where the first one was.
  expected = np.stack([*queue[ROWS:], *queue[:ROWS]])
  np.testing.assert_allclose(state.extra.queue.keys, expected, atol=1e-5)
  assert int(state.extra.queue.place) == ROWS


def test_keys_of_padding_are_never_compared():
  state = INIT(jax.random.key(0), BATCHES[0])
  found = []
  for garbage in (0.0, np.nan):
    batch = {**BATCHES[0], 'mask': np.array([1, 1, 0, 1], np.float32)}
    x = batch['features'].copy()
    x[2] = garbage
    new, _ = UPDATE(state, {**batch, 'features': x}, jax.random.key(1))
    assert new.extra.queue.labels.tolist() == [0, 0, -1, 0, -1, -1, -1, -1]
    found.append(UPDATE(new, BATCHES[1], jax.random.key(1)))
  chex.assert_trees_all_close(*found)


@pytest.mark.devices(4)
def test_four_devices_make_the_steps_of_one():
  state = INIT(jax.random.key(0), BATCHES[0])
  found = []
  for number in (1, 4):
    devices = jax.local_devices()[:number]
    step = parallel.train_step(METHOD.update, devices)
    new = parallel.replicate(state, devices)
    for batch in BATCHES:
      new, sums = step(new, parallel.shard(batch, devices), jax.random.key(1))
    found.append(jax.device_get((new, sums)))
  chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)


def test_features_are_the_query_networks():
  state = INIT(jax.random.key(0), BATCHES[0])
  for batch in BATCHES[:2]:
    state, _ = UPDATE(state, batch, jax.random.key(1))
  found = jax.jit(METHOD.predict)(state, BATCHES[0])['features']
  layer = state.params['model']['hidden_0']
  expected = np.maximum(_dense(layer, BATCHES[0]['features']), 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused():
  for settings, named in (
    (dict(momentum=1.5), 'momentum'),
    (dict(ema_decay=0.9), 'ema_decay'),
    (dict(microbatches=2), 'microbatches'),
    (dict(blue=1), 'blue'),
  ):
    with pytest.raises(types.InputError, match=named):
      _make(**settings)
  method = _make(queue_size=6)
  state = jax.eval_shape(method.init, jax.random.key(0), BATCHES[0])
  with pytest.raises(types.InputError, match=r'queue_size=6.*4 or 8'):
    jax.eval_shape(method.update, state, BATCHES[0], jax.random.key(1))
