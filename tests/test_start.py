"""A start puts parameters wherever a state has them, and names what is off."""

import functools

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import optim
from repjax import start
from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen
from repjax.layers import norms
from repjax.methods import dann
from repjax.methods import erm
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import vit
from repjax.weights import vit_weights

RNG = np.random.default_rng(0)
BATCH = {
  'image': RNG.normal(size=(6, 4, 4, 1)).astype(np.float32),
  'label': np.arange(6) % 3,
  'mask': np.ones(6, np.float32),
}


class Net(nn.Module):
  """A network with statistics beside its parameters."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = nn.Dense(5, name='hidden')(image.reshape((len(image), -1)))
    x = nn.tanh(norms.BatchNorm(name='norm')(x, train=train, mask=mask))
    return nn.Dense(self.num_classes, name='head')(x)


def at_head(path):
  return path[0] == 'head'


def method_of(model, ema_decay=0.0):
  tx = optax.chain(optim.l2_sp(0.5), optax.adam(1e-2))
  return supervised.make(model, tx, ema_decay=ema_decay)


@functools.cache
def trained(num_classes=3, seed=1, part=False):
  """A state after two steps: no copy of anything is equal to another."""
  model = Net(num_classes)
  if part:
    model = frozen.train_only(model, at_head)
  method = method_of(model, ema_decay=0.5)
  state = jax.jit(method.init)(jax.random.key(seed), BATCH)
  for i in range(2):
    state, _ = jax.jit(method.update)(state, BATCH, jax.random.key(i))
  return jax.device_get(state)


def fresh(model, ema_decay=0.9):
  return jax.jit(method_of(model, ema_decay).init)(jax.random.key(0), BATCH)


@pytest.mark.parametrize('ema_decay', [0.0, 0.9])
def test_a_start_replaces_every_copy(ema_decay):
  state, params = fresh(Net(), ema_decay), trained().params
  found = start.with_params(state, params)
  chex.assert_trees_all_equal_structs(found, state)
  chex.assert_trees_all_equal(found.params, params)
  if ema_decay:
    chex.assert_trees_all_equal(found.extra.params, params)
    statistics = found.extra.statistics['batch_stats']
    chex.assert_trees_all_equal(statistics, state.model_state['batch_stats'])
  held, adam = found.opt_state
  chex.assert_trees_all_equal(held.start, params)
  # Moments, statistics and the step are as `init` made them.
  chex.assert_trees_all_equal(adam, state.opt_state[1])
  chex.assert_trees_all_equal(found.model_state, state.model_state)
  assert found.step == 0
  method = method_of(Net(), ema_decay)
  expected = jax.jit(functools.partial(Net().apply, train=False))(
    {'params': params, **state.model_state}, BATCH['image']
  )
  np.testing.assert_allclose(
    jax.jit(method.predict)(found, BATCH)['logits'],
    expected,
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_new_head_stays_and_so_do_adapters():
  state, old = fresh(Net(3)), trained(num_classes=4).params
  found = start.with_params(state, old, keep=at_head)
  chex.assert_trees_all_equal(found.params['head'], state.params['head'])
  for name in ('hidden', 'norm'):
    chex.assert_trees_all_equal(found.params[name], old[name])

  model = adapters.adapt(Net(), {'hidden': adapters.lora(2)}, train=at_head)
  state, params = fresh(model), trained().params
  seen = {}

  def load(own):
    seen.update(own)
    return {**params, 'head': own['head']}

  found = start.fill(state, load, keep=adapters.added(model))
  # What a file could fill, in one tree.
  chex.assert_trees_all_equal_structs(seen, params)
  chex.assert_trees_all_equal(found.params, state.params)
  chex.assert_trees_all_equal(found.extra.params, state.params)
  chex.assert_trees_all_equal(
    found.model_state[types.FROZEN], {k: params[k] for k in ('hidden', 'norm')}
  )
  # Without adapters nothing is theirs.
  chex.assert_trees_all_equal(
    start.fill(fresh(Net()), load, keep=adapters.added(Net())).params['hidden'],
    params['hidden'],
  )


def test_a_published_file_starts_what_is_trained_in_part(tmp_path):
  def network(num_classes):
    return vit.ViT(
      num_classes,
      patch_size=2,
      hidden_dim=8,
      mlp_dim=8,
      num_heads=2,
      num_layers=1,
    )

  image = BATCH['image'][:1]
  init = jax.jit(functools.partial(network(5).init, train=False))
  old = init(jax.random.key(1), image)['params']
  vit_weights.save_npz(tmp_path / 'vit.npz', old)
  load = functools.partial(
    vit_weights.load_vit, tmp_path / 'vit.npz', head='replace'
  )
  state = fresh(frozen.train_only(network(3), at_head))
  found = start.fill(state, load)
  chex.assert_trees_all_equal(found.params, state.params)
  old.pop('head')
  chex.assert_trees_all_equal(found.model_state[types.FROZEN], old)


def saved(state, folder):
  store = checkpoint.Checkpoints(str(folder / 'checkpoints'))
  store.save(state, {'any': 'config'})
  store.close()
  return folder


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return saved(trained(part=True), tmp_path_factory.mktemp('run'))


def test_a_run_gives_its_variables_by_name(run):
  state = trained(part=True)
  found = start.from_run(run)
  chex.assert_trees_all_equal(
    found, {**state.model_state, 'params': state.params}
  )
  averaged = start.from_run(run, which='averaged')
  chex.assert_trees_all_equal(averaged['params'], state.extra.params)
  statistics = state.extra.statistics['batch_stats']
  chex.assert_trees_all_equal(averaged['batch_stats'], statistics)
  chex.assert_trees_all_equal(start.from_run(run, which='predicted'), averaged)
  assert not np.array_equal(
    averaged['params']['head']['kernel'], found['params']['head']['kernel']
  )
  # A run that trained a part starts one that trains everything, and the other
  # way round.
  params = frozen.joined(found)
  whole = start.with_params(fresh(Net()), params)
  chex.assert_trees_all_equal(whole.params, start.parameters(state))
  part = start.with_params(fresh(frozen.train_only(Net(), at_head)), params)
  chex.assert_trees_all_equal(start.parameters(part), whole.params)


def test_the_newest_checkpoint_is_read_or_the_one_that_is_named(tmp_path):
  state = trained()
  later = state.replace(
    step=state.step + 1, params=jax.tree.map(lambda x: x + 1, state.params)
  )
  saved(state, tmp_path)
  saved(later, tmp_path)
  newest, first = (
    start.from_run(tmp_path, step=i)['params'] for i in (None, 2)
  )
  chex.assert_trees_all_equal(newest, later.params)
  chex.assert_trees_all_equal(first, state.params)


def test_a_start_that_is_not_there_is_named(run, tmp_path):
  named = functools.partial(start.from_run, field='config.pretrained')
  with pytest.raises(
    types.InputError, match=rf'^config\.pretrained={tmp_path} holds no checkp'
  ):
    named(tmp_path)
  with pytest.raises(types.InputError, match='holds no checkpoint'):
    named(tmp_path / 'nowhere')
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(types.InputError, match='holds no checkpoint'):
    named(tmp_path)
  with pytest.raises(types.InputError, match=r'of step 7; it holds \[2\]'):
    named(run, step=7)
  method = supervised.make(Net(), optax.sgd(0.1))
  plain = saved(method.init(jax.random.key(0), BATCH), tmp_path / 'plain')
  with pytest.raises(types.InputError, match='keeps no average'):
    named(plain, which='averaged')
  chex.assert_trees_all_equal(named(plain, which='predicted'), named(plain))


def test_parameters_of_another_network_are_named():
  state, other = fresh(Net(3)), dict(trained(num_classes=4).params)
  other['extra'] = other.pop('norm')
  with pytest.raises(types.InputError) as error:
    start.with_params(state, other, what='config.weights=old.npz')
  for part in (
    'config.weights=old.npz do not fit',
    "missing ['norm/bias', 'norm/scale']",
    "unexpected ['extra/bias', 'extra/scale']",
    'head/kernel (5, 4), not (5, 3)',
  ):
    assert part in str(error.value)


class _Normed(nn.Module):
  """A layer, a norm and a head."""

  num_classes: int

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = nn.Dense(3, name='hidden')(x)
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    return nn.Dense(self.num_classes, name='head')(x)


@pytest.mark.parametrize(
  ('nested', 'ema_decay'), [(False, 0.0), (False, 0.9), (True, 0.0)]
)
def test_a_network_starts_from_another_but_for_its_head(nested, ema_decay):
  batch = {
    'features': np.ones((2, 4), np.float32),
    'label': np.zeros(2, int),
    'group': np.zeros(2, int),
    'mask': np.ones(2, np.float32),
  }
  rows = dict(inputs=model_inputs.features)

  def fresh(num_classes, seed, nested):
    model = _Normed(num_classes)
    method = (
      dann.make(model, optax.sgd(0.1), num_groups=2, weight=1.0, **rows)
      if nested
      else erm.make(model, optax.sgd(0.1), ema_decay=ema_decay, **rows)
    )
    return jax.jit(method.init)(jax.random.key(seed), batch)

  state, other = fresh(2, 0, nested), fresh(5, 1, not nested)
  statistics = jax.tree.map(lambda x: x + 7, other.model_state['batch_stats'])
  found = start.with_network(
    state,
    {'params': other.params, 'batch_stats': statistics, 'more': 1},
  )
  params = found.params['model'] if nested else found.params
  own = state.params['model'] if nested else state.params
  theirs = other.params if nested else other.params['model']
  chex.assert_trees_all_equal(params['head'], own['head'])
  for layer in ('hidden', 'norm'):
    chex.assert_trees_all_equal(params[layer], theirs[layer])
  if nested:
    chex.assert_trees_all_equal(
      found.params['adversary'], state.params['adversary']
    )
  chex.assert_trees_all_equal(found.model_state['batch_stats'], statistics)
  if ema_decay and not nested:  # The average begins where the network does.
    chex.assert_trees_all_equal(
      found.extra.statistics['batch_stats'], statistics
    )
    chex.assert_trees_all_equal(found.extra.params['norm'], params['norm'])
  assert set(found.model_state) == set(state.model_state)
  chex.assert_trees_all_equal_shapes(found, state)
  wrong = jax.tree.map(lambda x: x[..., :1], other.params)
  with pytest.raises(types.InputError, match='The pretrained one'):
    start.with_network(state, {'params': wrong}, what='The pretrained one')
  wrong = jax.tree.map(lambda x: x[..., :1], statistics)
  with pytest.raises(types.InputError, match='The pretrained one'):
    start.with_network(
      state,
      {'params': other.params, 'batch_stats': wrong},
      what='The pretrained one',
    )


def test_what_is_predicted_with_becomes_the_parameters():
  state, method = trained(), method_of(Net(), 0.5)
  found = start.as_predicted(state)
  chex.assert_trees_all_equal(found.params, state.extra.params)
  assert found.extra == ()
  predict = jax.jit(method.predict)
  expected = predict(state, BATCH)['logits']
  np.testing.assert_array_equal(predict(found, BATCH)['logits'], expected)
  # Parameters are what is predicted with now, and so can be adapted.
  doubled = found.replace(params=jax.tree.map(lambda x: 2 * x, found.params))
  assert (predict(doubled, BATCH)['logits'] != expected).any()
  plain = fresh(Net(), ema_decay=0.0)
  assert start.as_predicted(plain) is plain
