"""Tuning starts at the probe, and the probe leaves the backbone alone."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import start
from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.layers import norms
from repjax.methods import lp_ft
from repjax.protocols import linear_probe

ROWS = 48


class Net(nn.Module):
  """All that must be quiet in evaluation: a batch norm and a dropout."""

  num_classes: int
  bias: bool = True

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = nn.Dense(6, name='hidden')(image.reshape((len(image), -1)))
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    x = nn.Dropout(0.5, deterministic=not train, name='dropout')(nn.tanh(x))
    return nn.Dense(self.num_classes, use_bias=self.bias, name='head')(x)


def batch_of(num_classes, seed=0):
  rng = np.random.default_rng(seed)
  label = np.arange(ROWS, dtype=np.int32) % num_classes
  image = rng.normal(size=(ROWS, 2, 2, 1)) + label[:, None, None, None] / 2
  return {
    'image': image.astype(np.float32),
    'label': label,
    'mask': np.ones(ROWS, np.float32),
  }


def backbone_of(state):
  """A state whose statistics are not those of any batch."""
  stats = jax.tree.map(
    lambda x: x + 0.3 * jnp.arange(1.0, 1.0 + x.size).reshape(x.shape),
    state.model_state,
  )
  return state.replace(model_state=stats)


def updated(method, state, batch, steps=3):
  update = jax.jit(method.update)
  for step in range(steps):
    state, _ = update(state, batch, jax.random.key(step))
  return state


def at_head(path):
  return path[0] == 'head'


def without_head(params):
  return {k: x for k, x in params.items() if k != 'head'}


# The start of tuning.


@pytest.mark.parametrize('num_classes, bias', [(3, True), (2, False)])
def test_tuning_with_rate_zero_gives_the_logits_of_the_probe(num_classes, bias):
  from sklearn import linear_model

  model, batch = Net(num_classes, bias), batch_of(num_classes)
  method = lp_ft.make(model, optax.sgd(0.0, momentum=0.9))
  state = backbone_of(method.init(jax.random.key(0), batch))
  probe = linear_probe.of_model(
    model,
    state,
    train=[batch],
    val=[batch],
    num_classes=num_classes,
    grid=[1.0],
    tol=1e-9,
    max_iter=5000,
  )
  began = start.with_params(state, lp_ft.with_head(state.params, *probe.head))
  end = updated(method, began, batch)
  logits = method.predict(end, batch)['logits']
  # scikit-learn itself, on features that NumPy makes.
  params = jax.device_get(state.params)
  stats = jax.device_get(state.model_state['batch_stats']['norm'])
  x = batch['image'].reshape((ROWS, -1)).astype(np.float64)
  x = x @ params['hidden']['kernel'] + params['hidden']['bias']
  x = np.tanh((x - stats['mean']) / np.sqrt(stats['var'] + 1e-5))
  scaled = (x - x.mean() * bias) / x.std()
  oracle = linear_model.LogisticRegression(
    C=1.0, fit_intercept=bias, tol=1e-9, max_iter=5000
  ).fit(scaled, batch['label'])
  expected = oracle.decision_function(scaled)
  if num_classes == 2:
    expected = np.stack([-expected / 2, expected / 2], 1)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  chex.assert_trees_all_equal(end.model_state, began.model_state)


def test_without_the_guard_the_statistics_move():
  model, batch = Net(3), batch_of(3)
  method = lp_ft.make(model, optax.sgd(0.0), mode='train')
  before = backbone_of(method.init(jax.random.key(0), batch))
  end = updated(method, before, batch, steps=1)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(end.model_state, before.model_state)


def test_features_are_what_the_head_sees():
  model, batch = Net(3), batch_of(3)
  method = lp_ft.make(model, optax.sgd(0.1), ema_decay=0.5)
  state = updated(method, method.init(jax.random.key(0), batch), batch, 1)
  out = lp_ft.features(model)(state, batch)
  head = state.extra.params['head']  # Averages, which `predict` uses.
  np.testing.assert_allclose(
    out['features'] @ head['kernel'] + head['bias'][None],
    out['logits'],
    atol=1e-5,
  )
  np.testing.assert_array_equal(
    out['logits'], method.predict(state, batch)['logits']
  )
  inputs = lp_ft.features(model, layer='hidden')(state, batch)['features']
  np.testing.assert_array_equal(inputs, batch['image'].reshape((ROWS, -1)))


# Probing by gradient descent.


def test_probing_moves_the_head_alone_bit_for_bit():
  batch = batch_of(3)
  method = lp_ft.make(
    frozen.train_only(Net(3), at_head), optax.adamw(0.1, weight_decay=0.1)
  )
  before = backbone_of(method.init(jax.random.key(0), batch))
  end = updated(method, before, batch)
  # The frozen backbone is with the statistics of its norm.
  assert set(before.model_state) == {types.FROZEN, 'batch_stats'}
  chex.assert_trees_all_equal(end.model_state, before.model_state)
  assert set(before.params) == {'head'}
  assert not np.allclose(
    end.params['head']['kernel'], before.params['head']['kernel']
  )
  # Two moments of the head and one counter: the backbone has no optimizer.
  assert trees.size(before.opt_state) == 2 * trees.size(before.params) + 1


def test_probing_by_gradient_descent_comes_to_the_exact_probe():
  model, batch = frozen.train_only(Net(3), at_head), batch_of(3)
  method = lp_ft.make(model, optax.sgd(0.5, momentum=0.9))
  state = method.init(jax.random.key(0), batch)
  exact = linear_probe.of_model(
    model,
    state,
    train=[batch],
    val=[batch],
    num_classes=3,
    grid=[1e4],
    max_iter=10_000,
    tol=1e-7,
  )

  def many(state):
    step = lambda _, s: method.update(s, batch, jax.random.key(0))[0]  # noqa: E731
    return jax.lax.fori_loop(0, 4000, step, state)

  found = jax.nn.softmax(method.predict(jax.jit(many)(state), batch)['logits'])
  params = lp_ft.with_head(start.parameters(state), *exact.head)
  probed = start.with_params(state, params)
  logits = method.predict(probed, batch)['logits']
  np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=0.01)


# Optimizers.


def test_head_and_backbone_have_rates_of_their_own():
  model, batch = Net(3), batch_of(3)
  plain = lp_ft.make(model, optax.sgd(1.0))
  parts = lp_ft.make(
    model,
    lp_ft.partition(at_head=optax.sgd(1.0), elsewhere=optax.sgd(0.1)),
  )
  before = plain.init(jax.random.key(0), batch)
  steps = [
    jax.tree.map(
      jnp.subtract,
      updated(method, method.init(jax.random.key(0), batch), batch, 1).params,
      before.params,
    )
    for method in (plain, parts)
  ]
  expected = jax.tree.map(lambda x: 0.1 * x, steps[0])
  expected['head'] = steps[0]['head']
  chex.assert_trees_all_close(steps[1], expected, atol=1e-6)


def test_interpolation_ends_at_its_ends():
  a, b = {'w': jnp.array([1.0, 2.0])}, {'w': jnp.array([3.0, 10.0])}
  chex.assert_trees_all_equal(lp_ft.interpolate(a, b, 0.0), a)
  chex.assert_trees_all_equal(lp_ft.interpolate(a, b, 1.0), b)
  np.testing.assert_allclose(lp_ft.interpolate(a, b, 0.25)['w'], [1.5, 4.0])
  with pytest.raises(types.InputError, match=r'share=1\.5'):
    lp_ft.interpolate(a, b, 1.5)


# What is refused.


def params_of(num_classes, seed=0, **fields):
  batch = batch_of(num_classes)
  net = Net(num_classes, **fields)
  return net.init(jax.random.key(seed), batch['image'], train=False)['params']


def test_a_classifier_of_another_shape_is_refused():
  kernel, bias = np.ones((6, 3)), np.ones(3)
  with pytest.raises(types.InputError, match='the given classifier has'):
    lp_ft.with_head(params_of(3), kernel[:, :2], bias[:2])
  bare = params_of(3, bias=False)
  with pytest.raises(types.InputError, match='intercept=False'):
    lp_ft.with_head(bare, kernel, bias)
  np.testing.assert_array_equal(
    lp_ft.with_head(bare, kernel, 0 * bias)['head']['kernel'], kernel
  )


def test_a_head_that_is_not_there_is_named_everywhere():
  wrong = pytest.raises(types.InputError, match="Did you mean 'head'")
  batch, net = batch_of(3), Net(3)
  with wrong:
    lp_ft.with_head(params_of(3), np.ones((6, 3)), np.ones(3), head='haed')
  for tx in (
    lp_ft.partition(
      at_head=optax.sgd(0.1), elsewhere=optax.sgd(0.1), head='haed'
    ),
    optim.l2_sp(0.1, head='haed'),
  ):
    with wrong:
      lp_ft.make(net, tx).init(jax.random.key(0), batch)
  state = lp_ft.make(net, optax.sgd(0.1)).init(jax.random.key(0), batch)
  with wrong:
    lp_ft.features(net, layer='haed')(state, batch)


def test_modes_that_move_what_is_frozen_are_refused():
  with pytest.raises(types.InputError, match="mode='quiet'"):
    lp_ft.make(Net(3), optax.sgd(0.1), mode='quiet')
  with pytest.raises(types.InputError, match='statistics'):
    lp_ft.make(frozen.train_only(Net(3), at_head), optax.sgd(0.1), mode='train')


def test_a_probe_is_judged_by_rows_that_it_is_not_fitted_to():
  model, batch = Net(3), batch_of(3)
  other = {**batch, 'label': np.roll(batch['label'], 1)}
  state = lp_ft.make(model, optax.sgd(0.1)).init(jax.random.key(0), batch)
  probe = linear_probe.of_model(
    model, state, train=[batch], val=[other], num_classes=3, grid=[1.0]
  )
  rows = np.float64(lp_ft.features(model)(state, batch)['features'])
  guess = (rows @ probe.head.kernel + probe.head.bias).argmax(1)
  assert probe.accuracy[0] == pytest.approx((guess == other['label']).mean())
  assert probe.accuracy[0] < (guess == batch['label']).mean()
