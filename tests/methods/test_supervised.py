"""Settings of the step against their plain form."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.methods import supervised


class Net(nn.Module):
  """Two layers, with the interface of repjax's classifiers."""

  @nn.compact
  def __call__(self, image, *, train, mask):
    del train, mask
    hidden = nn.Dense(8, name='hidden')(image.reshape((len(image), -1)))
    return nn.Dense(3, name='head')(nn.tanh(hidden))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(12, 2, 2, 1)).astype(np.float32),
    'label': rng.integers(0, 3, 12),
    'mask': np.asarray([1.0] * 11 + [0.0], np.float32),
  }


def _run(batch, *, steps=3, tx=None, **settings):
  tx = optax.sgd(0.5) if tx is None else tx
  method = supervised.make(Net(), tx, **settings)
  update = jax.jit(method.update)
  states = [method.init(jax.random.key(0), batch)]
  for i in range(steps):
    state, sums = update(states[-1], batch, jax.random.key(i))
    states.append(state)
  return method, states, sums


def test_microbatches_change_nothing(batch):
  _, plain, sums = _run(batch)
  _, parts, sums_of_parts = _run(batch, microbatches=3)
  chex.assert_trees_all_close(
    (plain[-1], sums), (parts[-1], sums_of_parts), rtol=1e-5, atol=1e-6
  )


def test_the_average_of_parameters(batch):
  method, states, _ = _run(batch, ema_decay=0.75)
  _, plain, _ = _run(batch)
  # It does not disturb training.
  chex.assert_trees_all_equal(states[-1].params, plain[-1].params)
  average = states[0].params
  for step, state in enumerate(states[1:]):
    decay = min(0.75, (1 + step) / (10 + step))  # It warms up.
    average = jax.tree.map(
      lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params
    )
  chex.assert_trees_all_close(states[-1].extra.params, average, rtol=1e-5)
  # And predictions are made with it.
  expected = Net().apply(
    {'params': average}, batch['image'], train=False, mask=None
  )
  actual = method.predict(states[-1], batch)['logits']
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_and_float32_keeps(batch):
  _, plain, sums = _run(batch)
  _, short, sums_of_short = _run(batch, compute_dtype='bfloat16')
  chex.assert_trees_all_equal_shapes_and_dtypes(plain[-1], short[-1])
  # 8 bits of mantissa: a relative error of about 2^-8 a product.
  chex.assert_trees_all_close(
    plain[-1].params, short[-1].params, rtol=0.02, atol=0.02
  )
  with pytest.raises(AssertionError):  # It is another computation.
    chex.assert_trees_all_equal(plain[-1].params, short[-1].params)
  loss, loss_of_short = sums['loss'][0], sums_of_short['loss'][0]
  np.testing.assert_allclose(loss, loss_of_short, rtol=0.02)
  assert loss_of_short.dtype == jnp.float32


def test_smoothing_and_l2_are_what_their_formulas_say(batch):
  smoothing, l2 = 0.3, 0.1
  _, states, _ = _run(batch, steps=1, label_smoothing=smoothing, l2=l2)

  def loss(params):
    logits = Net().apply(
      {'params': params}, batch['image'][:11], train=True, mask=None
    )
    target = jax.nn.one_hot(batch['label'][:11], 3) * (1 - smoothing)
    target += smoothing / 3
    cross_entropy = -(target * jax.nn.log_softmax(logits)).sum(-1).mean()
    return cross_entropy + l2 / 2 * sum(
      (x**2).sum() for x in jax.tree.leaves(params)
    )

  grads = jax.grad(loss)(states[0].params)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, states[0].params, grads)
  chex.assert_trees_all_close(states[1].params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('label_smoothing', 1.0),
    ('ema_decay', 1.0),
    ('compute_dtype', 'float16'),
  ],
)
def test_wrong_settings_are_named(name, value):
  with pytest.raises(ValueError, match=name):
    supervised.make(Net(), optax.sgd(0.1), **{name: value})
