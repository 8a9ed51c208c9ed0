"""`GradFn` against loops over single rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import gradients
from repjax import parallel
from repjax import types

pytestmark = pytest.mark.versions

ROWS = 8
KEY = jax.random.key(0)
UNEVEN = [1, 1, 0, 1, 0, 0, 1, 1]


def batch(mask=UNEVEN):
  rng = np.random.default_rng(0)
  return {
    'x': jnp.asarray(rng.normal(size=(ROWS, 3)), jnp.float32),
    'y': jnp.asarray(rng.normal(size=ROWS), jnp.float32),
    'mask': jnp.asarray(mask, jnp.float32),
  }


PARAMS = {'w': jnp.array([0.5, -1.0, 2.0]), 'b': jnp.array(0.1)}
STATE = {'seen': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}


def loss_fn(params, model_state, batch, rng):
  """Robust regression; its state counts real rows and passes."""
  del rng
  error = batch['x'] @ params['w'] + params['b'] - batch['y']
  state = {
    'seen': model_state['seen'] + batch['mask'].sum(),
    'count': model_state['count'] + 1,
  }
  return types.Losses(jnp.log(jnp.cosh(error)), state, {'error': error})


@jax.jit
@jax.grad
def row_gradient(params, row):
  return loss_fn(params, STATE, row, None).loss[0]


def by_rows(batch, params=PARAMS):
  """Weighted sum of the gradients of single rows, and the weight."""
  total = jax.tree.map(jnp.zeros_like, params)
  for index in np.flatnonzero(batch['mask']):
    row = {name: x[index : index + 1] for name, x in batch.items()}
    total = jax.tree.map(jnp.add, total, row_gradient(params, row))
  return total, float(batch['mask'].sum())


def mean_by_rows(batch, params=PARAMS):
  total, weight = by_rows(batch, params)
  return jax.tree.map(lambda x: x / weight, total)


def make(batch, loss=loss_fn, state=STATE, **settings):
  return gradients.GradFn(loss, batch, KEY, state, **settings)


@functools.partial(jax.jit, static_argnames=('microbatches', 'compute_dtype'))
def gradient(batch, **settings):
  return make(batch, **settings)(PARAMS)


def assert_equal(actual, expected, tolerance=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    actual,
    expected,
  )


@pytest.mark.parametrize('microbatches', [1, 2, 8])
def test_the_gradient_is_the_mean_over_real_rows(microbatches):
  grads, aux = gradient(batch(), microbatches=microbatches)
  assert_equal(grads, mean_by_rows(batch()))
  real = np.asarray(batch()['mask']) > 0
  losses = loss_fn(PARAMS, STATE, batch(), None)
  total, weight = aux.sums['loss']
  np.testing.assert_allclose(total, losses.loss[real].sum(), rtol=1e-5)
  assert weight == 5
  total, weight = aux.sums['error']
  np.testing.assert_allclose(
    total, losses.metrics['error'][real].sum(), rtol=1e-5
  )
  assert weight == 5
  # The state goes from part to part.
  assert aux.model_state['seen'] == 5
  assert aux.model_state['count'] == microbatches


@pytest.mark.parametrize('garbage', [np.nan, np.inf, 1e30])
def test_garbage_in_rows_of_padding_is_harmless(garbage):
  dirty = batch()
  padding = dirty['mask'] == 0
  dirty['x'] = jnp.where(padding[:, None], garbage, dirty['x'])
  dirty['y'] = jnp.where(padding, garbage, dirty['y'])
  clean, dirty = (gradient(rows, microbatches=2) for rows in (batch(), dirty))
  assert_equal(dirty, clean, 0.0)


@pytest.mark.parametrize('microbatches', [1, 2])
def test_a_batch_of_padding_alone_has_gradient_zero(microbatches):
  grads, aux = gradient(batch([0] * ROWS), microbatches=microbatches)
  assert_equal(grads, jax.tree.map(jnp.zeros_like, PARAMS), 0.0)
  assert aux.sums['loss'] == (0, 0)


def test_bfloat16_is_near_float32_and_returns_float32():
  half, aux = gradient(batch(), compute_dtype=jnp.bfloat16)
  full, full_aux = gradient(batch())
  assert_equal(half, full, 0.03)
  assert np.abs(half['w'] - full['w']).max() > 0
  dtypes = jax.tree.map(lambda x: x.dtype, (half, aux))
  assert dtypes == jax.tree.map(lambda x: x.dtype, (full, full_aux))


def split(tree, parts=4):
  return jax.tree.map(lambda x: x.reshape((parts, -1, *x.shape[1:])), tree)


@functools.partial(
  jax.pmap, axis_name=parallel.AXIS, static_broadcasted_argnums=1
)
def on_devices(batch, sync):
  return make(batch)(PARAMS, sync=sync)


@pytest.mark.devices(4)
def test_uneven_devices_give_the_gradient_of_one():
  # Device 2 holds nothing but padding.
  grads, aux = on_devices(split(batch()), True)
  one, one_aux = gradient(batch())
  for replica in range(4):
    take = functools.partial(jax.tree.map, lambda x, r=replica: x[r])
    assert_equal(take(grads), one)
    assert_equal(take(aux.sums), one_aux.sums)


@pytest.mark.devices(4)
def test_unsynchronised_gradients_are_each_devices_own():
  grads, aux = on_devices(split(batch()), False)
  parts = split(batch())
  for replica in range(4):
    part = jax.tree.map(lambda x, r=replica: x[r], parts)
    own = jax.tree.map(lambda x, r=replica: x[r], grads)
    if part['mask'].sum():
      assert_equal(own, mean_by_rows(part))
    else:
      assert_equal(own, jax.tree.map(jnp.zeros_like, PARAMS), 0.0)
    assert aux.sums['loss'][1][replica] == part['mask'].sum()


def halfway(grad_fn):
  """The gradient where one step of descent leads: no mean of gradients."""
  grads, _ = grad_fn(PARAMS)
  return grad_fn(jax.tree.map(lambda p, g: p - g / 2, PARAMS, grads))[0]


def halfway_by_rows(batch, num_groups):
  groups = split(batch, num_groups)
  total = jax.tree.map(jnp.zeros_like, PARAMS)
  for index in range(num_groups):
    group = jax.tree.map(lambda x, i=index: x[i], groups)
    weight = float(group['mask'].sum())
    if weight:
      first = mean_by_rows(group)
      moved = jax.tree.map(lambda p, g: p - g / 2, PARAMS, first)
      total = jax.tree.map(
        lambda t, g, w=weight: t + w * g, total, mean_by_rows(group, moved)
      )
  return jax.tree.map(lambda x: x / float(batch['mask'].sum()), total)


@pytest.mark.parametrize('num_groups', [1, 4])
def test_groups_are_averaged_by_their_numbers_of_real_rows(num_groups):
  @jax.jit
  def over_groups(batch):
    return make(batch).over_groups(num_groups, halfway)

  assert_equal(over_groups(batch()), halfway_by_rows(batch(), num_groups))


@pytest.mark.devices(4)
def test_groups_on_devices_are_averaged_over_all_of_them():
  @functools.partial(jax.pmap, axis_name=parallel.AXIS)
  def over_groups(batch):
    return make(batch).over_groups(1, halfway)

  result = over_groups(split(batch()))
  expected = halfway_by_rows(batch(), 4)
  for replica in range(4):
    assert_equal(jax.tree.map(lambda x, r=replica: x[r], result), expected)


def test_every_pass_and_every_microbatch_has_its_key():
  def noisy(params, model_state, batch, rng):
    noise = jax.random.normal(rng)
    loss = params['b'] * noise * jnp.ones_like(batch['mask'])
    return types.Losses(loss, model_state, {'noise': loss * 0 + noise})

  rows = batch([1] * ROWS)
  grad_fn = make(rows, noisy)
  first, aux = grad_fn(PARAMS)
  elsewhere, _ = grad_fn({**PARAMS, 'b': jnp.array(3.0)})
  assert_equal(first, elsewhere, 0.0)
  _, parts = make(rows, noisy, microbatches=2)(PARAMS)
  assert abs(parts.sums['noise'][0] - aux.sums['noise'][0]) > 1e-3


def test_the_gradient_at_a_known_point_is_not_computed_again():
  calls = []

  def counted(*args):
    calls.append(1)
    return loss_fn(*args)

  grad_fn = make(batch(), counted)
  grad_fn(PARAMS)
  once = len(calls)
  grad_fn(PARAMS, sync=False)
  assert len(calls) == once
  grad_fn({**PARAMS, 'b': jnp.array(3.0)})
  assert len(calls) == 2 * once


def with_tasks():
  # Task 1 has padding alone, task 3 no row; 7 and -1 are no tasks.
  return {**batch(), 'task': jnp.array([0, 2, 1, 0, 1, 7, 2, -1])}


def by_tasks(rows):
  """Mean gradients of tasks 0 to 3, one after the other, and their rows."""
  grads, counts = [], []
  for task in range(4):
    mask = np.asarray(rows['mask']) * (np.asarray(rows['task']) == task)
    total, weight = by_rows({**rows, 'mask': jnp.asarray(mask)})
    grads.append(jax.tree.map(lambda x, w=weight: x / max(w, 1), total))
    counts.append(weight)
  return jax.tree.map(lambda *x: jnp.stack(x), *grads), counts


@functools.partial(
  jax.jit, static_argnames=('microbatches', 'compute_dtype', 'how')
)
def per_task(rows, how='auto', **settings):
  return make(rows, **settings).per_task(PARAMS, 4, how=how)


@pytest.mark.parametrize('microbatches', [1, 2])
@pytest.mark.parametrize('how', ['vectorized', 'scanned'])
def test_gradients_of_tasks_are_those_of_their_rows_alone(how, microbatches):
  grads, counts, aux = per_task(with_tasks(), how, microbatches=microbatches)
  expected, rows = by_tasks(with_tasks())
  assert rows == [2, 0, 2, 0]
  np.testing.assert_array_equal(counts, rows)
  assert_equal(grads, expected)
  _, plain = gradient(with_tasks(), microbatches=microbatches)
  assert_equal(aux, plain)


@pytest.mark.devices(4)
def test_gradients_of_tasks_over_uneven_devices_are_those_of_one():
  @functools.partial(jax.pmap, axis_name=parallel.AXIS)
  def over_devices(rows):
    return make(rows).per_task(PARAMS, 4)

  grads, counts, aux = over_devices(split(with_tasks()))
  expected, rows = by_tasks(with_tasks())
  _, one_aux = gradient(with_tasks())
  for replica in range(4):
    take = functools.partial(jax.tree.map, lambda x, r=replica: x[r])
    assert_equal(take(grads), expected)
    np.testing.assert_array_equal(counts[replica], rows)
    assert_equal(take(aux.sums), one_aux.sums)


def test_gradients_of_tasks_in_bfloat16_return_float32():
  grads, _, _ = per_task(with_tasks(), compute_dtype=jnp.bfloat16)
  expected, _ = by_tasks(with_tasks())
  assert_equal(grads, expected, 0.05)
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype('float32')}


def test_gradients_of_tasks_need_ids():
  with pytest.raises(types.InputError, match="'task'"):
    make(batch()).per_task(PARAMS, 2)
  with pytest.raises(types.InputError, match="'y'"):
    make(batch()).per_task(PARAMS, 2, column='y')


def test_rows_that_cannot_be_divided_are_refused():
  with pytest.raises(ValueError, match='microbatches=3'):
    make(batch(), microbatches=3)
  with pytest.raises(ValueError, match='num_groups=3'):
    make(batch()).over_groups(3, halfway)


def test_a_loss_that_is_already_a_mean_is_refused():
  def mean(params, model_state, batch, rng):
    out = loss_fn(params, model_state, batch, rng)
    return out._replace(loss=out.loss.mean())

  with pytest.raises(ValueError, match='one loss a row'):
    make(batch(), mean)(PARAMS)


def test_a_metric_of_a_column_is_refused():
  def column(params, model_state, batch, rng):
    out = loss_fn(params, model_state, batch, rng)
    return out._replace(metrics={'error': out.loss[:, None]})

  with pytest.raises(ValueError, match='one error a row'):
    make(batch(), column)(PARAMS)


def test_every_group_has_its_key():
  def noisy(params, model_state, batch, rng):
    loss = params['b'] * jax.random.normal(rng) * jnp.ones_like(batch['mask'])
    return types.Losses(loss, model_state, {})

  grads = make(batch([1] * ROWS), noisy).over_groups(
    2, lambda grad_fn: grad_fn(PARAMS)[0]
  )
  keys = [jax.random.fold_in(KEY, i) for i in range(2)]
  expected = np.mean([jax.random.normal(x) for x in keys])
  np.testing.assert_allclose(grads['b'], expected, rtol=1e-5)


def test_a_column_of_booleans_stays_one():
  rows = {**batch(), 'late': jnp.arange(ROWS) % 2 == 0}

  def early(params, model_state, batch, rng):
    out = loss_fn(params, model_state, batch, rng)
    return out._replace(loss=jnp.where(~batch['late'], out.loss, 0.0))

  grads, _ = make(rows, early)(PARAMS)
  mask = rows['mask'] * (1 - rows['late'])
  total, _ = by_rows({**batch(), 'mask': mask})
  weight = float(rows['mask'].sum())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y / weight, rtol=1e-5),
    grads,
    total,
  )
