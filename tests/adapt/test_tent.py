"""Tent moves scales and biases, towards surer predictions, and forgets exactly.

Oracles are NumPy and the statistics of the batch; the authors' PyTorch code is
in tests/parity.
"""

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import parallel
from repjax import start
from repjax import trees
from repjax import types
from repjax.adapt import norm_layers
from repjax.adapt import tent
from repjax.layers import frozen
from repjax.layers import norms
from repjax.methods import dann
from repjax.methods import supervised
from repjax.models import resnet
from repjax.models import vit
from repjax.protocols import adaptation

NUM_CLASSES = 5


def _batch(rows=8, seed=0, size=8):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.normal(0.3, 2.0, (rows, size, size, 1)).astype(np.float32),
    'label': rng.integers(0, NUM_CLASSES, rows).astype(np.int32),
    'mask': np.ones(rows, np.float32),
  }


def _resnet(norm='batch'):
  return resnet.PreActResNet(NUM_CLASSES, stage_sizes=(1,), width=16, norm=norm)


def _trained(model, steps=3):
  """A method and its state after a few updates: statistics have moved."""
  method = supervised.make(model, optax.sgd(0.05))
  state = loop.init(method, _batch(), 0, jax.local_devices()[:1])
  update = jax.jit(method.update)
  for seed in range(steps):
    state, _ = update(state, _batch(16, seed), jax.random.key(seed))
  return method, state


@pytest.fixture(scope='module')
def net():
  return _trained(_resnet())


def _paths(method, state, select=lambda path: True):
  layers = norm_layers.find(method.predict, state, _batch())
  variables = {**state.model_state, 'params': state.params}
  return norm_layers.affine(variables, layers, select)


def _adapter(method, state, tx=None, **settings):
  return tent.make(
    method.predict, tx or optax.adam(1e-2), _paths(method, state), **settings
  )


def _run(adapter, state, batches):
  stream = jax.tree.map(lambda *x: np.stack(x), *batches)
  return jax.jit(lambda s, x: tent.over(adapter, s, x))(state, stream)


def test_only_scales_and_biases_of_norms_move(net):
  method, state = net
  adapter = _adapter(method, state)
  adapted, _ = _run(adapter, state, [_batch(seed=s) for s in (1, 2)])
  after = adapter.install(state, adapted)
  chex.assert_trees_all_equal(after.model_state, state.model_state)
  moved = {
    '/'.join(path): bool((a != b).any())
    for (path, a), b in zip(
      trees.flatten(after.params).items(),
      jax.tree.leaves(state.params),
      strict=True,
    )
  }
  in_norms = {x for x in moved if 'norm' in x}
  assert {x for x, has in moved.items() if has} == in_norms
  assert len(in_norms) == 2 * 3 and len(moved) > len(in_norms)


@pytest.mark.parametrize('kind', ['batch', 'group', 'layer'])
def test_entropy_falls_on_a_fixed_batch(kind):
  if kind == 'layer':
    model = vit.ViT(
      NUM_CLASSES,
      patch_size=4,
      hidden_dim=16,
      mlp_dim=16,
      num_heads=2,
      num_layers=1,
    )
  else:
    model = _resnet(kind)
  method, state = _trained(model)
  layers = norm_layers.find(method.predict, state, _batch())
  assert {x.kind for x in layers} == {kind}
  adapter = _adapter(method, state, prior=0.0 if kind == 'batch' else None)
  _, outputs = _run(adapter, state, [_batch()] * 6)
  means = np.asarray(outputs['entropy'].mean(-1))
  assert (np.diff(means) < 0).all()


def test_no_weight_of_a_convolution_has_a_gradient(net):
  # Each convolution behind the first norm passes the gradient on, once.
  method, state = net
  adapter = _adapter(method, state)

  def count(fn, *arguments):
    program = str(jax.make_jaxpr(fn)(*arguments))
    return program.count('conv_general_dilated[')

  forward = count(method.predict, state, _batch())
  step = count(adapter.step, state, adapter.init(state), _batch())
  assert (forward, step) == (3, 3 + 2)


def test_outputs_of_an_episode_of_one_step_are_those_of_the_statistics(net):
  method, state = net
  batches = [_batch(seed=s) for s in (1, 2, 3)]
  predict = jax.jit(norm_layers.with_statistics(method.predict, 0.0))
  expected = np.stack([predict(state, b)['logits'] for b in batches])
  episodic = _adapter(method, state, reset_every=1)
  _, outputs = _run(episodic, state, batches)
  np.testing.assert_allclose(outputs['logits'], expected, rtol=1e-5, atol=1e-5)
  _, online = _run(_adapter(method, state), state, batches)
  np.testing.assert_array_equal(online['logits'][0], outputs['logits'][0])
  assert abs(online['logits'][1] - expected[1]).max() > 1e-3


@pytest.mark.parametrize('tx', [optax.adam(1e-2), optax.sgd(0.1, momentum=0.9)])
def test_a_reset_is_bit_for_bit(net, tx):
  method, state = net
  batches = [_batch(seed=s) for s in (1, 2, 1, 2)]
  adapted, outputs = _run(
    _adapter(method, state, tx, reset_every=2), state, batches
  )
  chex.assert_trees_all_equal(
    jax.tree.map(lambda x: x[:2], outputs),
    jax.tree.map(lambda x: x[2:], outputs),
  )
  chex.assert_trees_all_equal(
    adapted,
    _run(_adapter(method, state, tx, reset_every=2), state, batches[:2])[0],
  )
  _, online = _run(_adapter(method, state, tx), state, batches)
  assert abs(online['logits'][2] - outputs['logits'][2]).max() > 1e-4


def test_it_resets_when_entropy_has_fallen(net):
  method, state = net
  batches = [_batch()] * 4
  _, outputs = _run(_adapter(method, state, reset_below=0.999), state, batches)
  # The average starts at 1 and falls at the first batch already.
  for name in ('logits', 'entropy'):
    np.testing.assert_array_equal(outputs[name][1], outputs[name][0])
  adapted, _ = _run(_adapter(method, state, reset_below=0.01), state, batches)
  assert int(adapted.batches) == 4


class _Tiny(nn.Module):
  """Norm and head alone, so that NumPy can do it."""

  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((image.shape[0], -1))[:, :3]
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    return nn.Dense(NUM_CLASSES, name='head')(x)


@pytest.mark.parametrize('prior', [0.0, 6.0])
def test_one_step_is_descent_on_the_entropy_in_numpy(prior):
  method, state = _trained(_Tiny())
  batch = _batch()
  batch['mask'][-2:] = 0
  adapter = tent.make(
    method.predict, optax.sgd(0.5), _paths(method, state), prior=prior
  )
  adapted, outputs = jax.jit(adapter.step)(state, adapter.init(state), batch)
  old = jax.tree.map(np.float64, state.params)
  stats = jax.tree.map(np.float64, state.model_state['batch_stats']['norm'])
  x = np.float64(batch['image'].reshape((8, -1))[:6, :3])
  own = 6 / (6 + prior)
  mean = own * x.mean(0) + (1 - own) * stats['mean']
  var = own * x.var(0) + (1 - own) * stats['var']

  def forward(scale, bias):
    normal = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    logits = normal @ old['head']['kernel'] + old['head']['bias']
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return logits, -(p * np.log(p)).sum(-1)

  at = {name: old['norm'][name] for name in ('scale', 'bias')}
  logits, entropies = forward(**at)
  np.testing.assert_allclose(
    outputs['logits'][:6], logits, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(outputs['entropy'][:6], entropies, rtol=1e-4)
  for name in at:
    for i in range(3):
      step = 1e-6 * np.eye(3)[i]
      high, low = (
        forward(**{**at, name: at[name] + s * step})[1].mean() for s in (1, -1)
      )
      moved = adapted.leaves[f'params/norm/{name}'][i] - at[name][i]
      np.testing.assert_allclose(
        moved, -0.5 * (high - low) / 2e-6, rtol=2e-3, atol=1e-6
      )


def test_padding_counts_for_nothing(net):
  method, state = net
  sgd = optax.sgd(0.3, momentum=0.9)
  adapter = _adapter(method, state, sgd, steps=2, when='after')
  step = jax.jit(adapter.step)
  dirty = _batch()
  dirty['mask'][5:] = 0
  clean = {k: x.copy() for k, x in dirty.items()}
  dirty['image'][5:] = np.nan
  clean['image'][5:] = 0
  found = step(state, adapter.init(state), dirty)
  chex.assert_trees_all_equal(found, step(state, adapter.init(state), clean))
  short = {k: x[:5] for k, x in clean.items()}
  alone = step(state, adapter.init(state), short)
  chex.assert_trees_all_close(found[0], alone[0], rtol=2e-4, atol=1e-5)
  # A batch of padding alone changes nothing, not even by momentum.
  clean['mask'][:] = 0
  still, _ = step(state, found[0], clean)
  chex.assert_trees_all_equal(still.leaves, found[0].leaves)
  chex.assert_trees_all_equal(still.opt_state, found[0].opt_state)


def test_dropout_stays_off():
  method, state = _trained(_Tiny())
  other = supervised.make(_Tiny(dropout_rate=0.5), optax.sgd(0.05))
  outputs = [
    _run(_adapter(m, state), state, [_batch(seed=1), _batch(seed=2)])[1]
    for m in (method, other)
  ]
  chex.assert_trees_all_equal(*outputs)


def test_the_statistics_between_the_batch_and_the_trained_ones(net):
  method, state = net
  batch = _batch()
  at = {
    prior: jax.jit(norm_layers.with_statistics(method.predict, prior))(
      state, batch
    )['logits']
    for prior in (0.0, 8.0, 1e9)
  }
  source = jax.jit(method.predict)(state, batch)['logits']
  np.testing.assert_allclose(at[1e9], source, rtol=1e-4, atol=1e-4)
  assert abs(at[0.0] - source).max() > 1e-2
  assert abs(at[8.0] - source).max() > 1e-2
  assert abs(at[8.0] - at[0.0]).max() > 1e-2


def test_only_sure_rows_count_and_the_sure_ones_more(net):
  method, state = net
  _, outputs = _run(_adapter(method, state), state, [_batch()])
  entropies = np.sort(np.asarray(outputs['entropy'][0]))
  share = float((entropies[3] + entropies[4]) / 2 / np.log(NUM_CLASSES))
  adapter = _adapter(method, state, optax.sgd(1.0), confidence=share)
  adapted, outputs = _run(adapter, state, [_batch()])
  limit = share * np.log(NUM_CLASSES)
  expected = np.where(
    outputs['entropy'] < limit, np.exp(limit - outputs['entropy']), 0
  )
  np.testing.assert_allclose(outputs['weight'], expected, rtol=1e-4)
  assert (expected > 0).sum() == 4
  # None is as sure as that: nothing moves.
  adapter = _adapter(method, state, optax.sgd(1.0), confidence=1e-3)
  adapted, _ = _run(adapter, state, [_batch()])
  chex.assert_trees_all_equal(adapted.leaves, adapter.init(state).leaves)


def test_after_the_update_is_what_the_next_forward_pass_says(net):
  method, state = net
  before = _adapter(method, state)
  after = _adapter(method, state, when='after')
  adapted, first = _run(before, state, [_batch()])
  _, second = _run(before, state, [_batch()] * 2)
  same, outputs = _run(after, state, [_batch()])
  chex.assert_trees_all_close(same.leaves, adapted.leaves, rtol=1e-6)
  np.testing.assert_allclose(
    outputs['logits'][0], second['logits'][1], rtol=1e-4, atol=1e-5
  )
  assert abs(outputs['logits'] - first['logits']).max() > 1e-3


@pytest.mark.devices(4)
def test_one_device_equals_four(net):
  method, state = net
  adapter = _adapter(method, state, optax.sgd(0.3), when='after')
  batch = _batch(16)
  batch['mask'][9:] = 0  # One device holds padding alone.

  def predict(state, batch):
    return adapter.step(state, adapter.init(state), batch)[1]

  state = jax.device_get(state)
  found = [
    parallel.predict_step(predict, devices)(
      state, parallel.shard(batch, devices)
    )[0]['logits'][:9]
    for devices in (jax.local_devices()[:1], jax.local_devices()[:4])
  ]
  np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_norms_that_were_frozen_adapt_too():
  model = frozen.train_only(_resnet(), lambda path: path[0] == 'head')
  method, state = _trained(model)
  adapter = _adapter(method, state)
  adapted, _ = _run(adapter, state, [_batch()])
  assert all(name.startswith(types.FROZEN) for name in adapted.leaves)
  after = adapter.install(state, adapted)
  chex.assert_trees_all_equal(after.params, state.params)
  old, new = (
    s.model_state[types.FROZEN]['norm']['scale'] for s in (state, after)
  )
  assert (old != new).all()


def test_a_part_of_the_norms_can_be_chosen(net):
  method, state = net
  paths = _paths(method, state, lambda path: path[0] == 'stage_0')
  assert len(paths) == 4
  assert all(path[1] == 'stage_0' for path in paths)
  with pytest.raises(types.InputError, match='stage_0/block_0/norm_0/bias'):
    _paths(method, state, lambda path: path[0] == 'stage_9')


@pytest.mark.parametrize(
  'settings',
  [
    dict(steps=0),
    dict(prior=-1.0),
    dict(when='between'),
    dict(confidence=0.0),
    dict(confidence=1.5),
    dict(reset_every=-1),
    dict(reset_below=1.0),
  ],
)
def test_settings_out_of_range(net, settings):
  method, state = net
  with pytest.raises(types.InputError, match=next(iter(settings))):
    _adapter(method, state, **settings)


def test_a_batch_of_one_row_has_no_statistics(net):
  method, state = net
  row = _batch(1)
  with pytest.raises(types.InputError, match='larger batches, or a prior > 0'):
    norm_layers.with_statistics(method.predict, 0.0)(state, row)
  jax.eval_shape(norm_layers.with_statistics(method.predict, 1.0), state, row)


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_last_row_alone_is_predicted_as_trained_and_changes_nothing(when):
  method, state = _trained(_Tiny())
  sgd = optax.sgd(0.3, momentum=0.9)
  adapter = _adapter(method, state, sgd, when=when)
  rows = {k: x for k, x in _batch(9).items() if k != 'mask'}
  stream = adaptation.batched(rows, 4)
  assert stream['mask'].sum(1).tolist() == [4, 4, 1]
  batches = [jax.tree.map(lambda x: x[i], stream) for i in range(3)]  # noqa: B023
  before, _ = _run(adapter, state, batches[:2])
  after, outputs = _run(adapter, state, batches)
  chex.assert_trees_all_equal(
    after._replace(batches=0), before._replace(batches=0)
  )
  adapted = adapter.install(state, before)
  predict = jax.jit(method.predict)
  expected = predict(adapted, batches[2])['logits'][0]
  np.testing.assert_allclose(outputs['logits'][2, 0], expected, rtol=1e-5)
  assert not outputs['weight'][2].any() and outputs['weight'][1].all()
  # Not the bias alone, which is what statistics of the row itself leave.
  bias = state.params['head']['bias']
  assert abs(outputs['logits'][2, 0] - bias).max() > 1e-3
  # The same without updates; with a prior the row has a share.
  at = [
    jax.jit(norm_layers.with_statistics(method.predict, prior))(
      state, batches[2]
    )
    for prior in (0.0, 1.0)
  ]
  source = predict(state, batches[2])['logits'][0]
  np.testing.assert_allclose(at[0]['logits'][0], source, rtol=1e-5)
  assert abs(at[1]['logits'][0] - source).max() > 1e-3


def test_a_row_of_many_positions_has_statistics_alone(net):
  method, state = net
  batch = _batch()
  batch['mask'][1:] = 0
  adapter = _adapter(method, state)
  adapted, outputs = jax.jit(adapter.step)(state, adapter.init(state), batch)
  source = jax.jit(method.predict)(state, batch)['logits'][0]
  assert abs(outputs['logits'][0] - source).max() > 1e-2
  for name, leaf in adapter.init(state).leaves.items():
    assert (leaf != adapted.leaves[name]).any()


class _Flax(nn.Module):
  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((image.shape[0], -1))
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    return nn.Dense(NUM_CLASSES, name='head')(x)


class _Bare(nn.Module):
  @nn.compact
  def __call__(self, image, *, train, mask=None):
    return nn.Dense(NUM_CLASSES, name='head')(image.reshape((len(image), -1)))


@pytest.mark.parametrize(
  ('model', 'says'),
  [
    (_Flax(), "flax's BatchNorm"),
    (_Bare(), 'no batch norm.*none'),
    (_resnet('group'), 'no batch norm.*group'),
  ],
)
def test_networks_whose_statistics_cannot_be_taken(model, says):
  method, state = _trained(model, steps=0)
  with pytest.raises(types.InputError, match=says):
    norm_layers.with_statistics(method.predict, 0.0)(state, _batch())


def test_a_network_without_norms_cannot_adapt():
  method, state = _trained(_Bare(), steps=0)
  with pytest.raises(types.InputError, match='no norm with a scale or bias'):
    _paths(method, state)


def test_a_state_that_predicts_with_averages_is_put_in_place_first():
  method = supervised.make(_resnet(), optax.sgd(0.05), ema_decay=0.9)
  state = loop.init(method, _batch(), 0, jax.local_devices()[:1])
  adapter = _adapter(method, state)
  with pytest.raises(types.InputError, match='as_predicted'):
    adapter.init(state)
  placed = start.as_predicted(state)
  adapted, _ = jax.jit(adapter.step)(placed, adapter.init(placed), _batch())
  moved = [
    abs(x - adapter.init(placed).leaves[k]).max()
    for k, x in adapted.leaves.items()
  ]
  assert max(moved) > 0


def test_methods_that_train_more_than_the_network_have_norms_too(net):
  rows = {**_batch(), 'group': np.arange(8) % 2}
  method = dann.make(_resnet(), optax.sgd(0.05), num_groups=2, weight=1.0)
  state = loop.init(method, rows, 0, jax.local_devices()[:1])
  found = _paths(method, state)
  plain = _paths(*net)
  assert {(x[0], *x[2:]) for x in found} == set(plain)
  assert {x[1] for x in found} == {'model'}
  adapter = _adapter(method, state)
  adapted, _ = _run(adapter, state, [_batch()] * 2)
  after = adapter.install(state, adapted)
  moved = {
    path
    for path, x in trees.flatten({'params': after.params}).items()
    if (x != trees.flatten({'params': state.params})[path]).any()
  }
  assert moved == set(found)


def test_the_average_of_entropies_moves_once_a_batch(net):
  method, state = net
  adapter = _adapter(method, state, optax.sgd(0.0), steps=5)
  adapted, outputs = _run(adapter, state, [_batch(seed=s) for s in (1, 2)])
  expected = 1.0
  for mean in np.asarray(outputs['entropy']).mean(-1) / np.log(NUM_CLASSES):
    expected = 0.9 * expected + 0.1 * mean
  np.testing.assert_allclose(adapted.entropy, expected, rtol=1e-5)
