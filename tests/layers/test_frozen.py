"""A part of a model: what trains does, and no bit of the rest."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen
from repjax.layers import norms
from repjax.methods import supervised

ROWS = 12
RNG = np.random.default_rng(0)
BATCH = {
  'image': RNG.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
  'label': np.arange(ROWS) % 3,
  'mask': np.asarray([1.0] * (ROWS - 1) + [0.0], np.float32),
}


class Net(nn.Module):
  """A norm with statistics, a dropout, and a second way to call it."""

  num_classes: int = 3

  def setup(self):
    self.hidden = nn.Dense(6)
    self.norm = norms.BatchNorm()
    self.dropout = nn.Dropout(0.5)
    self.head = nn.Dense(self.num_classes)

  def features(self, image, *, train, mask=None):
    x = self.hidden(image.reshape((len(image), -1)))
    x = nn.tanh(self.norm(x, train=train, mask=mask))
    return self.dropout(x, deterministic=not train)

  def __call__(self, image, *, train, mask=None):
    return self.head(self.features(image, train=train, mask=mask))


def at_head(path):
  return path[0] == 'head'


PART = frozen.train_only(Net(), at_head)


def init(model):
  return jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), BATCH['image']
  )


@pytest.fixture(scope='module')
def variables():
  """Of the whole model, and of the one of which the head is trained."""
  return init(Net()), init(PART)


def test_what_is_frozen_is_computed_in_the_type_of_what_trains(variables):
  @jax.jit
  def called(variables):
    return PART.apply(variables, image, train=False)

  image = BATCH['image'].astype('bfloat16')
  part = variables[1]
  low = {**part, 'params': trees.cast(part['params'], 'bfloat16')}
  found = called(low)
  assert found.dtype == jnp.bfloat16
  both = {**low, types.FROZEN: trees.cast(part[types.FROZEN], 'bfloat16')}
  np.testing.assert_array_equal(found, called(both))
  # And what is frozen in few bits stays so beside what trains in more.
  half = trees.cast(part[types.FROZEN], 'bfloat16')
  assert called({**part, types.FROZEN: half}).dtype == jnp.float32


def test_every_parameter_is_in_one_of_two_collections(variables):
  whole, part = variables
  assert set(part) == {'params', types.FROZEN, 'batch_stats'}
  chex.assert_trees_all_equal(part['params'], {'head': whole['params']['head']})
  chex.assert_trees_all_equal(
    part[types.FROZEN], {k: whole['params'][k] for k in ('hidden', 'norm')}
  )
  # One tree of both is that of the whole model, with the same draws.
  chex.assert_trees_all_equal(frozen.joined(part), whole['params'])
  chex.assert_trees_all_equal(frozen.joined(whole), whole['params'])


def test_it_is_called_as_the_model_is(variables):
  whole, part = variables
  assert PART.num_classes == 3
  for settings in (
    dict(train=False),
    dict(train=False, method='features'),
    # The same masks of dropout, and the same new statistics.
    dict(
      train=True, rngs={'dropout': jax.random.key(1)}, mutable=['batch_stats']
    ),
  ):
    chex.assert_trees_all_equal(
      *(
        jax.jit(functools.partial(model.apply, **settings))(x, BATCH['image'])
        for model, x in ((Net(), whole), (PART, part))
      )
    )


@pytest.mark.parametrize(
  'tx',
  [
    optax.adamw(0.1, weight_decay=0.1),
    optax.chain(optim.sam(rho=0.1), optax.sgd(0.1, momentum=0.9)),
    optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1)),
  ],
  ids=['decay', 'SAM', 'clipping'],
)
def test_no_step_changes_a_bit_of_what_is_frozen(tx):
  method = supervised.make(PART, tx)
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  before = trees.crc32(state.model_state[types.FROZEN])
  kernel = np.asarray(state.params['head']['kernel'])
  assert set(state.params) == {'head'}
  devices = jax.local_devices()[:3]  # A mean over 3 is not exact.
  step = parallel.train_step(method.update, devices=devices)
  state = parallel.replicate(state, devices=devices)
  for i in range(3):
    state, _ = step(
      state, parallel.shard(BATCH, devices=devices), jax.random.key(i)
    )
  after = jax.device_get(state)
  assert trees.crc32(after.model_state[types.FROZEN]) == before
  assert np.abs(after.params['head']['kernel'] - kernel).min() > 0
  # No link of the chain knows of anything else.
  sizes = {np.shape(x) for x in jax.tree.leaves(state.opt_state)}
  assert sizes <= {(), (6, 3), (3,)}


def test_the_gradient_is_that_of_the_whole_model_at_the_part(variables):
  whole, part = variables

  def loss(model, rest, params):
    out = model.apply({**rest, 'params': params}, BATCH['image'], train=False)
    return (out**2).sum()

  grads, expected = (
    jax.grad(functools.partial(loss, model, x))(x['params'])
    for model, x in ((PART, part), (Net(), whole))
  )
  chex.assert_trees_all_equal(grads, {'head': expected['head']})
  # A part in the middle has the gradient through what comes after it.
  middle = frozen.train_only(Net(), lambda path: path[0] == 'hidden')
  x = frozen.with_params(init(middle), whole['params'])
  grads = jax.grad(functools.partial(loss, middle, x))(x['params'])
  chex.assert_trees_all_close(
    grads, {'hidden': expected['hidden']}, rtol=1e-6, atol=1e-6
  )


def test_other_parameters_go_where_they_belong(variables):
  whole, part = variables
  other = jax.tree.map(lambda x: np.float64(x) + 1, whole['params'])
  found = frozen.with_params(part, other)
  chex.assert_trees_all_equal_structs(found, part)
  chex.assert_trees_all_equal_shapes_and_dtypes(found, part)
  chex.assert_trees_all_close(frozen.joined(found), other, rtol=1e-6)
  # What is kept may be of another shape, or not be there.
  other.pop('head')
  kept = frozen.with_params(part, other, keep=at_head)
  chex.assert_trees_all_equal(kept['params'], part['params'])
  chex.assert_trees_all_equal(kept[types.FROZEN], found[types.FROZEN])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x.pop('norm'), r"missing \['norm/bias', 'norm/scale'\]"),
    (lambda x: x.update(extra=jnp.ones(2)), r"unexpected \['extra'\]"),
    (
      lambda x: x['hidden'].update(bias=jnp.ones(7)),
      r"other shapes \['hidden/bias \(7,\), not \(6,\)'\]",
    ),
  ],
)
def test_parameters_that_do_not_fit_are_named(variables, change, message):
  params = jax.tree.map(lambda x: x, variables[0]['params'])
  change(params)
  with pytest.raises(types.InputError, match=f'^those of a file .*{message}'):
    frozen.with_params(variables[1], params, what='those of a file')


def test_what_cannot_be_divided_is_refused(variables):
  _, part = variables
  with pytest.raises(ValueError, match='selects no leaf of: head/bias, head/k'):
    init(frozen.train_only(Net(), lambda path: path[0] == 'haed'))
  with pytest.raises(types.InputError, match='frozen already'):
    frozen.train_only(PART, at_head)
  with pytest.raises(types.InputError, match='frozen already'):
    adapters.adapt(PART, {'head': adapters.lora(1)})
  with pytest.raises(types.InputError, match="the collection 'base'"):
    PART.apply({'params': part['params']}, BATCH['image'], train=False)
  with pytest.raises(types.InputError, match=r'no rule makes .*hidden/bias'):
    PART.apply(
      {**part, 'params': frozen.joined(part)}, BATCH['image'], train=False
    )
  # All of a model is a part of it, too.
  every = frozen.train_only(Net(), lambda path: True)
  chex.assert_trees_all_equal(init(every), init(Net()))
