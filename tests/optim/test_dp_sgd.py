"""DP-SGD: its noise, its limits, and that all replicas add the same."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from repjax import float64
from repjax import gradients
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import supervised
from repjax.models import mlp

pytestmark = pytest.mark.versions

KEY = jax.random.key(0)
SIZE = 4000


def rows(count=8):
  x = np.random.default_rng(0).normal(size=(count, SIZE)) / np.sqrt(SIZE)
  x *= np.arange(1, count + 1)[:, None]
  mask = np.ones(count, 'f4')
  mask[2] = 0
  return {'x': jnp.asarray(x.astype('f4')), 'mask': jnp.asarray(mask)}


PARAMS = {'w': jnp.zeros(SIZE - 1), 'b': jnp.zeros(1)}


def loss_fn(params, model_state, batch, rng):
  """Linear, so that the gradient of a row is the row."""
  del rng
  x = batch['x']
  loss = x[:, 1:] @ params['w'] + x[:, 0] * params['b'][0]
  return types.Losses(loss, model_state, {})


def flatten(params):
  return np.concatenate([params['b'], params['w']])


def link(clip_norm=2.0, noise_multiplier=1.5, **settings):
  settings = {'expected_batch_size': 5.0, 'key': (0, 0), **settings}
  settings['key'] = jnp.asarray(settings['key'], jnp.uint32)
  return optim.dp_sgd(clip_norm, noise_multiplier, **settings)


@functools.cache
def runner(steps=1, devices=1, **settings):
  """(batch, params) -> what the link makes of it ([T, D], state), compiled."""
  tx = link(**settings)

  def run(batch, params):
    def step(state, _):
      grad_fn = gradients.GradFn(loss_fn, batch, KEY, {})
      grads, _ = grad_fn(params)
      update, state = tx.update(grads, state, params, grad_fn=grad_fn)
      return state, update

    state, result = jax.lax.scan(step, tx.init(params), None, length=steps)
    return result, state

  if devices == 1:
    return jax.jit(run)
  return jax.pmap(run, axis_name=parallel.AXIS, in_axes=(0, None))


def updates(batch, params=PARAMS, **settings):
  return runner(**settings)(batch, params)


def clipped_sum(clip_norm):
  x, mask = np.asarray(rows()['x']), np.asarray(rows()['mask'])
  norms = np.linalg.norm(x, axis=1)
  return (np.minimum(1, clip_norm / (norms + 1e-6)) * mask) @ x


def as_matrix(tree):
  return np.concatenate([tree['b'], tree['w']], axis=1)


@pytest.mark.devices(4)
def test_noise_has_the_stated_size_on_one_and_on_four_devices():
  one, state = updates(rows(), steps=20)
  split = jax.tree.map(lambda x: x.reshape((4, 2, *x.shape[1:])), rows())
  many, _ = updates(split, steps=20, devices=4)
  noise = as_matrix(one) - clipped_sum(2.0) / 5
  expected = 1.5 * 2.0 / 5
  # 80,000 draws: the standard deviation is known to 0.25 %.
  np.testing.assert_allclose(noise.std(), expected, rtol=0.015)
  assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)
  # Steps and parameters have noise of their own.
  correlation = np.corrcoef(noise)
  assert np.abs(correlation - np.eye(20)).max() < 5 / np.sqrt(SIZE)
  assert state.step == 20
  for replica in range(4):
    own = jax.tree.map(lambda x, r=replica: x[r], many)
    np.testing.assert_allclose(as_matrix(own), as_matrix(one), atol=1e-6)
    first = jax.tree.map(lambda x: x[0], many)
    jax.tree.map(np.testing.assert_array_equal, own, first)


@pytest.mark.devices(4)
def test_the_median_norm_is_that_of_all_real_rows():
  # The rows' norms are about 1 to 8, of which the third is padding.
  def median(batch):
    grad_fn = gradients.GradFn(loss_fn, batch, KEY, {})
    _, aux = grad_fn.clipped(PARAMS, 2.0)
    return aux.sums['median_norm']

  norms = np.linalg.norm(np.asarray(rows()['x']), axis=1)
  expected = np.median(np.delete(norms, 2))
  assert 4.5 < expected < 5.5
  one = jax.jit(median)
  found, weight = one(rows())
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert weight == 1
  split = jax.tree.map(lambda x: x.reshape((4, 2, *x.shape[1:])), rows())
  many = jax.pmap(median, axis_name=parallel.AXIS)(split)
  np.testing.assert_allclose(many[0], [expected] * 4, rtol=1e-5)
  assert one({**rows(), 'mask': jnp.zeros(8)}) == (0, 0)


def test_without_noise_and_clipping_it_is_the_plain_gradient():
  result, _ = updates(
    rows(), clip_norm=1e6, noise_multiplier=0.0, expected_batch_size=7.0
  )
  plain, _ = jax.jit(gradients.GradFn(loss_fn, rows(), KEY, {}))(PARAMS)
  np.testing.assert_allclose(as_matrix(result)[0], flatten(plain), atol=1e-6)


def test_without_noise_it_is_what_optax_makes_of_per_example_gradients():
  batch = {**rows(), 'mask': jnp.ones(8)}
  result, _ = updates(batch, noise_multiplier=0.0)
  theirs = optax.contrib.differentially_private_aggregate(2.0, 0.0, 0)
  x = np.asarray(batch['x'])
  grads = {'w': x[:, 1:], 'b': x[:, :1]}
  expected, _ = jax.jit(theirs.update)(grads, theirs.init(PARAMS))
  np.testing.assert_allclose(
    as_matrix(result)[0], flatten(expected) * 8 / 5, atol=1e-6
  )


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_row_without_a_finite_gradient_does_nothing(bad):
  adaptive = optim.AdaptiveClipping(count_stddev=1.0)
  batch = rows()
  worse = {**batch, 'x': batch['x'].at[5].set(bad)}
  without = {**batch, 'mask': batch['mask'].at[5].set(0)}
  for settings in ({}, {'adaptive': adaptive}):
    found, state = updates(worse, **settings)
    expected, other = updates(without, **settings)
    np.testing.assert_allclose(as_matrix(found), as_matrix(expected), atol=1e-6)
    assert state.clip_norm == other.clip_norm
    # Nor does it where it is alone.
    alone = {**worse, 'mask': jnp.zeros(8).at[5].set(1)}
    nothing = {**batch, 'mask': jnp.zeros(8)}
    found, state = updates(alone, **settings)
    expected, other = updates(nothing, **settings)
    np.testing.assert_array_equal(as_matrix(found), as_matrix(expected))
    assert state.clip_norm == other.clip_norm


def test_the_divisor_is_a_constant_whatever_was_drawn():
  full, _ = updates(rows(), noise_multiplier=0.0)
  half = {**rows(), 'mask': rows()['mask'].at[4:].set(0)}
  some, _ = updates(half, noise_multiplier=0.0)
  rest = {**rows(), 'mask': rows()['mask'].at[:4].set(0)}
  other, _ = updates(rest, noise_multiplier=0.0)
  np.testing.assert_allclose(
    as_matrix(some) + as_matrix(other), as_matrix(full), atol=1e-6
  )


def test_the_key_alone_decides_the_noise():
  nothing = {**rows(), 'mask': jnp.zeros(8)}
  first, state = updates(nothing)
  np.testing.assert_array_equal(state.key, [0, 0])
  moved = {**PARAMS, 'b': jnp.ones(1)}
  same, _ = updates(nothing, moved)
  np.testing.assert_array_equal(first['w'], same['w'])
  other, _ = updates(nothing, key=(0, 1))
  assert np.abs(np.corrcoef(first['w'][0], other['w'][0])[0, 1]) < 0.1


@pytest.mark.parametrize('part', [SIZE, SIZE // 4])
def test_what_rows_draw_is_not_the_noise(part, monkeypatch):
  monkeypatch.setattr(sys.modules['repjax.optim.dp_sgd'], '_PART', part)
  params = {'w': jnp.zeros(SIZE)}

  def drawing(params, model_state, batch, rng):
    """The gradient of each row is what it draws."""
    loss = params['w'] @ jax.random.normal(rng, params['w'].shape)
    return types.Losses(loss + 0 * batch['x'][:, 0], model_state, {})

  tx = link(clip_norm=1e6, noise_multiplier=1e-6)

  @jax.jit
  def update(mask):
    grad_fn = gradients.GradFn(drawing, {**rows(), 'mask': mask}, KEY, {})
    grads, _ = grad_fn(params)
    return tx.update(grads, tx.init(params), params, grad_fn=grad_fn)[0]['w']

  noise = update(jnp.zeros(8))
  drawn = [(update(jax.nn.one_hot(i, 8)) - noise)[:part] for i in range(8)]
  found = np.corrcoef([*noise.reshape(-1, part), *drawn])
  assert np.abs(found - np.eye(len(found))).max() < 0.2


def test_a_donated_state_leaves_the_key_that_was_given():
  key = jnp.arange(2, dtype=jnp.uint32)
  tx = link(key=key)
  step = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
  step(tx.init(PARAMS))
  np.testing.assert_array_equal(key, [0, 1])


def test_the_clip_norm_finds_its_quantile():
  # Norms are 1, 2, 4, 5, 6, 7 and 8 (row 3 is padding).
  norms = np.sort(np.linalg.norm(np.asarray(rows()['x']), axis=1))
  adaptive = optim.AdaptiveClipping(quantile=0.5, rate=0.2, count_stddev=0.01)
  _, state = updates(
    rows(),
    steps=200,
    clip_norm=0.1,
    noise_multiplier=0.0,
    expected_batch_size=7.0,
    adaptive=adaptive,
  )
  assert norms[3] * 0.9 < state.clip_norm < norms[4] * 1.1


def test_the_count_of_unclipped_rows_has_its_noise():
  # Nothing is there: the logarithm of the norm moves by the noise alone.
  tx = link(
    noise_multiplier=0.0, adaptive=optim.AdaptiveClipping(count_stddev=5.0)
  )
  start = tx.init(PARAMS)
  batch = {**rows(), 'mask': jnp.zeros(8)}

  def norm(index):
    state = start._replace(key=jnp.stack([jnp.uint32(0), index]))
    grad_fn = gradients.GradFn(loss_fn, batch, KEY, {})
    grads, _ = grad_fn(PARAMS)
    return tx.update(grads, state, PARAMS, grad_fn=grad_fn)[1].clip_norm

  found = jax.jit(lambda x: jax.lax.map(norm, x))(jnp.arange(400, dtype='u4'))
  moved = np.log(found / 2.0)
  np.testing.assert_allclose(moved.std(), 0.2 * 5.0 / 5.0, rtol=0.15)
  assert abs(moved.mean()) < 0.05


def test_the_count_is_centred():
  # Of 7 rows, 3 have norms (1, 2, 4, 5, ...) of at most 4.5; 20 are expected.
  _, state = updates(
    rows(),
    clip_norm=4.5,
    noise_multiplier=0.0,
    expected_batch_size=20.0,
    adaptive=optim.AdaptiveClipping(count_stddev=1e-6),
  )
  expected = 4.5 * np.exp(-0.2 * (3 - 3.5) / 20)
  np.testing.assert_allclose(state.clip_norm, expected, rtol=1e-4)


def test_no_part_of_a_large_leaf_repeats(monkeypatch):
  module = sys.modules['repjax.optim.dp_sgd']
  monkeypatch.setattr(module, '_PART', 64)
  found = np.asarray(module._normal(jax.random.key(0), (10, 100)))
  assert len(np.unique(found)) > 990
  assert abs(found.std() - 1) < 0.1


def test_adaptive_clipping_shares_the_noise_of_both_queries():
  adaptive = optim.AdaptiveClipping(count_stddev=1.0)
  nothing = {**rows(), 'mask': jnp.zeros(8)}
  plain, _ = updates(nothing)
  shared, _ = updates(nothing, adaptive=adaptive)
  factor = (1.5**-2 - 2.0**-2) ** -0.5 / 1.5
  np.testing.assert_allclose(shared['w'], factor * plain['w'], rtol=1e-5)


def test_noise_is_float32_in_a_process_of_64_bits():
  adaptive = optim.AdaptiveClipping(count_stddev=1.0)
  nothing = {**rows(), 'mask': jnp.zeros(8)}
  expected, state = updates(nothing, adaptive=adaptive)
  with float64.enabled():
    # Scanned: a state that becomes wider is refused.
    found, wide = updates(nothing, adaptive=adaptive, steps=2)
  assert wide.clip_norm.dtype == state.clip_norm.dtype == jnp.float32
  np.testing.assert_allclose(found['w'][:1], expected['w'], rtol=1e-6)


@pytest.mark.devices(4)
def test_in_a_training_step_replicas_stay_equal():
  tx = optim.dp_adam(
    0.1, clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=8, key=KEY
  )
  method = supervised.make(mlp.Mlp(3, features=()), tx)
  rng = np.random.default_rng(2)
  batch = {
    'image': rng.normal(size=(4, 2, 2, 2, 1)).astype('f4'),
    'label': rng.integers(0, 3, (4, 2)),
    'mask': np.array([[1, 1], [0, 0], [1, 1], [1, 1]], 'f4'),
  }
  state = jax.jit(method.init)(KEY, jax.tree.map(lambda x: x[0], batch))
  new, sums = jax.pmap(
    method.update, axis_name=parallel.AXIS, in_axes=(None, 0, None)
  )(state, batch, KEY)
  state, new, sums = jax.device_get((state, new, sums))
  first = jax.tree.map(lambda x: x[0], new)
  for replica in range(1, 4):
    own = jax.tree.map(lambda x, r=replica: x[r], new)
    jax.tree.map(np.testing.assert_array_equal, own, first)
  # The first step of Adam moves every weight by its rate.
  moved = jax.tree.map(lambda a, b: a - b, first.params, state.params)
  for leaf in jax.tree.leaves(moved):
    np.testing.assert_allclose(np.abs(leaf), 0.1, rtol=1e-3)
  assert sums['loss'][1][0] == 6


def adam_steps(clip_norm):
  """What five steps of DP-Adam, with equal noise, add to the parameters."""
  tx = optim.dp_adam(
    0.1,
    clip_norm=clip_norm,
    noise_multiplier=1.0,
    expected_batch_size=8,
    key=KEY,
    eps=1e-12,
  )

  @jax.jit
  def run(batch):
    def step(carry, _):
      params, state = carry
      grad_fn = gradients.GradFn(loss_fn, batch, KEY, {})
      grads, _ = grad_fn(params)
      update, state = tx.update(grads, state, params, grad_fn=grad_fn)
      return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), None, length=5)[0][0]

  return flatten(run(rows()))


def test_adam_does_not_see_the_clip_norm_where_all_rows_are_clipped():
  first, second = adam_steps(0.5), adam_steps(0.005)
  gap = np.linalg.norm(second - first) / np.linalg.norm(first)
  assert gap < 1e-5
  # At a norm that leaves rows as they are it does.
  other = adam_steps(5.0)
  assert np.linalg.norm(other - first) > 0.01 * np.linalg.norm(first)


@pytest.mark.parametrize(
  'bad',
  [
    {'clip_norm': 0.0},
    {'clip_norm': np.inf},
    {'noise_multiplier': -1.0},
    {'expected_batch_size': 0},
    {'adaptive': optim.AdaptiveClipping(quantile=1.0)},
    {'adaptive': optim.AdaptiveClipping(count_stddev=0.5)},
    {'adaptive': optim.AdaptiveClipping(count_stddev=np.nan)},
    {'adaptive': optim.AdaptiveClipping(rate=np.nan)},
  ],
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    link(**bad)


def test_a_missing_grad_fn_is_named():
  tx = link()
  with pytest.raises(ValueError, match='grad_fn'):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_the_noise_follows_the_clip_norm_of_the_state():
  tx, batch = link(), {**rows(), 'mask': jnp.zeros(8)}

  @jax.jit
  def update(clip_norm):
    state = tx.init(PARAMS)._replace(clip_norm=jnp.float32(clip_norm))
    grad_fn = gradients.GradFn(loss_fn, batch, KEY, {})
    grads, _ = grad_fn(PARAMS)
    return tx.update(grads, state, PARAMS, grad_fn=grad_fn)[0]

  small, large = flatten(update(2.0)), flatten(update(6.0))
  np.testing.assert_allclose(large, 3 * small, rtol=1e-5)


def test_leaves_of_one_shape_have_noise_of_their_own():
  params = {'a': jnp.zeros(500), 'b': jnp.zeros(500)}

  def both(params, model_state, batch, rng):
    del rng
    loss = batch['x'] @ (params['a'] + params['b'])
    return types.Losses(loss, model_state, {})

  batch = {'x': jnp.zeros((2, 500)), 'mask': jnp.zeros(2)}
  tx = link()

  @jax.jit
  def update(params):
    grad_fn = gradients.GradFn(both, batch, KEY, {})
    grads, _ = grad_fn(params)
    return tx.update(grads, tx.init(params), params, grad_fn=grad_fn)[0]

  found = update(params)
  assert abs(np.corrcoef(found['a'], found['b'])[0, 1]) < 0.2


def test_what_a_loss_draws_is_as_secret_as_the_noise():
  def dropped(params, model_state, batch, rng):
    keep = jax.random.bernoulli(rng, 0.5, batch['x'].shape)
    return loss_fn(params, model_state, {**batch, 'x': batch['x'] * keep}, rng)

  @jax.jit
  def update(seed, key):
    tx = link(noise_multiplier=0.0, key=key)
    grad_fn = gradients.GradFn(dropped, rows(), jax.random.key(seed), {})
    grads, _ = grad_fn(PARAMS)
    return tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=grad_fn)[0]

  def total(seed, key):
    return flatten(update(seed, key))

  one, other = (0, 0), (0, 1)
  np.testing.assert_array_equal(total(0, one), total(1, one))
  assert (total(0, one) != total(0, other)).any()


@pytest.mark.devices(4)
def test_what_a_loss_draws_differs_between_devices():
  def noisy(params, model_state, batch, rng):
    loss = params['w'][0] * jax.random.normal(rng) * jnp.ones(len(batch['x']))
    return types.Losses(loss, model_state, {})

  def clipped(batch):
    grad_fn = gradients.GradFn(noisy, batch, KEY, {})
    return grad_fn.clipped(PARAMS, 1e6, rng=jax.random.key(5))[0]['w'][0]

  row = jax.tree.map(lambda x: x[:4].reshape((4, 1, *x.shape[1:])), rows())
  row['mask'] = jnp.ones((4, 1))
  found = jax.pmap(clipped, axis_name=parallel.AXIS)(row)
  own = [jax.random.fold_in(jax.random.key(5), i) for i in range(4)]
  expected = sum(jax.random.normal(jax.random.split(x, 1)[0]) for x in own)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
