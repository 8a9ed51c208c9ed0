"""The tokenizer: its relaxation in the limits, and that it learns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import trees
from repjax.methods import dvae as tokenizing
from repjax.models import dvae
from repjax.types import InputError

VOCAB = 6


def network(num_blocks=0):
  return dvae.Dvae(
    dvae.Encoder(VOCAB, hidden_dim=8, num_halvings=1, num_blocks=num_blocks),
    dvae.Decoder(1, hidden_dim=8, num_halvings=1, num_blocks=num_blocks),
  )


def images(rows=8):
  """Every quarter of an image is black or white."""
  quarters = np.random.default_rng(0).integers(0, 2, (rows, 2, 2, 1))
  return np.kron(quarters * 2.0 - 1, np.ones((1, 2, 2, 1))).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(network(1).init)(jax.random.key(0), images(), 0.0, 1.0)


@pytest.mark.parametrize('straight_through', [False, True])
def test_a_cold_relaxation_is_the_token(variables, straight_through):
  model = network(1)
  encode = functools.partial(model.apply, method='encode')
  logits = jax.jit(encode)(variables, images())
  noise = jax.random.gumbel(jax.random.key(1), logits.shape)
  token = (logits + noise).argmax(-1)
  decode = functools.partial(model.apply, method='decode')
  expected = jax.jit(decode)(variables, token)
  temperature = 1.0 if straight_through else 1e-4
  apply = functools.partial(model.apply, straight_through=straight_through)
  found, _ = jax.jit(apply)(variables, images(), noise, temperature)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_straight_through_has_the_gradient_of_the_relaxation(variables):
  # With a linear decoder, which both ways see the same slope of.
  def loss(logits, straight_through):
    model = dvae.Dvae(lambda x: x, lambda weights: weights @ jnp.arange(3.0))
    made, _ = model.apply(
      {}, logits, 0.0, 0.7, straight_through=straight_through
    )
    return made.sum()

  logits = jnp.array([[[[0.3, -0.2, 0.5]]]])
  grad = jax.jit(jax.grad(loss), static_argnums=1)
  plain, through = (grad(logits, x) for x in (False, True))
  np.testing.assert_allclose(plain, through, rtol=1e-5)
  assert jnp.abs(plain).max() > 0.01
  assert loss(logits, True) == 2.0  # The token itself.


def test_the_distance_from_uniform_by_hand():
  probs = np.array([0.5, 0.25, 0.25])
  expected = (probs * np.log(probs * 3)).sum()
  found = dvae.uniform_kl(jnp.log(probs) + 7.0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(dvae.uniform_kl(jnp.zeros(4)), 0.0, atol=1e-6)


def test_training_reconstructs_by_several_tokens():
  steps = 120
  method = tokenizing.make(
    network(),
    optax.adam(2e-2),
    temperature=optax.cosine_decay_schedule(1.0, steps, 0.1),
    kl_weight=1e-3,
  )
  batch = {'image': images(), 'mask': np.ones(8, np.float32)}

  def many(rng):
    def one(state, rng):
      state, sums = method.update(state, batch, rng)
      return state, sums['mse'][0] / sums['mse'][1]

    state = method.init(rng, batch)
    return jax.lax.scan(one, state, jax.random.split(rng, steps))

  state, mse = jax.jit(many)(jax.random.key(0))
  assert mse[-1] < 0.2 * mse[0]
  outputs = jax.jit(method.predict)(state, batch)
  assert outputs['mse'].max() < 0.2  # By tokens, not by mixtures of them.
  assert outputs['ids'].shape == (8, 2, 2)
  assert len(np.unique(outputs['ids'])) >= 2
  # One shade, one token: black and white share none.
  shades = images()[:, ::2, ::2, 0]
  black, white = (set(outputs['ids'][shades == x].tolist()) for x in (-1, 1))
  assert not black & white


def test_bfloat16_computes_and_the_aim_stays_float32():
  batch = {'image': images() * 0.301, 'mask': np.ones(8, np.float32)}
  sums = {}
  for dtype in ('float32', 'bfloat16'):
    method = tokenizing.make(
      network(), optax.sgd(0.1), temperature=1.0, compute_dtype=dtype
    )
    state = jax.jit(method.init)(jax.random.key(0), batch)
    # It makes 0 of everything, so that the error is that of its aim.
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    new, sums[dtype] = jax.jit(method.update)(state, batch, jax.random.key(1))
    assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype('f4')}
  expected = 8 * np.square(np.float32(0.301))
  for found in sums.values():
    np.testing.assert_allclose(found['mse'][0], expected, rtol=1e-5)


def test_the_published_encoder_has_its_layers_and_sizes():
  init = functools.partial(dvae.DalleEncoder().init, jax.random.key(0))
  shapes = jax.eval_shape(init, jnp.zeros((1, 16, 16, 3)))['params']

  # By the formula of the published layers, kernels and biases.
  def conv(inside, out, side):
    return inside * out * side**2 + out

  total, width = conv(3, 256, 7), 256
  for out in (256, 512, 1024, 2048):
    for inside in (width, out):
      quarter = out // 4
      total += conv(inside, quarter, 3) + 2 * conv(quarter, quarter, 3)
      total += conv(quarter, out, 1)
      total += conv(inside, out, 1) * (inside != out)
    width = out
  assert trees.size(shapes) == total + conv(2048, 8192, 1)
  small = dvae.DalleEncoder(5, hidden_dim=8, blocks_per_group=1)
  logits = jax.eval_shape(
    lambda: small.init_with_output(
      jax.random.key(0), jnp.zeros((2, 16, 24, 3))
    )[0]
  )
  assert logits.shape == (2, 2, 3, 5)


@pytest.mark.parametrize(
  ('encoder', 'multiple'),
  [
    (dvae.Encoder(VOCAB, hidden_dim=4, num_halvings=2), 4),
    (dvae.DalleEncoder(VOCAB, hidden_dim=4), 8),
  ],
)
def test_images_that_cannot_be_halved_are_refused(encoder, multiple):
  with pytest.raises(InputError, match=f'must be multiples of {multiple}'):
    jax.eval_shape(
      encoder.init, jax.random.key(0), jnp.zeros((1, multiple, 9, 1))
    )


@pytest.mark.parametrize(
  'numbers',
  [dict(temperature=0.0), dict(temperature=-1.0), dict(kl_weight=-1.0)],
)
def test_numbers_out_of_range_are_refused(numbers):
  with pytest.raises(InputError, match='must be in'):
    tokenizing.make(
      network(), optax.sgd(0.1), **{'temperature': 1.0, **numbers}
    )


def test_the_loss_has_the_distance_by_the_weight_of_its_step():
  method = tokenizing.make(
    network(),
    optax.sgd(0.0),
    temperature=1.0,
    kl_weight=lambda step: 0.25 * step,
  )
  batch = {'image': images(), 'mask': np.ones(8, np.float32)}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params
  )
  state = state.replace(step=jnp.int32(3), params=params)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  total, mse, kl = (float(sums[x][0]) for x in ('loss', 'mse', 'kl'))
  assert kl > 0.1
  assert total == pytest.approx(mse + 0.75 * kl, rel=1e-5)


def test_rows_of_padding_count_for_nothing():
  method = tokenizing.make(network(), optax.sgd(0.1), temperature=0.5)
  init, update = jax.jit(method.init), jax.jit(method.update)
  batch = {'image': images(), 'mask': np.ones(8, np.float32)}
  state = init(jax.random.key(0), batch)
  first = {name: x[:5] for name, x in batch.items()}
  after, sums = update(state, first, jax.random.key(1))
  batch['mask'][5:] = 0
  padded, same = update(state, batch, jax.random.key(1))
  for x, y in (after.params, padded.params), (sums, same):
    chex.assert_trees_all_close(x, y, rtol=1e-4, atol=1e-6)
  # Real rows have the temperature, and noise by their places.
  rng, _ = jax.random.split(jax.random.key(1))
  noise = [
    jax.random.gumbel(x, (2, 2, VOCAB)) for x in parallel.row_rngs(rng, 5)
  ]
  made, _ = jax.jit(network().apply)(
    {'params': state.params}, first['image'], jnp.stack(noise), 0.5
  )
  mse = np.square(made - first['image']).mean()
  np.testing.assert_allclose(sums['mse'][0] / 5, mse, rtol=1e-4)
