"""Views tell each other's cluster, and clusters are equally large."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import parallel
from repjax import start
from repjax import types
from repjax.layers import norms
from repjax.methods import erm
from repjax.methods import model_inputs
from repjax.methods import swav

ROWS, DIM, CLUSTERS = 16, 5, 3


class Net(nn.Module):
  """A hidden layer with batch normalisation, and a head."""

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = nn.Dense(6, name='hidden')(x)
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    return nn.Dense(4, name='head')(nn.tanh(x))


def make(tx=None, **settings):
  return swav.make(
    Net(),
    tx or optax.sgd(1.0),
    num_prototypes=CLUSTERS,
    projection=swav.Projection(hidden_dim=7, dim=4),
    inputs=model_inputs.features,
    **settings,
  )


def batch_of(step):
  rng = np.random.default_rng(step)
  mask = np.ones(ROWS, np.float32)
  mask[-5:] = 0  # The last device has padding alone.
  columns = ('features', 'strong', 'strong_2')
  views = {x: rng.normal(size=(ROWS, DIM)).astype(np.float32) for x in columns}
  return {**views, 'mask': mask}


def published_assignments(scores, *, epsilon, iterations):
  """`distributed_sinkhorn` of the authors on one device, in float64."""
  q = np.exp(scores.astype(np.float64) / epsilon).T
  q /= q.sum()
  for _ in range(iterations):
    q *= (np.ones(len(q)) / len(q) / q.sum(1))[:, None]
    q *= (np.ones(q.shape[1]) / q.shape[1] / q.sum(0))[None]
  return (q / q.sum(0, keepdims=True)).T


def cosines(number, views=()):
  rng = np.random.default_rng(number)
  return rng.uniform(-1, 1, (*views, number, CLUSTERS)).astype(np.float32)


@pytest.mark.parametrize('iterations', [1, 3, 100])
@pytest.mark.parametrize('epsilon', [0.03, 0.5])
def test_assignments_are_those_of_the_authors(iterations, epsilon):
  scores = cosines(20)
  settings = dict(epsilon=epsilon, iterations=iterations)
  found = swav.assignments(scores, np.ones(20), **settings)
  expected = published_assignments(scores, **settings)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
  if iterations == 100:  # Clusters are equally large.
    np.testing.assert_allclose(found.mean(0), 1 / CLUSTERS, rtol=1e-3)
  # Padding counts for nothing, whatever it holds.
  padded = np.concatenate([scores, np.full((3, CLUSTERS), np.nan, 'f4')])
  mask = np.arange(23) < 20
  more = swav.assignments(padded, mask, **settings)
  np.testing.assert_allclose(more[:20], found, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(more[20:], 0)


def test_few_iterations_are_not_the_softmax():
  scores = np.zeros((8, CLUSTERS), np.float32)
  scores[:, 0] = 0.5  # All rows are nearest to one prototype,
  scores[0, 1] = 0.6  # but for one.
  found = swav.assignments(scores, np.ones(8), epsilon=0.05, iterations=3)
  assert float(jax.nn.softmax(scores / 0.05)[1:, 0].min()) > 0.99
  assert float(found[:, 0].sum()) < 4


def published_loss(scores, num_assigned, *, temperature, epsilon, iterations):
  """The loss of `main_swav.py`, views [V, B, K]."""
  scores = scores.astype(np.float64)
  total = 0.0
  for i in range(num_assigned):
    q = published_assignments(scores[i], epsilon=epsilon, iterations=iterations)
    part = 0.0
    for v in range(len(scores)):
      if v != i:
        x = scores[v] / temperature
        logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
        part -= (q * logs).sum(-1).mean()
    total += part / (len(scores) - 1)
  return total / num_assigned


@pytest.mark.parametrize(
  ('views', 'num_assigned'), [(2, 2), (2, 1), (6, 2), (3, 3)]
)
def test_the_loss_is_that_of_the_authors(views, num_assigned):
  scores = cosines(20, (views,))
  settings = dict(temperature=0.2, epsilon=0.05, iterations=3)
  found = swav.swapped(
    scores, np.ones(20), num_assigned=num_assigned, **settings
  )
  assert found.shape == (20,)
  expected = published_loss(scores, num_assigned, **settings)
  np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)


METHODS = {
  'two views': make(),
  'three views': make(views=('strong', 'strong_2'), num_assigned=3),
  'a small view': make(small_views=('strong_2',)),
}


@functools.cache
def _step(name, one):
  devices = jax.local_devices()[:1] if one else None
  return parallel.train_step(METHODS[name].update, devices), devices


def run(name, batches, *, one=False):
  """(state, sums of the last step) on the host."""
  step, devices = _step(name, one)
  state, sums = loop.init(METHODS[name], batch_of(0), 0, devices), None
  for batch in batches:
    state, sums = step(state, parallel.shard(batch, devices), jax.random.key(1))
  return jax.device_get((state, sums))


@pytest.mark.devices(4)
def test_one_device_equals_four():
  batches, name = [batch_of(step) for step in range(3)], 'a small view'
  found, expected = run(name, batches), run(name, batches, one=True)
  chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=2e-5)
  chex.assert_tree_all_finite(found)


def test_padding_counts_for_nothing():
  clean = batch_of(0)
  dirty = {
    k: np.where(clean['mask'][:, None] > 0, x, np.nan).astype(x.dtype)
    for k, x in clean.items()
    if k != 'mask'
  }
  dirty['mask'] = clean['mask']
  names = ('two views', [dirty]), ('two views', [clean])
  chex.assert_trees_all_equal(*(run(*x) for x in names))


def normalised(x):
  return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0)[None] + 1e-5)


def written_out(params, views):
  """Scores of views that are normalised together, [V, B, K]."""
  x = jnp.concatenate(views)
  net, head = params['model'], params['projection']
  x = x @ net['hidden']['kernel'] + net['hidden']['bias'][None]
  x = normalised(x) * net['norm']['scale'][None] + net['norm']['bias'][None]
  x = jnp.tanh(x) @ head['hidden']['kernel'] + head['hidden']['bias'][None]
  x = normalised(x) * head['norm']['scale'][None] + head['norm']['bias'][None]
  x = nn.relu(x) @ head['out']['kernel'] + head['out']['bias'][None]
  x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return (x @ params['prototypes']).reshape(len(views), -1, CLUSTERS)


@pytest.mark.parametrize('name', METHODS)
def test_a_step_follows_the_gradient_of_the_loss(name):
  batch = batch_of(0)
  state = jax.device_get(loop.init(METHODS[name], batch, 0))
  lengths = np.linalg.norm(state.params['prototypes'], axis=0)
  np.testing.assert_allclose(lengths, 1, rtol=1e-6)
  real = {k: x[batch['mask'] > 0] for k, x in batch.items()}
  first, second, third = (real[x] for x in ('features', 'strong', 'strong_2'))

  def scored(params):
    if name == 'three views':
      return written_out(params, [first, second, third])
    scores = written_out(params, [first, second])
    if name == 'a small view':
      scores = jnp.concatenate([scores, written_out(params, [third])])
    return scores

  count = 3 if name == 'three views' else 2
  targets = [
    published_assignments(x, epsilon=0.05, iterations=3)
    for x in np.asarray(jax.jit(scored)(state.params))[:count]
  ]

  def loss(params):
    logs = jax.nn.log_softmax(scored(params) / 0.1)
    terms = [
      -(targets[i] * logs[v]).sum(-1).mean()
      for i in range(count)
      for v in range(len(logs))
      if v != i
    ]
    return sum(terms) / len(terms)

  value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
  after, sums = run(name, [batch])
  moved = jax.tree.map(jnp.subtract, state.params, after.params)
  chex.assert_trees_all_close(moved, grads, rtol=2e-3, atol=2e-5)
  assert float(jnp.abs(grads['prototypes']).max()) > 1e-3
  total, weight = sums['loss']
  np.testing.assert_allclose(total / weight, value, rtol=1e-4)
  guess = np.asarray(jax.jit(scored)(state.params)).argmax(-1)
  alike = [len(set(row)) == 1 for row in guess.T]
  assert np.mean(alike) < 0.5
  total, weight = sums['agreement']
  np.testing.assert_allclose(total / weight, np.mean(alike), atol=1e-6)


def test_prototypes_wait_and_stay_on_the_sphere():
  method = make(
    optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, momentum=0.9)),
    frozen_steps=2,
  )
  update = jax.jit(method.update)
  state = jax.jit(method.init)(jax.random.key(0), batch_of(0))
  seen = [np.asarray(state.params['prototypes'])]
  for step in range(4):
    state, _ = update(state, batch_of(step), jax.random.key(step))
    seen.append(np.asarray(state.params['prototypes']))
  np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)
  np.testing.assert_allclose(seen[2], seen[0], atol=1e-6)
  assert abs(seen[3] - seen[2]).max() > 1e-3
  # A step begins on the sphere: what decay has made of lengths is undone.
  long = state.replace(
    params={**state.params, 'prototypes': 7 * state.params['prototypes']}
  )
  both = [update(x, batch_of(9), jax.random.key(9))[0] for x in (state, long)]
  chex.assert_trees_all_close(
    both[0].params, both[1].params, rtol=1e-4, atol=1e-5
  )


def test_clusters_of_the_data_are_found_and_a_classifier_starts_from_them():
  rng = np.random.default_rng(0)
  kind = np.arange(48) % CLUSTERS
  centres = np.eye(DIM)[:CLUSTERS] * 3

  def view():
    noise = 0.3 * rng.normal(size=(48, DIM))
    return (centres[kind] + noise).astype(np.float32)

  method = make(optax.adam(1e-2), frozen_steps=5)
  update = jax.jit(method.update)
  batch = {'features': view(), 'strong': view(), 'mask': np.ones(48, 'f4')}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  for step in range(150):
    batch = {'features': view(), 'strong': view(), 'mask': np.ones(48, 'f4')}
    state, sums = update(state, batch, jax.random.key(step))
  assert float(sums['agreement'][0]) > 0.95 * 48
  outputs = jax.jit(method.predict)(state, batch)
  assert outputs['features'].shape == (48, 6)
  cluster = outputs['scores'].argmax(-1)
  for one in range(CLUSTERS):
    assert len(set(np.asarray(cluster)[kind == one])) == 1
  assert len(set(np.asarray(cluster))) == CLUSTERS

  classifier = erm.make(Net(), optax.sgd(0.1), inputs=model_inputs.features)
  fresh = jax.jit(classifier.init)(jax.random.key(1), batch)
  begun = start.with_params(
    fresh, swav.network_params(state), keep=lambda path: path[0] == 'head'
  )
  np.testing.assert_array_equal(
    begun.params['hidden']['kernel'], state.params['model']['hidden']['kernel']
  )
  np.testing.assert_array_equal(
    begun.params['head']['kernel'], fresh.params['head']['kernel']
  )


@pytest.mark.parametrize(
  'settings',
  [
    dict(epsilon=0.001),
    dict(iterations=0),
    dict(temperature=0.0),
    dict(views=()),
    dict(num_assigned=3),
    dict(microbatches=2),
  ],
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(types.InputError):
    make(**settings)


class Words(nn.Module):
  """The mean of the real tokens' vectors, and a head."""

  @nn.compact
  def __call__(self, tokens, *, train, mask=None):
    del train
    vectors = nn.Embed(9, 6, name='table')(tokens)
    real = jnp.ones(tokens.shape) if mask is None else mask
    assert real.shape == tokens.shape
    mean = (vectors * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    return nn.Dense(4, name='head')(mean)


@pytest.mark.parametrize('masked', [True, False])
def test_padding_of_texts_counts_in_no_view(masked):
  method = swav.make(
    Words(),
    optax.sgd(1.0),
    num_prototypes=CLUSTERS,
    projection=swav.Projection(hidden_dim=7, dim=4),
    inputs=model_inputs.text,
    small_views=('strong_2',),
  )
  rng = np.random.default_rng(0)
  real = (np.arange(5) < rng.integers(1, 6, (ROWS, 1))).astype(np.float32)
  columns = ('tokens', 'strong', 'strong_2')
  batch = {x: rng.integers(1, 9, (ROWS, 5)) for x in columns}
  batch['mask'] = np.ones(ROWS, np.float32)
  other = {**batch, **{x: np.where(real > 0, batch[x], 0) for x in columns}}
  init, update = jax.jit(method.init), jax.jit(method.update)
  found = []
  for one in (batch, other):
    one = {**one, 'token_mask': real} if masked else one
    state = init(jax.random.key(0), one)
    _, sums = update(state, one, jax.random.key(1))
    found.append(float(sums['loss'][0]))
  assert np.isfinite(found).all()
  assert (found[0] == found[1]) == masked


def test_a_missing_view_is_named():
  batch = {k: x for k, x in batch_of(0).items() if k != 'strong'}
  method = METHODS['two views']
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  with pytest.raises(types.InputError, match='strong'):
    jax.eval_shape(method.update, state, batch, jax.random.key(0))
