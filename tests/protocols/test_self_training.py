"""What a student has of its teacher, and which rate is chosen for it."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.layers import norms
from repjax.methods import startup
from repjax.protocols import seed_loop
from repjax.protocols import self_training
from repjax.protocols import side_by_side

ROWS, CLASSES, SEEDS = 8, 3, (0, 1)
RNG = np.random.default_rng(0)


class Net(nn.Module):
  """A norm over the rows, and a head."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((len(image), -1))
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    return nn.Dense(CLASSES, name='head')(x)


def _row():
  return {
    'image': RNG.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
    'label': RNG.integers(0, CLASSES, ROWS),
    'unlabelled': RNG.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
    'pseudo_target': np.full((ROWS, CLASSES), 1 / CLASSES, np.float32),
  }


BATCH = {**_row(), 'mask': np.ones(ROWS, np.float32)}
COLUMNS = {k: np.stack([x, x]) for k, x in _row().items()}


@functools.cache
def _student(**settings):
  return startup.make(
    Net(),
    side_by_side.swept(optax.sgd(1.0)),
    views=lambda image, rngs: image,
    objective=startup.Objective(1, 0, 0),
    **settings,
  )


def _teacher(num_classes=CLASSES):
  drawn = RNG.normal(size=num_classes)
  return {
    'params': {
      'norm': {'scale': RNG.normal(size=4), 'bias': RNG.normal(size=4)},
      'head': {'kernel': RNG.normal(size=(4, num_classes)), 'bias': drawn},
    },
    'batch_stats': {'norm': {'mean': np.arange(4.0), 'var': np.full(4, 2.0)}},
  }


def _started(take, teacher=None, **settings):
  state = _student(**settings).init(jax.random.key(0), BATCH)
  teacher = _teacher() if teacher is None else teacher
  return state, teacher, self_training.begin(state, teacher, take=take)


@pytest.mark.parametrize('take', ['backbone', 'all'])
def test_a_student_has_the_backbone_and_the_head_if_asked(take):
  state, teacher, started = _started(take)
  own = jax.device_get(started.params)
  wanted = jax.tree.map(np.float32, teacher['params'])
  chex.assert_trees_all_close(own['model']['norm'], wanted['norm'])
  fresh = state.params['model']['head']
  head = wanted['head'] if take == 'all' else fresh
  chex.assert_trees_all_close(own['model']['head'], jax.device_get(head))
  chex.assert_trees_all_equal(own['projector'], state.params['projector'])
  chex.assert_trees_all_close(
    jax.device_get(started.model_state['batch_stats']),
    jax.tree.map(np.float32, teacher['batch_stats']),
  )


def test_both_statistics_and_the_average_start_from_the_teachers():
  _, teacher, started = _started('all', statistics='separate', ema_decay=0.9)
  wanted = jax.tree.map(np.float32, teacher['batch_stats'])
  for found in (
    *started.model_state.values(),
    *started.extra.statistics.values(),
  ):
    chex.assert_trees_all_close(jax.device_get(found), wanted)
  chex.assert_trees_all_equal(started.extra.params, started.params)


def test_anew_is_anew():
  state, _, started = _started('nothing')
  chex.assert_trees_all_equal(started, state)


def test_a_teacher_that_does_not_fit_is_refused():
  with pytest.raises(types.InputError, match='head/kernel'):
    _started('all', _teacher(num_classes=5))
  with pytest.raises(types.InputError, match='statistics of the teacher'):
    wrong = {'norm': {'mean': np.zeros(4)}}
    _started('backbone', {**_teacher(), 'batch_stats': wrong})
  with pytest.raises(types.InputError, match='statistics of the teacher'):
    _started('backbone', {'params': _teacher()['params']})
  with pytest.raises(types.InputError, match='take'):
    _started('half')


def test_the_chosen_rate_has_the_smallest_held_out_loss_of_its_seed():
  method = _student()
  states = side_by_side.begin(method, COLUMNS, SEEDS)
  order = np.zeros((2, 3, 4), np.int64) + np.arange(4)
  # How far a bias has gone at each rate; seed 0 wants it far, seed 1 near.
  start = np.asarray(states.params['model']['norm']['bias'])

  def held_out(trained):
    moved = abs(trained.params['model']['norm']['bias'] - start).sum(-1)
    return moved * jnp.array([-1.0, 1.0])

  chosen = self_training.choose_rate(
    'student',
    method,
    states,
    COLUMNS,
    order,
    held_out=held_out,
    seeds=SEEDS,
    rates=(0.001, 0.01, 0.1),
  )
  np.testing.assert_array_equal(chosen.rates, [0.1, 0.001])
  assert chosen.losses.shape == (3, 2)
  # The start stays where it is: what was trained is thrown away.
  np.testing.assert_array_equal(states.params['model']['norm']['bias'], start)


def test_a_rate_is_judged_after_its_updates_and_trained_at_from_the_start():
  method, judged = _student(), []
  states = side_by_side.begin(method, COLUMNS, SEEDS)

  def held_out(trained):
    judged.append(np.asarray(trained.step))
    return jnp.array([1.0, -1.0]) * len(judged)

  end, chosen = self_training.train(
    'student',
    method,
    states,
    COLUMNS,
    held_out=held_out,
    seeds=SEEDS,
    rates=(0.1, 0.01),
    updates=2,
    steps=5,
    batch_size=4,
  )
  np.testing.assert_array_equal(judged, 2 * [[2, 2]])
  np.testing.assert_array_equal(chosen.rates, [0.1, 0.01])
  np.testing.assert_array_equal(end.step, [5, 5])
  order = seed_loop.epochs(ROWS, SEEDS, steps=5, batch_size=4)
  rates = np.array([0.1, 0.01])
  [(_, alone, _)] = seed_loop.fit(
    method,
    side_by_side.with_rate(states, rates),
    COLUMNS,
    order,
    seeds=SEEDS,
    every=5,
  )
  chex.assert_trees_all_close(end.params, alone.params, rtol=1e-6)


def test_a_seed_that_diverges_takes_no_rate_from_the_others(monkeypatch):
  losses = iter([[0.1, np.nan], [0.3, 0.2]])

  def fit(method, states, columns, order, *, stops, **settings):
    assert not stops
    yield order.shape[1], states, {'loss': np.array(next(losses))}

  monkeypatch.setattr(self_training.seed_loop, 'fit', fit)
  method = _student()
  states = side_by_side.begin(method, COLUMNS, SEEDS)
  held_out = iter([np.array([0.1, 0.0]), np.array([0.3, 0.2])])
  chosen = self_training.choose_rate(
    'student',
    method,
    states,
    COLUMNS,
    np.zeros((2, 5, 4), np.int64),
    held_out=lambda states: next(held_out),
    seeds=SEEDS,
    rates=(0.1, 0.01),
  )
  np.testing.assert_array_equal(chosen.rates, [0.1, 0.01])
  np.testing.assert_array_equal(chosen.losses, [[0.1, np.inf], [0.3, 0.2]])


def test_rates_that_diverge_are_not_chosen():
  method = _student()
  states = side_by_side.begin(method, COLUMNS, SEEDS)
  settings = dict(seeds=SEEDS, held_out=lambda x: np.zeros(2))
  order = np.zeros((2, 40, 4), np.int64) + np.arange(4)
  args = ('student', method, states, COLUMNS, order)
  chosen = self_training.choose_rate(*args, rates=(1e30, 0.01), **settings)
  np.testing.assert_array_equal(chosen.rates, [0.01, 0.01])
  assert np.isinf(chosen.losses[0]).all()
  with pytest.raises(types.InputError, match='diverges at all'):
    self_training.choose_rate(*args, rates=(1e30,), **settings)
  with pytest.raises(types.InputError, match='above 0'):
    self_training.choose_rate(*args, rates=(), **settings)
