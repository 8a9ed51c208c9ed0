"""A step of PiCO is, row by row and in its order, what the paper says."""

import collections
import functools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import loop
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import contrastive
from repjax.methods import disambiguation
from repjax.methods import key_queue
from repjax.methods import model_inputs
from repjax.methods import pico
from repjax.methods import two_views
from repjax.models import mlp

ROWS, CLASSES, DIM, QUEUE, TOTAL, WIDTH = 8, 4, 3, 16, 20, 16
WARMUP, PHI, MOMENTUM, GAMMA = 2, 0.8, 0.7, 0.6
TAU, WEIGHT, RATE = 0.3, 0.5, 0.2
STEPS = 5
_TERMS = ('classification', 'contrastive')


def _views(batch, rng):
  del rng  # Told apart, and drawn by nobody.
  x = batch['features']
  return batch, {**batch, 'features': 0.5 * x + 1}


@functools.cache
def _method(*, tx=optax.sgd(RATE), **changes):
  settings = dict(
    num_rows=TOTAL,
    num_classes=CLASSES,
    views=_views,
    warmup_steps=WARMUP,
    target_momentum=PHI,
    dim=DIM,
    queue_size=QUEUE,
    momentum=MOMENTUM,
    prototype_momentum=GAMMA,
    temperature=TAU,
    weight=WEIGHT,
    inputs=model_inputs.features,
  )
  return pico.make(
    mlp.Mlp(CLASSES, features=(WIDTH,)),
    tx,
    **{**settings, **changes},
  )


@functools.cache
def _set():
  rng = np.random.default_rng(0)
  label = rng.integers(0, CLASSES, TOTAL)
  found = rng.random((TOTAL, CLASSES)) < 0.5
  found[np.arange(TOTAL), label] = True
  return {
    'features': rng.normal(size=(TOTAL, 6)).astype(np.float32),
    'label': label,
    'candidates': found,
  }


def _batch(step):
  index = np.random.default_rng(step).permutation(TOTAL)[:ROWS]
  mask = np.ones(ROWS, np.float32)
  mask[ROWS - step % 4 :] = 0  # In some steps, of a device all rows.
  rows = {name: x[index] for name, x in _set().items()}
  return {**rows, 'index': index.astype(np.int32), 'mask': mask}


def _fit(method, until=STEPS, **settings):
  def batches(start):
    return map(_batch, range(start, STEPS))

  last = loop.fit(method, batches, steps=until, seed=0, **settings)
  return parallel.whole(last)


def _on_host(state):
  return jax.device_get(parallel.whole(state))


@functools.cache
def _trajectory():
  """States before the first and after every step, and what they report."""
  method = _method()
  states = [_on_host(loop.init(method, _batch(0), seed=0))]
  sums = []

  def keep(step, state, now):
    states.append(_on_host(state))
    sums.append(jax.device_get(now))

  last = _fit(method, hooks=(keep,))
  return states, sums, last


# The oracle: one row after the other, in lists and dicts.


@jax.jit
def _network(params, x):
  """(logits, unit embedding) of one row."""

  def dense(layer, x):
    return x @ layer['kernel'] + layer['bias']

  model, projection = params['model'], params['projection']
  features = jnp.maximum(dense(model['hidden_0'], x), 0)
  out = dense(
    projection['head'],
    jnp.maximum(dense(projection['hidden_0'], features), 0),
  )
  return dense(model['head'], features), out / jnp.linalg.norm(out)


def _loss(params, rows, targets, guesses, keys, queue, warm):
  """Mean loss of the step's rows; `queue` holds (key, guess)."""
  outputs = {i: _network(params, row['features']) for i, row in rows.items()}
  total = 0.0
  for i in rows:
    logits, query = outputs[i]
    log_probs = logits - jnp.log(jnp.exp(logits).sum())
    total -= sum(targets[i][c] * log_probs[c] for c in range(CLASSES))
    if warm:
      pool = [(outputs[j][1], guesses[j]) for j in rows if j != i]
      pool += [(keys[j], guesses[j]) for j in rows] + list(queue)
      positives = [x for x, guess in pool if guess == guesses[i]]
    else:
      pool = [(keys[i], None), *queue]
      positives = [keys[i]]
    everyone = sum(jnp.exp(query @ x / TAU) for x, _ in pool)
    contrast = sum(jnp.log(everyone) - query @ x / TAU for x in positives)
    total += WEIGHT * contrast / len(positives)
  return total / len(rows)


def _oracle():
  """The same five steps: states as they should be."""
  start = _trajectory()[0][0]
  params, key_params = start.params, start.extra.key_params
  prototypes = np.zeros((CLASSES, DIM))
  places = [None] * QUEUE
  targets = np.full((TOTAL, CLASSES), 1 / CLASSES)
  for step in range(STEPS):
    batch, warm = _batch(step), step >= WARMUP
    rows = {
      i: {name: x[i] for name, x in batch.items()}
      for i in np.flatnonzero(batch['mask'])
    }
    old, guesses, queries, now = prototypes.copy(), {}, {}, {}
    for i, row in rows.items():
      logits, queries[i] = _network(params, row['features'])
      inside = np.flatnonzero(row['candidates'])
      guesses[i] = inside[np.argmax(np.asarray(logits)[inside])]
    for i in rows:
      c = guesses[i]
      prototypes[c] = GAMMA * prototypes[c] + (1 - GAMMA) * queries[i]
    prototypes /= np.maximum(
      np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-12
    )
    key_params = jax.tree.map(
      lambda k, q: MOMENTUM * k + (1 - MOMENTUM) * q, key_params, params
    )
    keys = {
      i: _network(key_params, 0.5 * row['features'] + 1)[1]
      for i, row in rows.items()
    }
    for i, row in rows.items():
      inside, place = np.flatnonzero(row['candidates']), row['index']
      outside = np.setdiff1d(np.arange(CLASSES), inside)
      targets[place, outside] = 0
      targets[place] /= targets[place].sum()
      if warm:
        nearest = inside[np.argmax((old @ np.asarray(queries[i]))[inside])]
        targets[place] *= PHI
        targets[place, nearest] += 1 - PHI
      now[i] = targets[place].copy()
    queue = [x for x in places if x is not None]
    grads = jax.device_get(
      jax.grad(_loss)(params, rows, now, guesses, keys, queue, warm)
    )
    params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    first = step * ROWS % QUEUE
    for i in range(ROWS):
      places[first + i] = (keys[i], guesses[i]) if i in rows else None
  return params, key_params, prototypes, targets, places


def test_five_steps_are_those_of_the_oracle():
  last = _trajectory()[0][-1]
  params, key_params, prototypes, targets, places = _oracle()
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
  close(last.params, params)
  close(last.extra.key_params, key_params)
  close(last.extra.prototypes, prototypes)
  close(last.extra.targets.values, targets)
  for place, entry in enumerate(places):
    label = last.extra.queue.labels[place]
    if entry is None:
      assert label == -1
    else:
      close(last.extra.queue.keys[place], entry[0])
      assert label == entry[1]


@pytest.mark.devices(4)
def test_one_device_equals_four():
  last = _fit(_method(), devices=jax.local_devices()[:1])
  chex.assert_trees_all_close(
    jax.device_get(last), _trajectory()[0][-1], rtol=1e-4, atol=1e-5
  )


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
  method, (states, _, last) = _method(), _trajectory()
  store = checkpoint.Checkpoints(str(tmp_path))
  store.save(_fit(method, until=3), {})
  store.wait()
  restored, _ = store.restore(loop.init(method, _batch(0), seed=1))
  store.close()
  chex.assert_trees_all_equal(restored, states[3])
  chex.assert_trees_all_equal(
    jax.device_get(_fit(method, state=restored)), jax.device_get(last)
  )


def test_targets_sum_to_one_and_never_leave_their_candidates():
  states, _, _ = _trajectory()
  seen = set()
  for step, state in enumerate(states[1:]):
    batch = _batch(step)
    seen |= set(batch['index'][batch['mask'] > 0])
    np.testing.assert_allclose(state.extra.targets.values.sum(1), 1, rtol=1e-6)
    for row in seen:
      assert not state.extra.targets.values[row][
        ~_set()['candidates'][row]
      ].any()
  unseen = sorted(set(range(TOTAL)) - seen)
  assert (states[-1].extra.targets.values[unseen] == 1 / CLASSES).all()
  # During the warm-up they stay uniform.
  row = _batch(0)['index'][0]
  inside = _set()['candidates'][row]
  np.testing.assert_allclose(
    states[1].extra.targets.values[row], inside / inside.sum(), rtol=1e-6
  )


def test_right_labels_change_nothing_that_is_learned():
  def lying(start):
    for step in range(start, STEPS):
      yield {**_batch(step), 'label': 0 * _batch(step)['label']}

  found = loop.fit(_method(), lying, steps=STEPS, seed=0)
  chex.assert_trees_all_equal(_on_host(found), jax.device_get(_trajectory()[2]))


def test_predictions_of_training_rows_have_their_targets():
  method, state = _method(), _trajectory()[0][-1]
  batch = _batch(0)
  found = method.predict(state, batch)
  targets = state.extra.targets.values[batch['index']]
  np.testing.assert_allclose(found['pseudo_target'], targets, rtol=1e-5)
  alone = {k: x for k, x in batch.items() if k != 'features'}
  assert set(method.predict(state, alone)) == {'pseudo_target'}
  test_rows = {k: batch[k] for k in ('features', 'label', 'mask')}
  assert set(method.predict(state, test_rows)) == {'logits'}


# What the authors' code said of fixed numbers (github.com/hbzju/PiCO, model.py
# and utils/utils_loss.py at ad687bb, PyTorch 2.13 on a CPU): five steps of SGD
# with momentum and decay, two of them warm-up.


def test_the_authors_code_takes_the_same_steps():
  theirs = dict(np.load(pathlib.Path(__file__).parent / 'pico_authors.npz'))

  def views(batch, rng):
    del rng  # Drawn before.
    return batch, {**batch, 'features': batch['second']}

  method = _method(
    views=views,
    target_momentum=float(theirs['phi']),
    temperature=0.07,
    tx=optax.chain(
      optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9)
    ),
  )

  def layers(when):
    def layer(name):
      weights = theirs[f'{when}_{name}_w'], theirs[f'{when}_{name}_b']
      return dict(zip(('kernel', 'bias'), weights, strict=True))

    return {
      'model': {'hidden_0': layer('h'), 'head': layer('fc')},
      'projection': {'hidden_0': layer('p0'), 'head': layer('p1')},
    }

  columns = ('features', 'second', 'candidates')
  batches = [
    {
      **{name: theirs[name][index] for name in columns},
      'index': index,
      'mask': np.ones(ROWS, np.float32),
    }
    for index in theirs['order']
  ]
  state = jax.jit(method.init)(jax.random.key(0), batches[0])
  # Their queue begins with random rows, whose labels are no class's.
  queue = key_queue.Queue(
    jnp.asarray(theirs['queue']), jnp.full(QUEUE, 99), jnp.int32(0)
  )
  state = state.replace(
    params=layers('start'),
    extra=state.extra._replace(key_params=layers('start'), queue=queue),
  )
  update, found = jax.jit(method.update), []
  for batch in batches:
    state, sums = update(state, batch, jax.random.key(0))
    found.append([sums[x][0] / sums[x][1] for x in _TERMS])
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)
  close(np.asarray(found), np.stack([theirs[x] for x in _TERMS], 1))
  close(state.params, layers('end'))
  memory = state.extra
  close(memory.key_params, layers('key'))
  close(memory.prototypes, theirs['prototypes'])
  seen = np.unique(theirs['order'])  # Of the others ours do not know the sets.
  close(memory.targets.values[seen], theirs['targets'][seen])
  close(memory.queue.keys, theirs['end_queue'])
  np.testing.assert_array_equal(memory.queue.labels, theirs['end_labels'])
  assert memory.queue.place == theirs['place']


# Parts.


@pytest.mark.parametrize('momentum', [0.0, 0.9, 0.99, 1.0])
def test_the_closed_form_of_prototypes_is_the_sequence(momentum):
  rng = np.random.default_rng(1)
  rows, classes = 64, 5
  start = rng.normal(size=(classes, DIM))
  query = rng.normal(size=(rows, DIM))
  guess = rng.integers(0, classes - 1, rows)  # One class has no row.
  mask = rng.random(rows) < 0.8
  expected = start.copy()
  for i in np.flatnonzero(mask):
    old = expected[guess[i]]
    expected[guess[i]] = momentum * old + (1 - momentum) * query[i]
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  moved = functools.partial(disambiguation.moved_prototypes, momentum=momentum)
  found = jax.jit(moved)(
    *(np.asarray(x, np.float32) for x in (start, query)),
    guess,
    mask.astype(np.float32),
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_prototype_of_nobody_stays_zero():
  found = disambiguation.moved_prototypes(
    jnp.zeros((3, DIM)),
    jnp.ones((2, DIM)),
    np.array([0, 1]),
    np.array([1.0, 0.0]),
    momentum=0.9,
  )
  np.testing.assert_allclose(found[0], np.full(DIM, DIM**-0.5), rtol=1e-6)
  assert not found[1:].any()


def test_without_prototypes_the_first_candidate_is_taken():
  inside = np.array([[False, True, True], [True, False, True]])
  found = disambiguation.moved_targets(
    jnp.asarray(inside / 2), jnp.zeros((2, 3)), inside, 0.8
  )
  np.testing.assert_allclose(found, [[0, 0.6, 0.4], [0.6, 0, 0.4]], rtol=1e-6)


def test_the_queue_is_first_in_first_out_over_its_wrap():
  queue, expected = key_queue.empty(6, 1), collections.deque(maxlen=6)
  enqueued = jax.jit(key_queue.enqueued)
  for step in range(5):
    mask = np.array([1.0, step % 2])
    keys = np.asarray([[2.0 * step], [2.0 * step + 1]], np.float32)
    expected.extend(
      (float(x[0]), 2 * step) if m else None
      for x, m in zip(keys, mask, strict=True)
    )
    queue = enqueued(queue, keys, np.full(2, 2 * step), mask)
    found = [
      (float(key[0]), int(label)) if label >= 0 else None
      for key, label in zip(*map(np.asarray, queue[:2]), strict=True)
    ]
    first = int(queue.place)
    oldest_first = found[first:] + found[:first]
    assert oldest_first == [None] * (6 - len(expected)) + list(expected)


def test_a_state_keeps_its_types_where_numbers_are_double():
  with jax.enable_x64(True):
    method, batch, rng = _method(), _batch(0), jax.random.key(0)
    before = jax.eval_shape(method.init, rng, batch)
    after, _ = jax.eval_shape(method.update, before, batch, rng)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    queue = key_queue.empty(4, 2)
    key, mask = jnp.ones((2, 2), jnp.float32), jnp.ones(2)
    later = key_queue.enqueued(queue, key, jnp.arange(2), mask)
    chex.assert_trees_all_equal_shapes_and_dtypes(queue, later)


def test_with_known_labels_it_is_sup_con_of_the_first_view():
  rng = np.random.default_rng(2)
  query, key = np.asarray(
    jax.jit(contrastive.unit)(rng.normal(size=(2, ROWS, DIM)))
  )
  label = np.array([0, 1, 1, 0, 2, 1, 0, 2])
  mask = np.array([1, 1, 0, 1, 1, 1, 0, 0], np.float32)
  own = functools.partial(pico.contrastive_loss, warm=True, temperature=TAU)
  found = jax.jit(own)(query, key, label, mask, key_queue.empty(8, DIM))
  sup_con = functools.partial(
    contrastive.sup_con, temperature=TAU, anchors='one'
  )
  expected = jax.jit(sup_con)(np.stack([query, key]), label, mask)
  np.testing.assert_allclose(found * mask, expected * mask, rtol=1e-5)


def test_during_the_warm_up_it_is_moco():
  rng = np.random.default_rng(3)
  query, key, past = np.asarray(
    jax.jit(contrastive.unit)(rng.normal(size=(3, ROWS, DIM)))
  )
  labels = np.asarray([0, -1, 2, 3, -1, 1, 1, 1])
  own = functools.partial(pico.contrastive_loss, warm=False, temperature=TAU)
  found = jax.jit(own)(
    query,
    key,
    np.zeros(ROWS, int),
    np.ones(ROWS),
    key_queue.Queue(past, labels, 0),
  )
  moco = functools.partial(contrastive.moco, temperature=TAU)
  expected = jax.jit(moco)(query, key, past, filled=labels >= 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_phi_falls_by_epochs_as_the_authors_set_it():
  phi = disambiguation.falling_momentum(0.95, 0.8, steps=40, steps_per_epoch=4)
  current, expected = 0.99, []
  for epoch in range(10):
    expected += [current] * 4
    current = epoch / 10 * (0.8 - 0.95) + 0.95
  np.testing.assert_allclose([phi(x) for x in range(40)], expected, rtol=1e-6)


# Other inputs, and what is refused.


class _Recurrent(nn.Module):
  """Mean of embedded tokens with dropout, then `head`."""

  @nn.compact
  def __call__(self, tokens, *, train, mask=None):
    del mask  # All tokens are real here.
    x = nn.Embed(7, 6, name='embed')(tokens).mean(1)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(CLASSES, name='head')(x)


def test_texts_are_seen_twice_by_dropout():
  made = pico.make(
    _Recurrent(),
    optax.sgd(RATE),
    num_rows=TOTAL,
    num_classes=CLASSES,
    views=two_views.by_dropout(),
    warmup_steps=1,
    target_momentum=PHI,
    dim=DIM,
    queue_size=QUEUE,
    inputs=model_inputs.text,
  )

  def batches(start):
    for step in range(start, 3):
      batch = dict(_batch(step))
      del batch['features']
      rng = np.random.default_rng(step)
      yield {**batch, 'tokens': rng.integers(0, 7, (ROWS, 5))}

  state = loop.fit(made, batches, steps=3, seed=0)
  chex.assert_tree_all_finite(jax.device_get(state.params))
  # Keys are not the queries of the same dropout.
  assert int(state.extra.queue.place) == 3 * ROWS % QUEUE


def test_views_with_noise_are_two_and_those_of_their_rows():
  batch = {'features': jnp.zeros((4, 3)), 'mask': jnp.ones(4)}
  one, other = two_views.with_noise(2.0)(batch, jax.random.key(0))
  assert (one['features'] != other['features']).all()
  assert 0.5 < float(one['features'].std()) < 4
  with pytest.raises(types.InputError, match='by_dropout'):
    two_views.with_noise(1.0)(
      {'tokens': jnp.zeros((2, 3), int)}, jax.random.key(0)
    )
  with pytest.raises(types.InputError, match='std'):
    two_views.with_noise(0.0)


def test_views_of_images_take_the_strong_one_where_the_host_made_it():
  def same(images, rngs):
    assert rngs.shape == images.shape[:1]
    return images

  image = jnp.arange(8.0).reshape(2, 2, 2, 1)
  make = two_views.of_images(same, same)
  one, other = make({'image': image, 'strong': -image}, jax.random.key(0))
  np.testing.assert_array_equal(one['image'], image)
  np.testing.assert_array_equal(other['image'], -image)
  one, other = two_views.of_images(same, same, noise=0.1)(
    {'image': image}, jax.random.key(0)
  )
  assert (one['image'] != other['image']).all()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(warmup_steps=-1), 'warmup_steps'),
    (dict(target_momentum=1.1), 'target_momentum'),
    (dict(momentum=2.0), 'momentum'),
    (dict(temperature=0.0), 'temperature'),
    (dict(queue_size=0), 'queue_size'),
    (dict(microbatches=2), 'microbatches'),
    (dict(ema_decay=0.5), 'ema_decay'),
    (dict(compute_dtype='float16'), 'compute_dtype'),
    (dict(rate=1), 'rate'),
  ],
)
def test_bad_settings_are_refused(changes, words):
  with pytest.raises(types.InputError, match=words):
    _method(**changes)


def test_a_queue_of_no_whole_batches_is_refused_with_sizes_that_work():
  with pytest.raises(types.InputError, match='set it to 16 or 24'):
    _fit(_method(queue_size=20))
  with pytest.raises(types.InputError, match='set it to 8'):
    _fit(_method(queue_size=4))


@pytest.mark.parametrize('column', ['candidates', 'index'])
def test_a_missing_column_is_named(column):
  batch = {k: x for k, x in _batch(0).items() if k != column}
  state = _trajectory()[0][0]
  with pytest.raises(types.InputError, match=column):
    jax.eval_shape(_method().update, state, batch, jax.random.key(0))


def test_a_link_that_takes_rows_apart_is_refused():
  tx = optax.chain(optim.sam(0.1, sync=False, groups=2), optax.sgd(RATE))
  method, batch = _method(tx=tx), _batch(0)
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  with pytest.raises(types.InputError, match='compares all rows'):
    jax.eval_shape(method.update, state, batch, jax.random.key(0))


def test_keys_have_masks_of_their_own(monkeypatch):
  method, keys, forward = _method(), [], model_inputs.forward
  state = jax.jit(method.init)(jax.random.key(0), _batch(0))

  def look(*args):
    key = jax.random.key_data(args[-1])
    jax.debug.callback(lambda x: keys.append(np.asarray(x)), key, ordered=True)
    return forward(*args)

  monkeypatch.setattr(model_inputs, 'forward', look)
  # A function of its own, which no cache knows without the look.
  update = jax.jit(lambda *args: method.update(*args))
  jax.block_until_ready(update(state, _batch(0), jax.random.key(1)))
  jax.effects_barrier()
  queries, own, again = keys
  assert (own != queries).any()
  assert (own != again).any()
