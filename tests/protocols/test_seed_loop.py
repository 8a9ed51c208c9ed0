"""Side by side or one after the other, seeds train as `fit` trains one."""

import chex
import jax
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import types
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

pytestmark = pytest.mark.versions

_SEEDS = (3, 5)
_STEPS = 7


@pytest.fixture(scope='module')
def columns():
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(20, 2, 2, 1)).astype(np.float32),
    'label': rng.integers(0, 3, 20),
  }


@pytest.fixture(scope='module')
def order():
  return np.random.default_rng(1).integers(0, 20, (len(_SEEDS), _STEPS, 8))


@pytest.fixture(scope='module')
def method():
  return supervised.make(
    mlp.Mlp(num_classes=3, features=(4,)), optax.sgd(0.1, momentum=0.9)
  )


def _fit(method, columns, order, seed):
  """State and loss of the last step, on one device."""
  losses = []

  def batches(start):
    for rows in order[start:]:
      batch = {name: x[rows] for name, x in columns.items()}
      yield {**batch, 'mask': np.ones(len(rows), np.float32)}

  state = loop.fit(
    method,
    batches,
    steps=_STEPS,
    seed=seed,
    hooks=(lambda step, state, sums: losses.append(sums['loss']),),
    devices=jax.local_devices()[:1],
  )
  return state, losses[-1]


def _nth(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


@pytest.mark.parametrize('num_rows', [-1, 0, 7])
def test_subsets_of_more_rows_than_there_are_are_refused(num_rows):
  with pytest.raises(types.InputError, match=r'num_rows must be in \[1, 6\]'):
    side_by_side.per_seed({'x': np.arange(6)}, _SEEDS, num_rows=num_rows)


@pytest.mark.parametrize('vectorize', [True, False])
def test_seeds_train_as_fit_does(method, columns, order, vectorize):
  per_seed = side_by_side.per_seed(columns, _SEEDS)
  stretches = list(
    seed_loop.fit(
      method,
      side_by_side.begin(method, per_seed, _SEEDS),
      per_seed,
      order,
      seeds=_SEEDS,
      every=3,
      vectorize=vectorize,
    )
  )
  assert [step for step, _, _ in stretches] == [3, 6, 7]
  _, states, means = stretches[-1]
  for i, seed in enumerate(_SEEDS):
    state, (total, weight) = _fit(method, columns, order[i], seed)
    chex.assert_trees_all_close(_nth(states, i), state, rtol=1e-5, atol=1e-6)
    # The last stretch is one step long.
    np.testing.assert_allclose(means['loss'][i], total / weight, rtol=1e-5)


@pytest.mark.parametrize('num_shared', [20, 13])
@pytest.mark.parametrize('vectorize', [True, False])
def test_shared_rows_are_as_good_as_a_copy_a_seed(
  method, columns, order, num_shared, vectorize
):
  order = order.copy()
  order[:, 2, 5:] = -1  # Padding.
  per_seed = side_by_side.per_seed(columns, _SEEDS)
  states = side_by_side.begin(method, per_seed, _SEEDS)
  settings = dict(seeds=_SEEDS, every=_STEPS, vectorize=vectorize)
  ((_, expected, means),) = seed_loop.fit(
    method, states, per_seed, order, **settings
  )
  shared = {name: x[:num_shared] for name, x in columns.items()}
  own = {name: x[:, num_shared:] for name, x in per_seed.items()}
  if num_shared == 20:
    own = {}
    chex.assert_trees_all_equal(
      side_by_side.begin(method, {}, _SEEDS, shared=shared), states
    )
  ((_, found, found_means),) = seed_loop.fit(
    method, states, own, order, shared=shared, **settings
  )
  chex.assert_trees_all_equal((found, found_means), (expected, means))
  # What is never padding may be told, and changes nothing.
  ((_, found, found_means),) = seed_loop.fit(
    method, states, own, order, shared=shared, num_full=5, **settings
  )
  chex.assert_trees_all_close(
    (found, found_means), (expected, means), rtol=1e-5, atol=1e-6
  )
  # And the rows behind the shared ones are a seed's own.
  if own:
    own['image'][1] += 1.0
    ((_, other, _),) = seed_loop.fit(
      method, states, own, order, shared=shared, **settings
    )
    chex.assert_trees_all_equal(_nth(other, 0), _nth(expected, 0))
    with pytest.raises(AssertionError):
      chex.assert_trees_all_equal(_nth(other, 1), _nth(expected, 1))


def test_cores_share_the_seeds(method, columns, monkeypatch):
  seeds = tuple(range(6))
  order = np.random.default_rng(2).integers(0, 20, (6, _STEPS, 8))
  states = side_by_side.begin(method, {}, seeds, shared=columns)
  found = {}
  for cores, parts in ((1, 1), (2, 2), (5, 3)):
    monkeypatch.setattr('os.cpu_count', lambda cores=cores: cores)
    assert seed_loop.num_parts(6) == (
      parts if jax.default_backend() == 'cpu' else 1
    )
    found[cores] = [
      (step, jax.device_get(state), means)
      for step, state, means in seed_loop.fit(
        method, states, {}, order, seeds=seeds, every=4, shared=columns
      )
    ]
  chex.assert_trees_all_close(found[2], found[1], rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(found[5], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('vectorize', [True, False])
def test_stretches_of_one_method_share_a_program(columns, order, vectorize):
  traces = []
  made = supervised.make(mlp.Mlp(num_classes=3, features=(4,)), optax.sgd(0.1))

  def update(*args):
    traces.append(1)
    return made.update(*args)

  method = made._replace(update=update)
  states = side_by_side.begin(method, {}, _SEEDS, shared=columns)
  for _ in range(3):
    ((_, states, _),) = seed_loop.fit(
      method,
      states,
      {},
      order,
      seeds=_SEEDS,
      every=_STEPS,
      shared=columns,
      vectorize=vectorize,
    )
  assert len(traces) == 1


@pytest.mark.parametrize('vectorize', [True, False])
def test_a_diverging_seed_is_named(columns, order, vectorize):
  method = supervised.make(
    mlp.Mlp(num_classes=3, features=(4,)), optax.sgd(0.1)
  )
  broken = side_by_side.per_seed(columns, _SEEDS)
  broken['image'][1] = np.nan
  with pytest.raises(types.NonFiniteError, match='seed=5'):
    list(
      seed_loop.fit(
        method,
        side_by_side.begin(method, broken, _SEEDS),
        broken,
        order,
        seeds=_SEEDS,
        every=7,
        vectorize=vectorize,
      )
    )


@pytest.mark.parametrize('vectorize', [True, False])
def test_no_state_stands_in_for_that_of_another_seed(
  method, columns, order, vectorize
):
  one = side_by_side.begin(method, {}, _SEEDS[:1], shared=columns)
  two = side_by_side.begin(method, {}, _SEEDS, shared=columns)
  of_one = side_by_side.per_seed(columns, _SEEDS[:1])
  how = dict(seeds=_SEEDS, every=_STEPS, vectorize=vectorize)
  for states, own, shared in ((one, {}, columns), (two, of_one, None)):
    with pytest.raises(types.InputError, match='2 seeds need as many'):
      next(seed_loop.fit(method, states, own, order, shared=shared, **how))


def test_what_is_not_finite_is_right_about_nothing():
  logits = np.zeros((2, 3, 4))
  logits[0, 0] = np.nan
  logits[1, 1, 2] = np.inf
  test = {'label': np.zeros(3, int)}
  right = side_by_side.accuracy({'logits': logits}, test)
  np.testing.assert_allclose(right, [2 / 3, 2 / 3])


@pytest.mark.parametrize('vectorize', [True, False])
def test_each_seed_predicts_by_its_own_state(method, columns, vectorize):
  own = side_by_side.per_seed(columns, _SEEDS)
  states = side_by_side.begin(method, own, _SEEDS)
  predict = side_by_side.predict_fn(method, vectorize=vectorize)
  found = predict(states, columns)['logits']
  assert found.shape == (len(_SEEDS), 20, 3)
  for i, logits in enumerate(found):
    alone = method.predict(_nth(states, i), {**columns, 'mask': np.ones(20)})
    np.testing.assert_allclose(logits, alone['logits'], rtol=1e-5, atol=1e-6)
  assert abs(found[0] - found[1]).max() > 0.01
