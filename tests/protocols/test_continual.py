"""Sequences of tasks: the protocol against plain loops, and who forgets."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import types
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.data.sets import tasks
from repjax.layers import layer_inputs
from repjax.methods import multitask
from repjax.protocols import continual
from repjax.protocols import sequential

SEEDS, STEPS, BATCH = (0, 1), 160, 10


class Network(nn.Module):
  """Without biases, as the authors' networks; counts its traces."""

  outputs: int = 10

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    del mask
    TRACES.append(train)
    x = image.reshape(len(image), -1)
    x = nn.relu(nn.Dense(48, use_bias=False, name='hidden')(x))
    return nn.Dense(self.outputs, use_bias=False, name='head')(x)


TRACES = []


@functools.cache
def stream(kind='permuted'):
  train, test = (source.load('digits', part) for part in ('train', 'test'))
  train = train.select(np.arange(400))
  if kind == 'permuted':
    parts = tasks.permuted(train, test, num_tasks=4, seed=0)
  else:
    parts = tasks.split(train, test, num_tasks=5)[:3]
  return continual.rows(parts, transforms.normalise(0.3, 0.37))


@functools.cache
def learn(learner, kind='permuted', **settings):
  heads = 'one' if kind == 'permuted' else 'each'
  return continual.run(
    learner,
    Network(10 if heads == 'one' else 3 * 2),
    stream(kind),
    optax.sgd(0.05),
    seeds=SEEDS,
    batch_size=BATCH,
    heads=heads,
    **{'steps': STEPS, **settings},
  )


def test_seeds_side_by_side_equal_a_plain_loop_over_steps():
  TRACES.clear()
  found = learn('sgd')
  # All tasks share one program, in which all their steps are.
  assert sum(TRACES) <= 2
  method = multitask.make(
    Network(), optax.sgd(0.05), num_tasks=4, weighting='rows', heads='one'
  )
  update, predict = jax.jit(method.update), jax.jit(method.predict)
  key, mask = jax.random.key(1), np.ones(BATCH, np.float32)
  rows = {name: x[:1] for name, x in stream()[0].train.items()}
  state = jax.jit(method.init)(
    jax.random.fold_in(key, 0), {**rows, 'mask': mask[:1]}
  )
  for number, task in enumerate(stream()):
    order = in_order.rows_at(0, STEPS * BATCH, 400, 4 + number)
    for rows in order.reshape(STEPS, BATCH):
      batch = {name: x[rows] for name, x in task.train.items()}
      state, _ = update(state, {**batch, 'mask': mask}, key)
    test = {**task.test, 'mask': np.ones(355, np.float32)}
    guess = np.asarray(predict(state, test)['logits']).argmax(-1)
    np.testing.assert_allclose(
      found.accuracy[1, number, number],
      (guess == test['label']).mean(),
      atol=0.01,
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-3),
    *jax.device_get((found.states.params, state.params)),
  )


def test_one_seed_after_the_other_is_the_same():
  one = learn('sgd', vectorize=False)
  np.testing.assert_allclose(one.accuracy, learn('sgd').accuracy, atol=0.01)


def test_projection_and_memory_forget_less_than_plain_descent():
  results = {
    name: continual.measures(learn(name, **settings))
    for name, settings in (
      ('sgd', {}),
      ('gpm', {'thresholds': 0.95}),
      ('replay', {'memory_per_class': 5}),
      ('a_gem', {'memory_per_class': 5}),
      ('ewc', {'strength': 100.0, 'learning_rate': 0.05}),
      ('multitask', {}),
    )
  }
  means = {n: {k: v.mean() for k, v in r.items()} for n, r in results.items()}
  assert means['sgd']['bwt'] < -0.15
  assert means['gpm']['bwt'] > means['sgd']['bwt'] / 2
  assert means['replay']['bwt'] > means['sgd']['bwt'] + 0.05
  for name in ('a_gem', 'ewc'):
    assert means[name]['bwt'] > means['sgd']['bwt'] + 0.03, name
  # What is rehearsed alone is not what is projected.
  assert means['a_gem'] != means['replay']
  assert means['multitask']['acc'] > means['gpm']['acc'] > means['sgd']['acc']
  assert np.isnan(means['multitask']['bwt'])
  ranks = learn('gpm', thresholds=0.95).ranks
  assert set(ranks) == {'hidden', 'head'}
  for rank, size in ((ranks['hidden'], 64), (ranks['head'], 48)):
    assert rank.shape == (2, 4) and (np.diff(rank, axis=1) >= 0).all()
    assert rank.min() > 0 and rank.max() <= size


@pytest.mark.parametrize(
  'learner, settings',
  [
    ('gpm', {'thresholds': 0.97}),
    ('ewc', {'strength': 100.0, 'num_samples': 60}),
  ],
)
def test_heads_of_old_tasks_are_left_alone(learner, settings):
  found = learn(learner, 'split', **settings)
  assert continual.measures(found)['bwt'].min() > -0.05
  assert np.diagonal(found.accuracy, 0, 1, 2).min() > 0.9
  if learner == 'gpm':
    assert set(found.ranks) == {'hidden'}


def test_sam_projection_and_clipping_stack_on_split_digits():
  rho, rate, limit = 0.05, 0.1, 0.5
  network = Network(3 * 2)
  method = multitask.make(
    network,
    optax.chain(
      optim.sam(rho),
      optim.project_gradients(free=lambda path: path[0] == 'head'),
      optax.clip_by_global_norm(limit),
      optax.sgd(rate),
    ),
    num_tasks=3,
    weighting='rows',
    heads='each',
  )
  update, predict = jax.jit(method.update), jax.jit(method.predict)
  first, second = stream('split')[:2]
  rng = jax.random.key(0)

  def batch(rows, order):
    mask = np.ones(len(order), np.float32)
    return {**{name: x[order] for name, x in rows.items()}, 'mask': mask}

  def learn_task(state, task):
    order = in_order.rows_at(0, 80 * BATCH, len(task.train['label']), 0)
    for rows in order.reshape(80, BATCH):
      state, _ = update(state, batch(task.train, rows), rng)
    test = batch(task.test, np.arange(len(task.test['label'])))
    guess = predict(state, test)['logits'].argmax(-1)
    return state, (guess == test['label']).mean()

  kept = batch(first.train, np.arange(30))
  state, accuracy = learn_task(jax.jit(method.init)(rng, kept), first)
  assert accuracy > 0.95
  before = predict(state, kept)['logits']
  captured = layer_inputs.representations(
    network, {'params': state.params}, kept
  )
  state = state.replace(
    opt_state=optim.update_bases(state.opt_state, captured, 1.0)
  )

  # One step against the three papers' formulas, written out.
  rows = batch(second.train, np.arange(BATCH))

  def loss(params):
    logits = network.apply({'params': params}, rows['image'], train=True)
    own = logits.reshape(BATCH, 3, 2)[np.arange(BATCH), rows['task']]
    return optax.softmax_cross_entropy_with_integer_labels(
      own, rows['label']
    ).mean()

  @jax.jit
  def written_out(params, basis):
    gradient = jax.grad(loss)(params)
    climb = rho / optax.tree.norm(gradient)
    sharp = jax.grad(loss)(
      jax.tree.map(lambda w, g: w + climb * g, params, gradient)
    )
    kernel = sharp['hidden']['kernel']
    sharp['hidden']['kernel'] = kernel - basis @ (basis.T @ kernel)
    shrink = jnp.minimum(1, limit / optax.tree.norm(sharp))
    stepped = jax.tree.map(lambda w, g: w - rate * shrink * g, params, sharp)
    return shrink, stepped

  basis = state.opt_state[1].bases['hidden']
  shrink, expected = written_out(state.params, basis)
  assert shrink < 1
  moved, _ = update(state, rows, rng)
  jax.tree.map(
    lambda new, x: np.testing.assert_allclose(new, x, atol=1e-6),
    moved.params,
    expected,
  )

  state, accuracy = learn_task(state, second)
  assert accuracy > 0.9
  np.testing.assert_allclose(predict(state, kept)['logits'], before, atol=1e-5)


def test_measures_are_their_definitions():
  accuracy = np.array([[[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.7, 1.0]]])
  result = continual.Outcome(accuracy, np.array([[0.1, 0.1, 0.2]]), {}, None)
  found = continual.measures(result)
  np.testing.assert_allclose(found['acc'], (0.5 + 0.7 + 1.0) / 3)
  np.testing.assert_allclose(found['bwt'], (0.5 - 0.9 + 0.7 - 0.8) / 2)
  np.testing.assert_allclose(found['fwt'], (0.2 - 0.1 + 0.3 - 0.2) / 2)


def test_ring_buffers_hold_the_last_rows_of_each_class():
  rng = np.random.default_rng(0)
  labels, seen = rng.integers(0, 3, 20), rng.integers(0, 20, 100)
  rings = collections.defaultdict(lambda: collections.deque(maxlen=4))
  for row in seen:
    rings[labels[row]].append(row)
  expected = np.concatenate([rings[label] for label in range(3)])
  found = sequential.ring_buffer(seen, labels, 4)
  np.testing.assert_array_equal(found, expected)


def test_an_unknown_learner_is_refused():
  with pytest.raises(types.InputError, match="'sgdd'"):
    learn('sgdd')
