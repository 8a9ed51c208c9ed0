"""Units of several rows against a loop over users."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import gradients
from repjax import optim
from repjax import types
from repjax.data.batches import users
from repjax.data.reading import source
from repjax.privacy import clipping

USERS, SLOTS = 3, 3
# A full user, one with a row less, and one that is not there.
MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], np.float32)


class Everything(nn.Module):
  """A convolution, an embedding, norms, attention and dense layers."""

  remat: bool = False
  width: int = 8

  @nn.compact
  def __call__(self, image, tokens):
    conv = nn.Conv(self.width, (2, 2), strides=2, name='conv')(image)
    x = conv.reshape((conv.shape[0], -1, self.width))
    x = jnp.concatenate([x, nn.Embed(5, self.width, name='embed')(tokens)], 1)
    x += self.param('positions', nn.initializers.ones, x.shape[1:])[None]
    attend = (
      nn.remat(nn.MultiHeadDotProductAttention)
      if self.remat
      else (nn.MultiHeadDotProductAttention)
    )
    x += attend(2, name='attention')(nn.LayerNorm(name='norm')(x))
    x = nn.tanh(nn.Dense(12, name='hidden')(x)).mean(1)
    return nn.Dense(4, name='head')(x)


def make(remat):
  """(loss_fn, params, batch of users one after the other)."""
  rng = np.random.default_rng(0)
  rows = USERS * SLOTS
  batch = {
    'image': rng.normal(size=(rows, 4, 4, 2)).astype('f4'),
    'tokens': rng.integers(0, 4, (rows, 3)),
    'label': rng.integers(0, 4, rows),
  }
  # Rows of a user that are alike have large products between them.
  batch['image'][1] = batch['image'][0] * 0.9
  model = Everything(remat=remat)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), batch['image'], batch['tokens']
  )['params']
  params = jax.tree.map(
    lambda x: (rng.normal(size=x.shape) * 0.3).astype('f4'), shapes
  )

  def loss_fn(params, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['image'], batch['tokens'])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )

  return loss_fn, params, batch


def by_users(loss_fn, params, batch):
  """Mean gradients of users, by a loop over users and rows."""
  grad = jax.jit(jax.grad(lambda params, row: loss_fn(params, row, None).sum()))
  found = []
  for user in range(USERS):
    total = jax.tree.map(np.zeros_like, params)
    for slot in np.flatnonzero(MASK[user]):
      row = user * SLOTS + int(slot)
      one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
      total = jax.tree.map(np.add, total, grad(params, one))
    count = max(MASK[user].sum(), 1)
    found.append(jax.tree.map(lambda x, n=count: x / n, total))
  return found


def flatten(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
  'method, remat', [('ghost', False), ('ghost', True), ('vmap', False)]
)
def test_a_users_mean_gradient_is_clipped_as_a_whole(method, remat):
  loss_fn, params, batch = make(remat)
  expected = np.stack([flatten(x) for x in by_users(loss_fn, params, batch)])
  norms = np.linalg.norm(expected, axis=1)
  clip_norm = float(norms[:2].mean())  # One is clipped and one is not.
  # What is in slots of padding counts for nothing.
  padding = MASK.reshape(-1) == 0
  batch['image'][padding] = np.nan
  result = jax.jit(
    clipping.clipped_gradient(
      loss_fn, clip_norm, method=method, rows_per_unit=SLOTS
    )
  )(params, batch, None, MASK.reshape(-1))
  np.testing.assert_allclose(result.norms, norms, rtol=1e-5, atol=0)
  assert result.norms[2] == 0
  factors = np.minimum(1, clip_norm / (norms + 1e-6))
  assert sorted(factors < 1) == [False, False, True]
  total = factors @ expected
  gap = np.linalg.norm(flatten(result.grads) - total)
  assert gap <= 1e-5 * np.linalg.norm(total)
  assert result.loss.shape == (USERS * SLOTS,)


def linear_loss(params, model_state, batch, rng):
  """The gradient of a row is the row."""
  del rng
  return types.Losses(batch['x'] @ params, model_state, {})


def test_a_step_protects_users_and_says_what_does_not_fit():
  """From sampled users to an update, against sums in NumPy."""
  rng = np.random.default_rng(1)
  owner = rng.integers(0, 6, 30)
  x = rng.normal(size=(30, 4)).astype(np.float32)
  rows = source.from_arrays('rows', {'x': x, 'label': owner}, num_classes=6)
  loader = users.user_batches(
    rows,
    owner,
    rate=0.5,
    rows_per_user=2,
    capacity=6,
    seed=0,
    process_index=0,
    process_count=1,
  )
  tx = optim.dp_sgd(
    1.0,
    0.0,
    expected_batch_size=loader.expected_batch_size,
    key=jax.random.key(0),
    rows_per_user=loader.rows_per_user,
  )
  params = jnp.zeros(4)

  @jax.jit
  def update(batch):
    grad_fn = gradients.GradFn(linear_loss, batch, jax.random.key(0), {})
    state = tx.init(params)
    grads, _ = grad_fn(params)
    return tx.update(grads, state, params, grad_fn=grad_fn)[0]

  moved = 0
  for step in range(4):
    batch = loader.batch(step)
    expected = np.zeros(4)
    for user in set(batch['user']) - {-1}:
      mean = x[batch['index'][batch['user'] == user]]
      real = batch['mask'][batch['user'] == user] > 0
      mean = mean[real].mean(0)
      expected += mean * min(1, 1 / (np.linalg.norm(mean) + 1e-6))
      moved += 1
    np.testing.assert_allclose(
      update(batch), expected / loader.expected_batch_size, atol=1e-5
    )
  assert moved > 4

  def clipped(batch, rows_per_user):
    grad_fn = gradients.GradFn(linear_loss, batch, jax.random.key(0), {})
    return grad_fn.clipped(params, 1.0, rows_per_user=rows_per_user)

  with pytest.raises(types.InputError, match="column 'user'"):
    clipped(batch, 1)
  with pytest.raises(types.InputError, match='no whole users'):
    clipped(batch, 5)
  del batch['user']
  with pytest.raises(types.InputError, match="column 'user'"):
    clipped(batch, 2)
  _, aux = jax.jit(clipped, static_argnums=1)(batch, 1)
  assert aux.sums['gradient_norm'][1] == batch['mask'].sum()


def test_one_row_a_user_is_the_privacy_of_rows():
  batch = {'x': np.random.default_rng(0).normal(size=(6, 4)).astype('f4')}

  def loss_fn(params, batch, rng):
    del rng
    return batch['x'] @ params

  # Two slots of which the second is always empty.
  padded = np.stack([batch['x'], 7 * batch['x']], 1).reshape((12, 4))
  mask = np.tile(np.array([1.0, 0.0], 'f4'), 6)
  whole = jax.jit(clipping.clipped_gradient(loss_fn, 1.5))(np.zeros(4), batch)
  users_of_one = jax.jit(
    clipping.clipped_gradient(loss_fn, 1.5, rows_per_unit=2)
  )(np.zeros(4), {'x': padded}, None, mask)
  np.testing.assert_allclose(users_of_one.grads, whole.grads, rtol=1e-6)
  np.testing.assert_allclose(users_of_one.norms, whole.norms, rtol=1e-6)


def test_rows_that_are_no_whole_units_are_refused():
  clip = clipping.clipped_gradient(
    lambda p, b, rng: b @ p, 1.0, rows_per_unit=4
  )
  with pytest.raises(ValueError, match='rows_per_unit=4'):
    clip(jnp.zeros(2), jnp.ones((6, 2)))
  with pytest.raises(ValueError, match='rows_per_unit=0'):
    clipping.clipped_gradient(lambda p, b, rng: b @ p, 1.0, rows_per_unit=0)


@pytest.mark.parametrize('method', ['ghost', 'vmap', 'microbatch'])
def test_a_user_with_a_row_without_a_finite_gradient_counts_as_zero(method):
  x = np.random.default_rng(0).normal(size=(6, 4))
  batch = {'x': x.astype('f4')}
  worse = {'x': batch['x'].copy()}
  worse['x'][3] = np.nan

  def loss_fn(params, batch, rng):
    del rng
    return batch['x'] @ params

  fn = jax.jit(
    clipping.clipped_gradient(loss_fn, 1.0, method=method, rows_per_unit=2)
  )
  found = fn(np.zeros(4), worse)
  without = np.array([1, 1, 0, 0, 1, 1], 'f4')
  expected = fn(np.zeros(4), batch, None, without)
  np.testing.assert_allclose(found.grads, expected.grads, atol=1e-6)
  np.testing.assert_array_equal(np.isfinite(found.norms), [True, False, True])
  # Unless that row is padding.
  mask = np.array([1, 1, 1, 0, 1, 1], 'f4')
  found, expected = (
    fn(np.zeros(4), worse, None, mask),
    fn(np.zeros(4), batch, None, mask),
  )
  np.testing.assert_array_equal(found.grads, expected.grads)
