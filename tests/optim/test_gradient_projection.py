"""GPM against brute force, in a whole training step, and over many tasks."""

import functools

from flax import serialization
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import loop
from repjax import optim
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.layers import layer_inputs
from repjax.methods import supervised
from repjax.models import mlp


def draw(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def low_rank(seed, size, samples, decay=0.6):
  """Inputs whose singular values fall."""
  scale = decay ** np.arange(min(size, samples))
  left, right = (
    draw(seed, size, len(scale)),
    draw(seed + 1, len(scale), samples),
  )
  return (left * scale) @ right


PARAMS = {
  'hidden': {'kernel': jnp.zeros((20, 7)), 'bias': jnp.zeros(7)},
  'wide': {'kernel': jnp.zeros((150, 3))},
  'mix': {'out': {'kernel': jnp.zeros((5, 4, 3))}},
  'norm': {'scale': jnp.ones(7)},
  'head': {'kernel': jnp.zeros((7, 4))},
}
SIZES = {'hidden': 20, 'wide': 150, 'mix/out': 20}


def is_head(path):
  return path[0] == 'head'


def inputs(seed, samples=90):
  return {
    layer: low_rank(seed + 10 * size, size, samples)
    for layer, size in SIZES.items()
  }


def memory(tasks, thresholds=0.97, **settings):
  link = optim.project_gradients(free=is_head)
  state = link.init(PARAMS)
  for task in tasks:
    state = optim.update_bases(state, task, thresholds, **settings)
  return link, state


# Against brute force.


def brute_force(matrices, threshold, strict=False):
  """The rank after each task, by the words of the paper, in float64."""
  basis, ranks = None, []
  for matrix in matrices:
    matrix = matrix.astype(np.float64)
    total = (matrix**2).sum()
    if basis is None:
      vectors, values, _ = np.linalg.svd(matrix)
      count = next(
        k for k in range(99) if (values[:k] ** 2).sum() >= threshold * total
      )
      basis = vectors[:, : count - strict]
    else:
      inside = basis @ basis.T @ matrix
      vectors, values, _ = np.linalg.svd(matrix - inside)
      count = next(
        k
        for k in range(99)
        if (inside**2).sum() + (values[:k] ** 2).sum() >= threshold * total
      )
      basis = np.hstack([basis, vectors[:, :count]])
    ranks.append(basis.shape[1])
  return ranks, basis


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('samples', [15, 90], ids=['few', 'many'])
def test_ranks_and_spans_are_those_of_the_paper(strict, samples):
  tasks = [inputs(seed, samples) for seed in range(3)]
  expected = {
    layer: brute_force([task[layer] for task in tasks], 0.9, strict)
    for layer in SIZES
  }
  for count in (1, 2, 3):
    _, state = memory(tasks[:count], 0.9, first_task_strict=strict)
    ranks = {layer: int(x) for layer, x in state.ranks.items()}
    assert ranks == {layer: expected[layer][0][count - 1] for layer in SIZES}
  for layer, (_, basis) in expected.items():
    found = np.asarray(state.bases[layer])
    np.testing.assert_allclose(found @ found.T, basis @ basis.T, atol=1e-5)
    assert not found[:, ranks[layer] :].any()


def test_updates_are_orthogonal_to_every_basis():
  # 150 inputs: more than one block, and the last one overlaps.
  link, state = memory([{n: draw(1, s, s - 10) for n, s in SIZES.items()}], 1.0)
  assert state.ranks['wide'] == 140
  updates = jax.tree.map(lambda x: jnp.asarray(draw(5, *x.shape)), PARAMS)
  new, _ = jax.jit(link.update)(updates, state)
  for layer, size in SIZES.items():
    path, basis = (*layer.split('/'), 'kernel'), np.asarray(state.bases[layer])
    old, found = (
      np.asarray(trees.flatten(x)[path]).reshape(size, -1)
      for x in (updates, new)
    )
    # In units of the update's norm.
    assert np.abs(basis.T @ found).max() < 1e-6 * np.linalg.norm(old)
    expected = old - basis @ (basis.T @ old)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1
  np.testing.assert_array_equal(
    new['head']['kernel'], updates['head']['kernel']
  )
  # As in the authors' code, what is not projected stops after the first task.
  assert not np.any(new['norm']['scale']) and not np.any(new['hidden']['bias'])


def test_before_the_first_task_ends_nothing_changes():
  link, state = memory([])
  updates = jax.tree.map(lambda x: jnp.asarray(draw(5, *x.shape)), PARAMS)
  new, _ = link.update(updates, state)
  jax.tree.map(np.testing.assert_array_equal, new, updates)


def test_others_move_on_if_asked():
  link = optim.project_gradients(free=is_head, freeze_others=False)
  state = optim.update_bases(link.init(PARAMS), inputs(0), 0.9)
  updates = jax.tree.map(jnp.ones_like, PARAMS)
  new, _ = link.update(updates, state)
  np.testing.assert_array_equal(new['norm']['scale'], np.ones(7))


def test_bases_stay_orthonormal_and_grow_over_ten_tasks():
  link = optim.project_gradients(free=is_head)
  state, before = link.init(PARAMS), dict.fromkeys(SIZES, 0)
  for seed in range(10):
    state = optim.update_bases(state, inputs(seed), 0.95, growth=0.004)
    for layer, size in SIZES.items():
      rank = int(state.ranks[layer])
      assert before[layer] <= rank <= size
      before[layer] = rank
      basis = np.asarray(state.bases[layer], np.float64)
      products = basis.T @ basis
      np.testing.assert_allclose(
        products, np.diag(np.arange(size) < rank), atol=1e-6
      )
      kept = np.square(basis.T @ inputs(seed)[layer]).sum()
      total = np.square(inputs(seed)[layer]).sum()
      assert kept >= (0.95 + 0.004 * seed - 1e-5) * total
  assert before['hidden'] == 20 and before['wide'] < 150
  assert state.num_tasks == 10


@pytest.mark.parametrize('threshold', [0.9, 1.0])
@pytest.mark.parametrize('samples', [15, 90])
def test_the_same_data_twice_adds_nothing(threshold, samples):
  once = memory([inputs(0, samples)], threshold)[1]
  twice = memory([inputs(0, samples)] * 2, threshold)[1]
  assert {n: int(x) for n, x in once.ranks.items()} == {
    n: int(x) for n, x in twice.ranks.items()
  }
  assert 0 < once.ranks['wide'] < 150


# In a network.


class Network(nn.Module):
  """A convolution, a norm and biases."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    del train, mask
    x = nn.Conv(24, (2, 2), strides=2, padding='VALID', name='conv')(image)
    x = nn.LayerNorm(name='norm')(x).mean((1, 2))
    x = nn.relu(nn.Dense(24, name='hidden')(x))
    return nn.Dense(3, name='head')(x)


def batch(seed, rows=4):
  return {
    'image': draw(seed, rows, 4, 4, 8),
    'label': np.arange(rows) % 3,
    'mask': np.ones(rows, np.float32),
  }


def test_old_logits_stay_while_a_new_task_is_learnt():
  # Adam, norms and biases: none of them moves the outputs on old inputs.
  link = optim.project_gradients(biases=True)
  method = supervised.make(Network(), optax.chain(optax.adam(0.02), link))
  update, predict = jax.jit(method.update), jax.jit(method.predict)
  old, new = batch(0), batch(1)
  state = jax.jit(method.init)(jax.random.key(0), old)
  for _ in range(3):
    state, _ = update(state, old, jax.random.key(1))
  captured = layer_inputs.representations(
    Network(), {'params': state.params}, old
  )
  protected = state.replace(
    opt_state=optim.update_bases(state.opt_state, captured, 1.0)
  )
  logits, changes = predict(state, old)['logits'], []
  for start in (protected, state):
    now, losses = start, []
    for _ in range(15):
      now, sums = update(now, new, jax.random.key(1))
      losses.append(float(sums['loss'][0] / sums['loss'][1]))
    assert losses[-1] < 0.9 * losses[0]
    changes.append(np.abs(predict(now, old)['logits'] - logits).max())
    for part in ('kernel', 'bias'):
      move = now.params['hidden'][part] - state.params['hidden'][part]
      assert np.abs(move).max() > 1e-3
  assert changes[0] < 1e-5 < 1e-2 < changes[1]


# In the chain, on devices, in a checkpoint.


@functools.cache
def method():
  tx = optax.chain(
    optim.sam(0.05),
    optax.sgd(0.1, momentum=0.9),
    optim.project_gradients(free=is_head),
  )
  return supervised.make(mlp.Mlp(3, features=(10,)), tx)


def test_new_directions_compile_nothing_and_devices_agree():
  traces = []

  def counted(*args):
    traces.append(1)
    return method().update(*args)

  rows, results = batch(0, rows=8), []
  for devices in (jax.local_devices(), jax.local_devices()[:1]):
    traces.clear()
    step = parallel.train_step(counted, devices)
    state = loop.init(method(), rows, 0, devices)
    for threshold in (0.5, 0.7, 0.9):
      state, _ = step(state, parallel.shard(rows, devices), jax.random.key(1))
      state = jax.device_get(state)
      captured = {'hidden_0': rows['image'].reshape(8, -1).T}
      state = state.replace(
        opt_state=optim.update_bases(state.opt_state, captured, threshold)
      )
      state = parallel.replicate(state, devices)
    state, _ = step(state, parallel.shard(rows, devices), jax.random.key(1))
    assert len(traces) == 1
    results.append(jax.device_get(state))
  many, one = results
  assert 0 < many.opt_state[-1].ranks['hidden_0'] < 8
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    many.params,
    one.params,
  )


def test_bases_come_back_from_a_checkpoint(tmp_path):
  rows = batch(0)
  state = loop.init(method(), rows, 0)
  captured = {'hidden_0': rows['image'].reshape(4, -1).T}
  saved = state.replace(
    opt_state=optim.update_bases(state.opt_state, captured, 0.9)
  )
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  checkpoints.save(saved, {})
  checkpoints.close()
  restored, _ = checkpoint.Checkpoints(str(tmp_path)).restore(state)
  jax.tree.map(
    np.testing.assert_array_equal, restored.opt_state[-1], saved.opt_state[-1]
  )
  assert restored.opt_state[-1].ranks['hidden_0'] > 0


def test_seeds_side_by_side_have_ranks_of_their_own():
  link = optim.project_gradients()
  params = {'layer': {'kernel': jnp.zeros((150, 2))}}
  states = [
    optim.update_bases(link.init(params), {'layer': draw(7, 150, rank)}, 1.0)
    for rank in (3, 140)
  ]
  updates = {'layer': {'kernel': jnp.asarray(draw(8, 2, 150, 2))}}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
  many, _ = jax.vmap(link.update)(updates, stacked)
  for seed, state in enumerate(states):
    alone, _ = link.update(jax.tree.map(lambda x, i=seed: x[i], updates), state)
    np.testing.assert_allclose(
      many['layer']['kernel'][seed], alone['layer']['kernel'], atol=1e-6
    )


def test_the_projection_costs_its_two_products():
  link = optim.project_gradients()
  params = {'layer': {'kernel': jnp.zeros((64, 96))}}
  state = link.init(params)
  compiled = jax.jit(link.update).lower(params, state).compile()
  products = 2 * (2 * 64 * 64 * 96)
  assert abs(compiled.cost_analysis()['flops'] / products - 1) < 0.05


# What goes wrong.


def test_a_full_basis_is_logged_once_and_stops_the_layer(caplog):
  link = optim.project_gradients()
  params = {'layer': {'kernel': jnp.zeros((5, 3))}}
  state = link.init(params)
  with caplog.at_level('WARNING'):
    for seed in range(3):
      state = optim.update_bases(state, {'layer': draw(seed, 5, 9)}, 1.0)
  assert [r.getMessage().count("'layer' is full") for r in caplog.records] == [
    1
  ]
  new, _ = link.update(jax.tree.map(jnp.ones_like, params), state)
  assert np.abs(new['layer']['kernel']).max() < 1e-6


def test_a_layer_without_inputs_is_named():
  _, state = memory([])
  with pytest.raises(types.InputError, match="'wide'"):
    optim.update_bases(
      state, {k: x for k, x in inputs(0).items() if k != 'wide'}, 0.9
    )
  with pytest.raises(types.InputError, match=r"'wide' must be \[150, s\]"):
    optim.update_bases(state, {**inputs(0), 'wide': draw(0, 8, 5)}, 0.9)
  with pytest.raises(types.InputError, match='NaN'):
    optim.update_bases(
      state, {**inputs(0), 'wide': draw(0, 150, 5) * np.nan}, 1
    )


@pytest.mark.parametrize('biases', [False, True])
def test_columns_are_those_of_the_kernel_and_there_is_one(biases):
  """Only a bias that is projected adds the constant input, by itself."""
  params = {'layer': {'kernel': jnp.ones((5, 3)), 'bias': jnp.zeros(3)}}
  state = optim.project_gradients(biases=biases).init(params)
  for shape in [(4, 7), (6, 7), (5, 0), (5,), (5, 7, 1), ()]:
    with pytest.raises(types.InputError, match=r"'layer' must be \[5, s\]"):
      optim.update_bases(state, {'layer': np.ones(shape)}, 0.99)
  state = optim.update_bases(state, {'layer': draw(0, 5, 7)}, 1.0)
  assert int(state.ranks['layer']) == 5 + biases
  # Inputs that are always 0 (dead units) ask for no direction but the constant.
  fresh = optim.project_gradients(biases=biases).init(params)
  dead = optim.update_bases(fresh, {'layer': np.zeros((5, 7))}, 1.0)
  assert int(dead.ranks['layer']) == biases


@pytest.mark.parametrize('biases', [False, True])
def test_which_layers_have_a_bias_is_in_no_checkpoint(biases):
  link = optim.project_gradients(biases=biases)
  arrays = trees.flatten(link.init(PARAMS))
  assert {path[0] for path in arrays} == {'bases', 'ranks', 'num_tasks'}


@pytest.mark.parametrize('threshold', [0.0, -0.1, 1.01])
def test_thresholds_out_of_range_are_refused(threshold):
  with pytest.raises(types.InputError, match=r'in \(0, 1\]'):
    memory([inputs(0)], {**dict.fromkeys(SIZES, 0.9), 'wide': threshold})
  with pytest.raises(types.InputError, match='task 1'):
    memory([inputs(0)] * 2, 0.9, growth=0.2)
  with pytest.raises(types.InputError, match="none for layer 'wide'"):
    memory([inputs(0)], {'hidden': 0.9, 'mix/out': 0.9})


def test_a_state_without_bases_is_refused():
  with pytest.raises(ValueError, match='it has 0'):
    optim.update_bases(optax.sgd(0.1).init(PARAMS), inputs(0), 0.9)


def test_rules_that_match_nothing_are_refused():
  with pytest.raises(ValueError, match='selects no leaf'):
    optim.project_gradients(free=lambda path: path[0] == 'haed').init(PARAMS)
  with pytest.raises(ValueError, match='selects no leaf'):
    optim.project_gradients(project=lambda path: False).init(PARAMS)
  with pytest.raises(ValueError, match='norm/scale'):
    optim.project_gradients(project=lambda p: p[0] == 'norm').init(PARAMS)


def test_a_layer_has_one_kernel_that_is_projected():
  layer = {'layer': {'first': jnp.ones((3, 2)), 'second': jnp.ones((5, 2))}}
  with pytest.raises(ValueError, match=r"'second'.* second in its layer"):
    optim.project_gradients(project=lambda path: True).init(layer)


def test_flax_saves_and_restores_bases():
  tx = optim.project_gradients()
  fresh = tx.init({'layer': {'kernel': jnp.ones((3, 2))}})
  state = optim.update_bases(fresh, {'layer': np.eye(3)[:, :1]}, 1.0)
  back = serialization.from_bytes(fresh, serialization.to_bytes(state))
  assert jax.tree.structure(back) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, back, state)
