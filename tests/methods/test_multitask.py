"""Weights of tasks against gradients taken task by task."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import types
from repjax.methods import multitask

TASKS, CLASSES, ROWS = 3, 2, 12


class Linear(nn.Module):
  """All heads on the pixels."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    del train, mask
    x = nn.relu(nn.Dense(5, name='hidden')(image.reshape(len(image), -1)))
    return nn.Dense(TASKS * CLASSES, name='heads')(x)


def batch():
  rng = np.random.default_rng(0)
  mask = np.ones(ROWS, np.float32)
  mask[[3, 11]] = 0
  return {
    'image': rng.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
    'label': rng.integers(0, CLASSES, ROWS),
    # Task 1 is absent but for padding; device 2 of 4 has task 2 alone.
    'task': np.array([0, 0, 0, 0, 2, 0, 2, 2, 2, 0, 0, 1]),
    'mask': mask,
  }


@functools.cache
def compiled(weighting, microbatches=1):
  method = multitask.make(
    Linear(),
    optax.sgd(1.0),
    num_tasks=TASKS,
    weighting=weighting,
    microbatches=microbatches,
  )
  state = jax.jit(method.init)(jax.random.key(0), batch())
  return method, state, jax.jit(method.update)


def gradient(weighting):
  """What one step of plain descent subtracts, and its sums."""
  _, state, update = compiled(weighting)
  new, sums = update(state, batch(), jax.random.key(1))
  return moved(state.params, new.params), sums


def moved(old, new):
  return jax.tree.map(np.subtract, *jax.device_get((old, new)))


def loss_of(params, task):
  """Mean cross-entropy of one task's rows alone."""
  rows = np.flatnonzero((batch()['task'] == task) & (batch()['mask'] > 0))
  logits = Linear().apply(
    {'params': params}, batch()['image'][rows], train=True
  )
  logits = logits[:, CLASSES * task : CLASSES * (task + 1)]
  return -jax.nn.log_softmax(logits)[
    np.arange(len(rows)), batch()['label'][rows]
  ].mean()


@functools.cache
def by_task():
  """(losses, gradients) of tasks 0 and 2."""
  _, state, _ = compiled('rows')
  pairs = jax.jit(
    lambda params: [jax.value_and_grad(loss_of)(params, t) for t in (0, 2)]
  )(state.params)
  losses, grads = zip(*jax.device_get(pairs), strict=True)
  return losses, grads


def assert_equal(actual, expected, tolerance=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    actual,
    expected,
  )


def weighted(first, second):
  _, grads = by_task()
  return jax.tree.map(lambda a, b: first * a + second * b, *grads)


def split(tree):
  return jax.tree.map(lambda x: x.reshape((4, -1, *x.shape[1:])), tree)


@pytest.mark.devices(4)
def test_uniform_counts_tasks_alike_whatever_part_and_device_they_are_on():
  method, state, _ = compiled('uniform', microbatches=3)
  many, sums = jax.pmap(
    method.update, axis_name=parallel.AXIS, in_axes=(None, 0, None)
  )(state, split(batch()), jax.random.key(1))
  for replica in range(4):
    take = functools.partial(jax.tree.map, lambda x, r=replica: x[r])
    found = moved(state.params, take(jax.device_get(many.params)))
    assert_equal(found, weighted(1 / 2, 1 / 2))
    assert sums['loss'][1][replica] == 10


def test_rows_counts_rows_alike():
  found, _ = gradient('rows')
  assert_equal(found, weighted(6 / 10, 4 / 10))


def test_uncertainty_weighs_losses_and_learns_how():
  _, state, update = compiled('uncertainty')
  log_variance = jnp.array([0.5, 0.3, -1.0])
  state = state.replace(params={**state.params, 'log_variance': log_variance})
  new, sums = update(state, batch(), jax.random.key(1))
  found = moved(state.params, new.params)
  first, second = np.exp(-0.5), np.exp(1.0)
  assert_equal(found['model'], weighted(first / 2, second / 2))
  values, _ = by_task()
  expected = [
    (1 / 2 - first * values[0]) / 2,
    0.0,
    (1 / 2 - second * values[1]) / 2,
  ]
  np.testing.assert_allclose(found['log_variance'], expected, rtol=1e-4)
  # What is reported is the plain loss.
  plain = 6 * values[0] + 4 * values[1]
  np.testing.assert_allclose(sums['loss'][0], plain, rtol=1e-5)


def test_pcgrad_takes_out_conflicts():
  found, sums = gradient('pcgrad')
  first, second = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
    for g in by_task()[1]
  )
  dot = first @ second
  total = first + second
  if dot < 0:
    total = total - dot * (second / (second @ second) + first / (first @ first))
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])
  np.testing.assert_allclose(flat, total / 2, rtol=1e-4, atol=1e-6)
  assert sums['corrected'] == (float(dot < 0), 1)


def test_gradvac_has_targets_for_each_layer():
  # What it does with them is in tests/optim/test_gradient_vaccine.py.
  _, state, update = compiled('gradvac')
  assert state.opt_state[0].targets.shape == (2, TASKS, TASKS)
  new, sums = jax.eval_shape(update, state, batch(), jax.random.key(1))
  same = lambda x: (x.shape, x.dtype)  # noqa: E731
  assert jax.tree.map(same, new) == jax.tree.map(same, state)
  assert 'corrected' in sums


def test_logits_are_those_of_the_rows_own_head():
  method, state, _ = compiled('uniform')
  logits = method.predict(state, batch())['logits']
  every = Linear().apply(
    {'params': state.params}, batch()['image'], train=False
  )
  for row, task in enumerate(batch()['task']):
    np.testing.assert_array_equal(
      logits[row], every[row, CLASSES * task : CLASSES * (task + 1)]
    )
  with pytest.raises(types.InputError, match='6 logits'):
    multitask.own_head(every, batch()['task'], 4)


@pytest.mark.parametrize('task', [-1, TASKS])
@pytest.mark.parametrize('heads', ['each', 'one'])
@pytest.mark.parametrize('weighting', ['uniform', 'uncertainty'])
def test_a_row_of_a_task_that_is_not_there_ends_a_run(task, heads, weighting):
  method = multitask.make(
    Linear(), optax.sgd(1.0), num_tasks=TASKS, weighting=weighting, heads=heads
  )
  init, update = jax.jit(method.init), jax.jit(method.update)
  state = init(jax.random.key(0), batch())
  for row, finite in ((0, False), (3, True)):  # The other one is padding.
    other = batch()
    other['task'][row] = task
    _, sums = update(state, other, jax.random.key(1))
    assert np.isfinite(sums['loss'][0]) == finite
  other['task'][0] = task
  logits = method.predict(state, other)['logits']
  assert np.isnan(logits[0]).all() == (heads == 'each')
  assert np.isfinite(logits[1]).all()
  weights = multitask.equal_weights(other['task'], other['mask'], TASKS)
  assert weights[0] == 0


@pytest.mark.parametrize(
  'bad',
  [
    {'weighting': 'all'},
    {'heads': 'two'},
    {'num_tasks': 0},
    {'compute_dtype': 'int8'},
  ],
  ids=str,
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(types.InputError, match=next(iter(bad))):
    multitask.make(Linear(), optax.sgd(1.0), **{'num_tasks': 2, **bad})
