"""Masked image modeling: what counts in the loss, and what must agree."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.data.images import block_masks
from repjax.methods import beit as pretraining
from repjax.models import beit
from repjax.models import dvae
from repjax.types import InputError

ROWS, VOCAB = 6, 5


def network(**fields):
  settings = dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1)
  return beit.MaskedImageModel(beit.Encoder(2, **settings), VOCAB, **fields)


def make(tokenizer=None, **settings):
  if tokenizer is None:
    tokenizer = pretraining.known(VOCAB)
  return pretraining.make(network(), tokenizer, optax.sgd(0.1), **settings)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  sampler = block_masks.as_in_text((4, 4), ratio=0.3, min_block=2)
  return {
    'image': rng.normal(size=(ROWS, 8, 8, 1)).astype(np.float32),
    'token_image': rng.integers(0, VOCAB, (ROWS, 4, 4)).astype(np.int32),
    'mask': np.ones(ROWS, np.float32),
    **block_masks.fixed(sampler, 12, ROWS, seed=0),
  }


@pytest.fixture(scope='module')
def trained(batch):
  """(method, state of drawn parameters, its update, its predictions)."""
  method = make()
  rng = np.random.default_rng(1)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  state = state.replace(
    params=jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), state.params
    )
  )
  return jax.jit(method.update), state, jax.jit(method.predict)


def hidden(batch):
  """Bool [B, N] of hidden patches."""
  found = np.zeros((ROWS, 16), bool)
  for row in range(ROWS):
    real = batch['masked_weight'][row] > 0
    found[row, batch['masked'][row][real]] = True
  return found


def test_the_loss_is_the_cross_entropy_of_hidden_patches(batch, trained):
  update, state, predict = trained
  _, sums = update(state, batch, jax.random.key(0))
  mask = hidden(batch)
  assert len(set(mask.sum(1))) > 1  # Masks of several counts.
  logits = jax.jit(functools.partial(network().apply, train=False))(
    {'params': state.params}, batch['image'], mask
  )
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  ids = batch['token_image'].reshape(ROWS, 16)
  nll = -np.take_along_axis(log_probs, ids[..., None], axis=2)[..., 0]
  rows = [nll[i][mask[i]].mean() for i in range(ROWS)]
  total, weight = sums['loss']
  np.testing.assert_allclose(total / weight, np.mean(rows), rtol=1e-5)
  total, weight = sums['nats']
  np.testing.assert_allclose(total / weight, nll[mask].mean(), rtol=1e-5)
  hits = (log_probs.argmax(-1) == ids)[mask]
  total, weight = sums['accuracy']
  np.testing.assert_allclose(total / weight, hits.mean(), rtol=1e-6)
  outputs = predict(state, batch)
  np.testing.assert_allclose(outputs['nll'].sum(), nll[mask].sum(), rtol=1e-5)
  np.testing.assert_array_equal(
    outputs['guess'], np.where(mask, log_probs.argmax(-1), ids)
  )
  np.testing.assert_array_equal(outputs['patches'], mask.sum(1))


def test_tokens_of_seen_patches_do_not_count(batch, trained):
  update, state, _ = trained
  other = batch['token_image'].reshape(ROWS, 16)
  other = np.where(hidden(batch), other, (other + 1) % VOCAB)
  changed = {**batch, 'token_image': other.reshape(ROWS, 4, 4)}
  expected = update(state, batch, jax.random.key(0))
  chex.assert_trees_all_equal(
    update(state, changed, jax.random.key(0)), expected
  )
  other = np.where(hidden(batch), (other + 1) % VOCAB, other)
  changed = {**batch, 'token_image': other.reshape(ROWS, 4, 4)}
  _, sums = update(state, changed, jax.random.key(0))
  assert abs(sums['loss'][0] - expected[1]['loss'][0]) > 1e-3


def test_more_room_for_places_changes_nothing(batch, trained):
  update, state, _ = trained
  wide = dict(batch)
  # Garbage beyond the counts, too: weights say what is real.
  wide['masked'] = np.pad(batch['masked'], ((0, 0), (0, 3)), constant_values=7)
  wide['masked_weight'] = np.pad(batch['masked_weight'], ((0, 0), (0, 3)))
  chex.assert_trees_all_close(
    update(state, wide, jax.random.key(0)),
    update(state, batch, jax.random.key(0)),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_tokenizer_is_part_of_the_state_and_stays(batch):
  encoder = dvae.Encoder(VOCAB, hidden_dim=4, num_halvings=1, num_blocks=0)
  method = make(pretraining.of_encoder(encoder, VOCAB))
  images = {k: v for k, v in batch.items() if k != 'token_image'}
  state = jax.jit(method.init)(jax.random.key(0), images)
  variables = state.model_state[types.FROZEN]
  after, _ = jax.jit(method.update)(state, images, jax.random.key(0))
  chex.assert_trees_all_equal(after.model_state, state.model_state)
  other = jax.tree.map(lambda x: x + 1, variables)
  swapped = pretraining.with_tokenizer(state, other)
  expected = jax.jit(encoder.apply)(other, images['image']).argmax(-1)
  np.testing.assert_array_equal(
    jax.jit(method.predict)(swapped, images)['ids'],
    expected.reshape(ROWS, -1),
  )
  with pytest.raises(InputError, match='another tokenizer'):
    pretraining.with_tokenizer(
      state, jax.tree.map(lambda x: x[..., :1], variables)
    )


def test_the_loss_falls(batch):
  method = pretraining.make(
    network(), pretraining.known(VOCAB), optax.adam(2e-2)
  )

  def many(rng):
    def one(state, rng):
      state, sums = method.update(state, batch, rng)
      return state, sums['nats'][0] / sums['nats'][1]

    state = method.init(rng, batch)
    return jax.lax.scan(one, state, jax.random.split(rng, 300))

  _, nats = jax.jit(many)(jax.random.key(0))
  assert abs(nats[0] - np.log(VOCAB)) < 0.2
  assert nats[-1] < 0.5 * nats[0]


def test_what_does_not_agree_is_one_error_before_any_compute(batch):
  with pytest.raises(InputError, match=r'5 visual tokens.* has 6'):
    make(pretraining.known(6))
  encoder = dvae.Encoder(VOCAB, hidden_dim=4, num_halvings=2)
  method = make(pretraining.of_encoder(encoder, VOCAB))
  images = {k: v for k, v in batch.items() if k != 'token_image'}
  with pytest.raises(InputError, match=r'4 x 4 patches.* 2 x 2 tokens'):
    jax.eval_shape(method.init, jax.random.key(0), images)
  odd = {**images, 'image': jnp.zeros((ROWS, 9, 8, 1))}
  with pytest.raises(InputError, match='9 x 8'):
    jax.eval_shape(make().init, jax.random.key(0), odd)


@pytest.mark.parametrize('known', [True, False])
def test_the_tokenizer_sees_float32_whatever_the_model_computes_in(
  batch, known
):
  seen = []

  def ids(variables, image):
    del variables
    seen.append(image.dtype)
    return jnp.zeros((len(image), 4, 4), jnp.int32)

  tokenizer = pretraining.Tokenizer(lambda rng, image: {}, ids, VOCAB)
  rows = dict(batch)
  if not known:
    del rows['token_image']
  method = make(tokenizer, compute_dtype='bfloat16')
  state = jax.eval_shape(method.init, jax.random.key(0), rows)
  jax.eval_shape(method.update, state, rows, jax.random.key(0))
  jax.eval_shape(method.predict, state, rows)
  assert set(seen) == {jnp.dtype('int32' if known else 'float32')}
  assert len(seen) == 3


def test_pretraining_drops_what_it_is_told_to(batch):
  sizes = dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1)
  encoder = beit.Encoder(2, dropout_rate=0.5, **sizes)
  method = pretraining.make(
    beit.MaskedImageModel(encoder, VOCAB),
    pretraining.known(VOCAB),
    optax.sgd(0.0),
  )
  state = jax.jit(method.init)(jax.random.key(0), batch)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), state.params
  )
  state, update = state.replace(params=params), jax.jit(method.update)
  one, other = (update(state, batch, jax.random.key(i))[1] for i in (0, 1))
  assert abs(one['nats'][0] - other['nats'][0]) > 1e-3
