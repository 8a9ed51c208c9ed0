"""Contrastive losses are loops over pairs, on any number of devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import gradients
from repjax import parallel
from repjax import types
from repjax.methods import contrastive

ROWS, DIM, TEMPERATURE = 8, 5, 0.3
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 0], np.float32)
LABEL = np.array([0, 1, 1, 0, 2, 1, 0, 2])


def _unit(seed, *shape):
  x = np.random.default_rng(seed).normal(size=(*shape, DIM))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _loss(query, positives, negatives, temperature=TEMPERATURE):
  """Mean over the positives of -log softmax, in float64."""
  everyone = [*positives, *negatives]
  total = sum(np.exp(query @ x / temperature) for x in everyone)
  each = [np.log(total) - query @ x / temperature for x in positives]
  return np.mean(each) if each else 0.0


def _sup_con(views, label, mask, anchors):
  """One loss a row by loops; of padding none."""
  losses = np.zeros(len(mask))
  for i in np.flatnonzero(mask):
    looking = range(1 if anchors == 'one' else len(views))
    for view in looking:
      positives, negatives = [], []
      for j in np.flatnonzero(mask):
        for other in range(len(views)):
          if (j, other) != (i, view):
            alike = label[i] == label[j]
            (positives if alike else negatives).append(views[other][j])
      losses[i] += _loss(views[view][i], positives, negatives) / len(looking)
  return losses


@pytest.mark.parametrize('anchors', ['all', 'one'])
def test_sup_con_is_a_loop_over_pairs(anchors):
  views = _unit(0, 3, ROWS)
  found = jax.jit(
    functools.partial(
      contrastive.sup_con, temperature=TEMPERATURE, anchors=anchors
    )
  )(views, LABEL, MASK)
  expected = _sup_con(views, LABEL, MASK, anchors)
  np.testing.assert_allclose(found * MASK, expected, rtol=1e-5)


def test_nt_xent_is_a_loop_over_pairs():
  first, second = _unit(1, ROWS), _unit(2, ROWS)
  nt_xent = functools.partial(contrastive.nt_xent, temperature=TEMPERATURE)
  found = np.asarray(jax.jit(nt_xent)(first, second, MASK))
  for i in np.flatnonzero(MASK):
    others = [j for j in np.flatnonzero(MASK) if j != i]
    apart = [x[j] for x in (first, second) for j in others]
    one = _loss(first[i], [second[i]], apart)
    other = _loss(second[i], [first[i]], apart)
    np.testing.assert_allclose(found[i], (one + other) / 2, rtol=1e-5)


def test_moco_is_a_loop_over_the_filled_places_of_the_queue():
  query, key, queue = _unit(3, ROWS), _unit(4, ROWS), _unit(5, 6)
  filled = np.array([1, 1, 0, 1, 0, 1], bool)
  moco = functools.partial(contrastive.moco, temperature=TEMPERATURE)
  found = jax.jit(moco)(query, key, queue, filled=filled)
  expected = [
    _loss(query[i], [key[i]], queue[filled], TEMPERATURE) for i in range(ROWS)
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_key_and_a_queue_get_no_gradient():
  def loss(query, key, queue):
    return contrastive.moco(query, key, queue, temperature=TEMPERATURE).sum()

  args = [
    jnp.asarray(x, jnp.float32)
    for x in (_unit(3, ROWS), _unit(4, ROWS), _unit(5, 6))
  ]
  of_query, of_key, of_queue = jax.device_get(
    jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
  )
  assert np.abs(of_query).max() > 0.01
  assert not of_key.any()
  assert not of_queue.any()


def test_a_row_without_positives_has_loss_and_gradient_zero():
  def loss(query):
    return contrastive.info_nce(
      query,
      jnp.asarray(_unit(6, 4), jnp.float32),
      positive=jnp.zeros((ROWS, 4), bool),
      counted=jnp.arange(4) < 0,
      temperature=TEMPERATURE,
    ).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(
    jnp.asarray(_unit(3, ROWS), jnp.float32)
  )
  assert value == 0
  assert not np.any(gradient)


def test_large_similarities_do_not_overflow():
  query = jnp.full((1, DIM), 100.0, jnp.bfloat16)
  moco = functools.partial(contrastive.moco, temperature=1e-3)
  found = jax.jit(moco)(query, query, -query)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [0.0])


def test_an_anchor_that_is_none_is_refused():
  with pytest.raises(types.InputError, match='anchors'):
    contrastive.sup_con(
      jnp.ones((2, 2, 2)),
      jnp.zeros(2, int),
      jnp.ones(2),
      temperature=1.0,
      anchors='some',
    )


def test_a_row_of_zeros_has_a_unit_and_a_gradient_that_are_finite():
  x = np.zeros((2, DIM), np.float32)
  x[0] = 3
  np.testing.assert_allclose(
    np.asarray(jax.jit(contrastive.unit)(x))[0],
    np.full(DIM, DIM**-0.5),
    rtol=1e-6,
  )
  gradient = jax.jit(jax.grad(lambda x: contrastive.unit(x)[0].sum()))(x)
  chex.assert_tree_all_finite(gradient)


def _row_losses(name, params, batch):
  views = [contrastive.unit(batch[x] @ params) for x in ('first', 'second')]
  settings = dict(temperature=TEMPERATURE)
  if name == 'nt_xent':
    return contrastive.nt_xent(*views, batch['mask'], **settings)
  return contrastive.sup_con(
    jnp.stack(views), batch['label'], batch['mask'], **settings
  )


@pytest.mark.devices(4)
@pytest.mark.parametrize('name', ['nt_xent', 'sup_con'])
def test_losses_and_gradients_of_four_devices_are_those_of_one(name):
  # With the last two rows, one device holds padding alone.
  rng = np.random.default_rng(7)
  batch = {
    'first': rng.normal(size=(ROWS, 4)).astype(np.float32),
    'second': rng.normal(size=(ROWS, 4)).astype(np.float32),
    'label': LABEL,
    'mask': MASK,
  }
  params = rng.normal(size=(4, DIM)).astype(np.float32)

  def loss_fn(params, model_state, batch, rng):
    del rng  # Nothing is drawn.
    return types.Losses(_row_losses(name, params, batch), model_state, {})

  def update(state, batch, rng):
    gradient, aux = gradients.GradFn(loss_fn, batch, rng, {})(state.params)
    return state.replace(params=gradient), aux.sums

  state = types.TrainState(np.int32(0), params, (), {}, ())

  @functools.cache
  def on(number):
    devices = jax.local_devices()[:number]
    step = parallel.train_step(update, devices)
    found, sums = step(
      parallel.replicate(state, devices),
      parallel.shard(batch, devices),
      jax.random.key(0),
    )
    return jax.device_get((found.params, sums['loss']))

  (one, loss), (four, loss_of_four) = on(1), on(4)
  np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(loss_of_four, loss, rtol=1e-5)

  # And one device's is the derivative of the mean over real rows.
  def mean(params, batch):
    losses = _row_losses(name, params, batch)
    return (losses * MASK).sum() / MASK.sum()

  expected = jax.jit(jax.grad(mean))(params, batch)
  np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
  assert abs(one).max() > 1e-2
