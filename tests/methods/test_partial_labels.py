"""Losses of candidate sets are those of their papers."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import partial_labels
from repjax.methods import supervised
from repjax.models import mlp

ROWS, CLASSES, TOTAL, STEPS = 8, 4, 20, 4


@functools.cache
def _set():
  rng = np.random.default_rng(0)
  label = rng.integers(0, CLASSES, TOTAL)
  found = rng.random((TOTAL, CLASSES)) < 0.4
  found[np.arange(TOTAL), label] = True
  return {
    'features': rng.normal(size=(TOTAL, 6)).astype(np.float32),
    'label': label,
    'candidates': found,
  }


def _batch(step, columns=None):
  columns = columns or _set()
  index = np.random.default_rng(step).permutation(TOTAL)[:ROWS]
  mask = np.ones(ROWS, np.float32)
  mask[ROWS - step % 4 :] = 0
  rows = {name: x[index] for name, x in columns.items()}
  return {**rows, 'index': index.astype(np.int32), 'mask': mask}


@functools.cache
def _method(kind, rate=0.3):
  return partial_labels.make(
    mlp.Mlp(CLASSES, features=()),
    optax.sgd(rate),
    kind=kind,
    num_rows=TOTAL,
    num_classes=CLASSES,
    leverage=2.0,
    inputs=model_inputs.features,
  )


def _fit(method, columns=None, **settings):
  def batches(start):
    return (_batch(step, columns) for step in range(start, STEPS))

  last = loop.fit(method, batches, steps=STEPS, seed=0, **settings)
  return parallel.whole(last)


def _softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


def _loss(kind, logits, inside, weights):
  """The loss of one row, by loops over classes."""
  probs = _softmax(logits)
  out = [c for c in range(CLASSES) if not inside[c]]
  inside = np.flatnonzero(inside)
  if kind == 'uniform':
    return -np.mean([np.log(probs[c]) for c in inside])
  if kind == 'cc':
    return -np.log(sum(probs[c] for c in inside))
  if kind == 'exp':
    chance = sum(probs[c] for c in inside)
    return (CLASSES - 1) / len(out) * np.exp(-chance) if out else 0
  if kind == 'mse':
    errors = [np.sum((probs - np.eye(CLASSES)[c]) ** 2) for c in range(CLASSES)]
    share = (CLASSES - 1 - len(out)) / len(out) if out else 0
    total = sum(errors[c] for c in inside) - share * sum(errors[c] for c in out)
    return total if out else 0
  if kind == 'proden':
    return -sum(weights[c] * np.log(probs[c]) for c in inside)
  sigmoid = 1 / (1 + np.exp(-logits))
  first = sum(weights[c] * (1 - sigmoid[c]) for c in inside)
  return first + 2.0 * sum(weights[c] * sigmoid[c] for c in out)


@pytest.mark.parametrize('kind', partial_labels.KINDS)
def test_the_loss_of_every_step_is_a_loop_over_rows_and_classes(kind):
  method = _method(kind)
  states = [jax.device_get(loop.init(method, _batch(0), seed=0))]
  losses = []

  def keep(step, state, sums):
    states.append(jax.device_get(state))
    losses.append(sums['loss'])

  _fit(method, hooks=(keep,))
  weights = np.full((TOTAL, CLASSES), 1 / CLASSES)
  for step in range(STEPS):
    batch = _batch(step)
    head = states[step].params['head']
    expected = 0.0
    for i in np.flatnonzero(batch['mask']):
      logits = batch['features'][i] @ head['kernel'] + head['bias']
      inside, place = batch['candidates'][i], batch['index'][i]
      if kind == 'proden':
        weights[place] *= inside
        weights[place] /= weights[place].sum()
      expected += _loss(kind, logits, inside, weights[place])
      new = np.zeros(CLASSES)
      new[inside] = _softmax(logits[inside])
      if kind == 'lws' and not inside.all():
        new[~inside] = _softmax(logits[~inside])
      weights[place] = new
    total, count = losses[step]
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert count == batch['mask'].sum()
    if kind in ('proden', 'lws'):
      np.testing.assert_allclose(
        parallel.whole(states[step + 1]).extra.weights.values,
        weights,
        rtol=1e-4,
        atol=1e-6,
      )
  before, after = states[0].params['head'], states[-1].params['head']
  assert np.abs(after['kernel'] - before['kernel']).max() > 1e-2


@pytest.mark.devices(4)
@pytest.mark.parametrize('kind', ['cc', 'proden', 'lws'])
def test_one_device_equals_four(kind):
  one, four = (
    jax.device_get(_fit(_method(kind), devices=jax.local_devices()[:number]))
    for number in (1, 4)
  )
  chex.assert_trees_all_close(one, four, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', ['uniform', 'cc', 'proden'])
def test_with_one_candidate_it_is_cross_entropy(kind):
  sure = {**_set(), 'candidates': np.eye(CLASSES, dtype=bool)[_set()['label']]}
  plain = supervised.make(
    mlp.Mlp(CLASSES, features=()), optax.sgd(0.3), inputs=model_inputs.features
  )
  found, expected = _fit(_method(kind), sure), _fit(plain, sure)
  chex.assert_trees_all_close(
    jax.device_get(found.params), jax.device_get(expected.params), rtol=1e-5
  )


@pytest.mark.parametrize('num_out', [1, 2, 3])
def test_mse_is_unbiased_where_sets_are_uniform(num_out):
  logits, label = np.asarray([0.3, -1.0, 2.0, 0.5]), 1
  others = [c for c in range(CLASSES) if c != label]
  sets = [
    [c not in out for c in range(CLASSES)]
    for out in itertools.combinations(others, num_out)
  ]
  bounded = functools.partial(partial_labels.bounded, kind='mse')
  found = jax.jit(bounded)(np.tile(logits, (len(sets), 1)), np.asarray(sets))
  right = np.square(_softmax(logits) - np.eye(CLASSES)[label]).sum()
  np.testing.assert_allclose(np.mean(found), right, rtol=1e-5)


@pytest.mark.parametrize('kind', ['mse', 'exp'])
def test_a_set_of_all_classes_says_nothing(kind):
  def loss(logits):
    return partial_labels.bounded(
      logits, jnp.ones((1, CLASSES), bool), kind=kind
    ).sum()

  grad = jax.jit(jax.value_and_grad(loss))
  value, slope = grad(jnp.asarray([[3.0, 0.0, 1.0, -2.0]]))
  assert value == 0
  assert not np.any(slope)


def test_a_set_that_the_model_finds_impossible_has_a_gradient():
  logits = jnp.asarray([[200.0, 0.0, 1.0, -3.0]])
  inside = jnp.asarray([[False, True, True, False]])
  np.testing.assert_allclose(
    np.asarray(jax.jit(partial_labels.probabilities)(logits, inside))[0],
    [0, *_softmax(np.array([0.0, 1.0])), 0],
    rtol=1e-5,
  )
  slope = jax.jit(
    jax.grad(lambda x: -partial_labels.set_log_probability(x, inside).sum())
  )(logits)
  chex.assert_tree_all_finite(slope)
  assert slope[0, 0] == pytest.approx(1.0)


def test_of_a_row_that_comes_twice_the_later_one_is_kept():
  table = trees.PerRow(jnp.zeros((5, 2)), 5)
  batch = {
    'index': jnp.asarray([3, 1, 3, 0]),
    'mask': jnp.asarray([1.0, 1.0, 1.0, 0.0]),
  }
  rows = jnp.arange(8.0).reshape(4, 2)
  found = partial_labels.stored(table, batch, rows)
  np.testing.assert_array_equal(
    found.values, [[0, 0], [2, 3], [0, 0], [4, 5], [0, 0]]
  )


@pytest.mark.devices(4)
@pytest.mark.parametrize('num_rows', [8, 10])
def test_a_table_in_parts_is_read_and_written_as_the_whole_one(num_rows):
  draws = np.random.default_rng(0)
  start = draws.normal(size=(num_rows, 3)).astype(np.float32)
  batch = {
    # On other devices than their rows; one comes twice, one is padding.
    'index': np.asarray([7, 0, 5, 1, 7, 6, 2, 3], np.int32),
    'mask': np.asarray([1, 1, 1, 1, 1, 1, 0, 1], np.float32),
  }
  rows = draws.normal(size=(8, 3)).astype(np.float32)

  def update(state, batch, rng):
    del rng
    found = partial_labels.looked_up(state.extra, batch['index'])
    extra = partial_labels.stored(state.extra, batch, batch['rows'])
    return state.replace(extra=extra), {'found': parallel.all_gather(found)}

  table = trees.PerRow(jnp.asarray(start), num_rows)
  state = types.TrainState(jnp.zeros((), jnp.int32), {}, (), {}, table)
  placed = parallel.replicate(state)
  part = -(-num_rows // 4)
  assert placed.extra.spread
  assert placed.extra.values.shape == (4, part, 3)
  for shard in placed.extra.values.addressable_shards:
    assert shard.data.size == part * 3  # No device has all of it.
  step = parallel.train_step(update)
  after, sums = step(
    placed, parallel.shard({**batch, 'rows': rows}), jax.random.key(0)
  )
  np.testing.assert_array_equal(sums['found'], start[batch['index']])
  expected = start.copy()
  for place in (1, 2, 3, 4, 5, 7):  # The later one stays.
    expected[batch['index'][place]] = rows[place]
  together = trees.to_arrays(parallel.whole(after))
  assert set(together) == {
    'step',
    'extra',
  }  # As checkpoints have always had it.
  np.testing.assert_array_equal(together['extra'], expected)
  # To other devices, and back.
  fewer = parallel.replicate(after, jax.local_devices()[:2])
  assert fewer.extra.values.shape == (2, num_rows // 2, 3)
  one = parallel.replicate(fewer, jax.local_devices()[:1])
  assert not one.extra.spread
  np.testing.assert_array_equal(one.extra.values, expected)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(kind='rc'), 'kind'),
    (dict(leverage=-1.0), 'leverage'),
    (dict(num_rows=0), 'num_rows'),
    (dict(kind='proden', microbatches=2), 'microbatches'),
    (dict(kind='lws', ema_decay=0.9), 'ema_decay'),
  ],
)
def test_bad_settings_are_refused(changes, words):
  settings = dict(kind='cc', num_rows=TOTAL, num_classes=CLASSES)
  with pytest.raises(types.InputError, match=words):
    partial_labels.make(
      mlp.Mlp(CLASSES), optax.sgd(0.1), **{**settings, **changes}
    )


def test_sets_of_other_classes_are_refused():
  batch = {**_batch(0), 'candidates': np.ones((ROWS, CLASSES + 1), bool)}
  state = jax.eval_shape(_method('cc').init, jax.random.key(0), batch)
  with pytest.raises(types.InputError, match=r'\[B, 4\]'):
    jax.eval_shape(_method('cc').update, state, batch, jax.random.key(0))
