"""Private runs side by side: a key of the noise each, or none at all."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.data.batches import poisson
from repjax.experiments import private
from repjax.experiments import private_keys
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import private_runs
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

SEEDS = (3, 5)
ROWS = {
  'image': np.zeros((40, 2, 2, 1), np.float32),
  'label': np.arange(40) % 3,
}
COLUMNS = side_by_side.per_seed(ROWS, SEEDS)


@pytest.fixture(scope='module')
def plan():
  return private.plan(
    40,
    batch_size=10,
    epochs=0.75,
    epsilon=math.inf,
    delta=1e-3,
    clip_norm=1.0,
    seed=0,
    nonce=b'',
  )._replace(noise_multiplier=1e3)


@pytest.fixture(scope='module')
def method(plan):
  return supervised.make(
    mlp.Mlp(3, features=()),
    optax.chain(plan.link(), side_by_side.swept(optax.sgd(1.0))),
  )


def train(plan, method, seeds=SEEDS, **settings):
  columns = side_by_side.per_seed(ROWS, seeds)
  return private_runs.train(
    'runs', method, columns, ROWS, plan=plan, seeds=seeds, **settings
  )


def noise(plan, method, trained, seeds, rates):
  """What noise has made of the parameters of each run, at rate 1."""
  start = side_by_side.begin(method, side_by_side.per_seed(ROWS, seeds), seeds)
  moved = jax.tree.map(
    lambda a, b: np.asarray(a - b).reshape((len(seeds), -1)),
    trained.states.params,
    start.params,
  )
  stacked = np.concatenate(jax.tree.leaves(moved), axis=1)
  return stacked / np.asarray(rates)[:, None]


def test_every_run_has_noise_of_its_own(plan, method):
  # The gradient is nothing beside the noise, so what moves is noise alone.
  seeds, rates = (3, 3, 5, 5), (1.0, 2.0, 1.0, 2.0)
  trained = train(plan, method, seeds, rates=rates)
  found = noise(plan, method, trained, seeds, rates)
  for i in range(4):
    for other in range(i):
      assert np.abs(found[i] - found[other]).max() > 10
  assert len({tuple(x) for x in private_keys.of(trained.states)[0]}) == 4
  # Equal names, equal noise: a run can be made again.
  again = train(plan, method, seeds, rates=rates)
  jax.tree.map(
    np.testing.assert_array_equal, again.states.params, trained.states.params
  )


def test_keys_follow_from_the_secret_and_the_name_of_the_run(plan, method):
  start = side_by_side.begin(method, COLUMNS, SEEDS)
  (first,) = private_keys.of(plan.with_keys(start, (0, 1)))
  (swapped,) = private_keys.of(plan.with_keys(start, (1, 0)))
  np.testing.assert_array_equal(first, swapped[::-1])
  other = plan._replace(secret=b'another')
  (secret,) = private_keys.of(other.with_keys(start, (0, 1)))
  # Nor is one that of the run alone, which knows no name.
  alone = np.asarray(plan.link().init({}).key)
  assert len({tuple(x) for x in (*first, *secret, alone)}) == 5


def test_links_of_one_run_have_keys_of_their_own(plan):
  both = optax.chain(plan.link(), plan.link())
  method = supervised.make(mlp.Mlp(3, features=()), both)
  start = side_by_side.begin(method, COLUMNS, SEEDS)
  keys = private_keys.of(plan.with_keys(start, SEEDS))
  assert len({tuple(x) for x in np.concatenate(keys)}) == 4


@pytest.mark.parametrize('vectorize', [True, False])
def test_one_key_for_several_models_is_refused(plan, method, vectorize):
  # Whoever forgets the keys, or copies a state, does not get two runs whose
  # difference has no noise.
  settings = dict(
    seeds=SEEDS,
    batch_size=plan.capacity,
    steps=plan.steps,
    order=plan.order(SEEDS),
    vectorize=vectorize,
  )
  start = side_by_side.begin(method, COLUMNS, SEEDS)
  keyed = plan.with_keys(start, SEEDS)
  copied = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), keyed)
  for states in (None, start, copied):
    with pytest.raises(types.InputError, match='one key'):
      side_by_side.train(
        'runs', method, COLUMNS, ROWS, states=states, **settings
      )
  trained = side_by_side.train(
    'runs', method, COLUMNS, ROWS, states=keyed, **settings
  )
  assert trained.score.shape == (2,)
  with pytest.raises(types.InputError, match='one key'):
    next(
      seed_loop.fit(
        method, start, COLUMNS, plan.order(SEEDS), seeds=SEEDS, every=1
      )
    )


def test_a_run_that_occurs_twice_is_refused(plan, method):
  with pytest.raises(types.InputError, match="'3' 2 times"):
    train(plan, method, (3, 3))
  with pytest.raises(types.InputError, match=r"'3 at rate 1\.0' 2 times"):
    train(plan, method, (3, 3), rates=(1.0, 1.0))
  start = side_by_side.begin(method, COLUMNS, SEEDS)
  with pytest.raises(ValueError, match='3 names of 2 runs'):
    plan.with_keys(start, (0, 1, 2))


def test_a_method_without_the_link_is_refused(plan):
  plain = supervised.make(mlp.Mlp(3, features=()), optax.sgd(1.0))
  with pytest.raises(types.InputError, match='begin the chain'):
    train(plan, plain)


def test_the_rows_of_a_run_are_the_poisson_samples_of_its_seed(plan):
  order = plan.order(np.asarray(SEEDS))  # Seeds of any integer type.
  assert order.shape == (2, plan.steps, plan.capacity)
  for i, seed in enumerate(SEEDS):
    for step in range(plan.steps):
      drawn = poisson.rows_at(step, 40, plan.rate, plan.sampling_seed + seed)
      np.testing.assert_array_equal(order[i, step, : len(drawn)], drawn)
      assert (order[i, step, len(drawn) :] == -1).all()
  # A run alone draws those of seed 0.
  assert (order[0] != order[1]).any()
  with pytest.raises(types.InputError, match='user_column'):
    plan._replace(user_column='author').order(SEEDS)
