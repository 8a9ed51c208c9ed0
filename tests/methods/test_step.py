"""Averages of parameters and of the statistics that go with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from repjax import types
from repjax.layers import norms
from repjax.methods import step as steps
from repjax.methods import supervised

STEPS = 400


class Network(nn.Module):
  """A convolution and two layers, all normalised by batch statistics."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    def active(name, x):
      return nn.relu(norms.BatchNorm(name=name)(x, train=train, mask=mask))

    x = active('a', nn.Conv(8, (3, 3), strides=2, name='conv')(image))
    x = active('b', nn.Dense(32, name='one')(x.reshape((len(x), -1))))
    x = active('c', nn.Dense(32, name='two')(x))
    return nn.Dense(10, name='head')(x)


@pytest.fixture(scope='module')
def digits():
  image, label = datasets.load_digits(return_X_y=True)
  image = (image.reshape((-1, 8, 8, 1)) / 16).astype(np.float32)
  order = np.random.default_rng(0).permutation(len(label))
  return {
    'image': jnp.asarray(image[order]),
    'label': jnp.asarray(label[order]),
    'mask': jnp.ones(len(label)),
  }


def part(digits, rows):
  return {name: x[rows] for name, x in digits.items()}


def accuracy_of(digits, state):
  test = part(digits, slice(1000, None))
  predict = supervised.make(Network(), optax.sgd(0.5)).predict
  logits = jax.jit(predict)(state, test)['logits']
  return float((logits.argmax(-1) == test['label']).mean())


def trained(digits, ema_decay, steps=STEPS):
  """[T, ...] of averages and of what is averaged, and the last state."""
  method = supervised.make(Network(), optax.sgd(0.5), ema_decay=ema_decay)

  @jax.jit
  def run(state):
    def step(state, index):
      rows = jax.random.fold_in(jax.random.key(1), index)
      batch = part(digits, jax.random.randint(rows, (8,), 0, 1000))
      state = method.update(state, batch, jax.random.key(index))[0]
      now = (state.params, {'batch_stats': state.model_state['batch_stats']})
      return state, (tuple(state.extra), now) if steps < 9 else ()

    return jax.lax.scan(step, state, jnp.arange(steps))

  start = jax.jit(method.init)(jax.random.key(0), part(digits, slice(8)))
  state, seen = run(start)
  return start, seen, state


def test_parameters_and_statistics_are_averaged_alike(digits):
  start, (averages, now), _ = jax.device_get(trained(digits, 0.3, steps=5))
  expected = (start.params, {'batch_stats': start.model_state['batch_stats']})
  for step in range(5):
    # Of decay 0.3 from the fourth update on: (1 + 3) / (10 + 3) = 0.308.
    decay = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3][step]
    at = jax.tree.map(lambda x, t=step: x[t], (averages, now))
    expected = jax.tree.map(
      lambda a, x, d=decay: d * a + (1 - d) * x, expected, at[1]
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      at[0],
      expected,
    )


def test_statistics_are_averaged_wherever_they_are():
  old, new = (
    {
      'batch_stats': {'mean': at},
      'base_batch_stats': {'mean': 2 * at},
      'second': {'batch_stats': {'mean': 3 * at}, 'other': 4 * at},
    }
    for at in (1.0, 5.0)
  )
  average = steps.average_from({'w': 0.5}, old)
  state = types.TrainState(0, {'w': 0.7}, (), new, average)
  assert steps.variables(state) == {
    'params': {'w': 0.5},
    'batch_stats': {'mean': 1.0},
    'base_batch_stats': {'mean': 2.0},
    'second': {'batch_stats': {'mean': 3.0}, 'other': 20.0},
  }


def test_averages_are_as_good_as_the_last_parameters(digits):
  # 0.895 with the statistics of the last parameters, which have 0.951.
  _, _, state = trained(digits, 0.99)
  averaged = accuracy_of(digits, state)
  assert averaged > 0.94
  assert averaged > accuracy_of(digits, state.replace(extra=())) - 0.01


def test_a_decay_that_is_too_long_for_the_run_warms_up(digits):
  # 0.103 where two thirds of the average are what `init` drew.
  _, _, state = trained(digits, 0.999)
  assert accuracy_of(digits, state) > 0.94
