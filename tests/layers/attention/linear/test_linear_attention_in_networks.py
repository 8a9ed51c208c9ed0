"""Performer and RFA inside whole networks: devices, types, memory, weights."""

import functools
import itertools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.layers import attention
from repjax.layers import performer
from repjax.layers import rfa
from repjax.methods import supervised
from repjax.models import transformer
from repjax.models import vit

KINDS = pytest.mark.parametrize('kind', ['favor', 'rfa'])


def attention_fn(kind, **fields):
  if kind == 'exact':
    return attention.Softmax(causal=fields.get('causal', False))
  settings = dict(num_features=8, redraw_every=2, chunk_size=3) | fields
  return {'favor': performer.Favor, 'rfa': rfa.Rfa}[kind](**settings)


def tiny_vit(kind, *, dtype=None, dropout_rate=0.0, **fields):
  return vit.ViT(
    3,
    patch_size=2,
    hidden_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=1,
    dropout_rate=dropout_rate,
    attention_fn=attention_fn(kind, **fields),
    head_init=nn.initializers.lecun_normal(),
    dtype=dtype,
  )


def tiny_lm(kind, *, remat=False, **fields):
  return transformer.DecoderLM(
    11,
    hidden_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=1,
    num_positions=9,
    remat=remat,
    kernel_init=nn.initializers.normal(0.5),
    attention_fn=attention_fn(kind, causal=True, **fields),
  )


RNG = np.random.default_rng(0)
BATCH = dict(
  image=RNG.normal(size=(16, 4, 4, 1)).astype(np.float32),
  label=RNG.integers(3, size=16),
  mask=(np.arange(16) < 13).astype(np.float32),
)
BATCH['image'][13:] = np.nan  # Padding.
IMAGE = BATCH['image'][:4]
TOKENS = RNG.integers(0, 11, (2, 7))


def shapes(model, inputs):
  return jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), inputs
  )


def draw(model, inputs, seed=0):
  """Variables with random leaves, without compiling an init."""
  rng = np.random.default_rng(seed)

  def leaf(path, x):
    if path[-1].key == 'calls':
      return np.zeros((), np.int32)
    if path[-1].key == 'key':
      return rng.integers(2**32, size=x.shape, dtype=np.uint32)
    deviation = 1.0 if path[-1].key == 'matrix' else 0.4
    return rng.normal(0, deviation, x.shape).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes(model, inputs))


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train',))
def apply(model, variables, inputs, *, train=False, rngs=None):
  return model.apply(variables, inputs, train=train, rngs=rngs)


def program(model, *, train):
  """What is compiled, as text without addresses of functions."""
  made = jax.make_jaxpr(functools.partial(model.apply, train=train))
  return re.sub('0x[0-9a-f]+', '', str(made(draw(model, IMAGE), IMAGE)))


def matrices(projection):
  """All drawn projections of a model."""
  return [
    np.asarray(leaf)
    for path, leaf in trees.flatten(projection).items()
    if path[-1] == 'matrix'
  ]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def start(kind):
  """(method, first state) of a ViT; plain SGD shows a wrong factor."""
  model, tx = tiny_vit(kind), optax.sgd(0.1)
  variables = draw(model, IMAGE)
  params = variables.pop('params')
  state = types.TrainState(np.int32(0), params, tx.init(()), variables, ())
  return supervised.make(model, tx), state


@pytest.fixture(scope='module', params=['favor', 'rfa'])
def trained(request):
  """(kind, first state, states after 1 to 4 steps) on one device."""
  method, first = start(request.param)
  step = jax.jit(method.update, donate_argnums=0)
  state, states = jax.device_put(first), []
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # Such as 'donated buffers not usable'.
    for _ in range(4):
      before = state
      state, _ = step(before, BATCH, jax.random.key(1))
      assert all(x.is_deleted() for x in jax.tree.leaves(before))
      states.append(jax.tree.map(np.array, state))
  return request.param, first, states


@pytest.mark.devices(4)
def test_one_device_that_donates_is_four_over_steps_and_redraws(trained):
  kind, first, (*_, one) = trained
  method, _ = start(kind)
  step = parallel.train_step(method.update)
  state, batch = parallel.replicate(first), parallel.shard(BATCH)
  for _ in range(4):
    state, _ = step(state, batch, jax.random.key(1))
  for leaf in jax.tree.leaves(state):
    replicas = [np.asarray(x.data) for x in leaf.addressable_shards]
    assert len(replicas) == 4
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])
  four = jax.device_get(state)
  assert_equal(one.model_state, four.model_state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    one.params,
    four.params,
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), one.params, first.params
  )
  assert min(jax.tree.leaves(moved['block_0']['attention']['value'])) > 1e-4


def test_nothing_is_kept_but_what_the_caller_keeps(trained):
  kind, first, states = trained
  model = tiny_vit(kind)
  # Without a mutable collection training stands on the same projection.
  assert program(model, train=True) == program(model, train=False)
  # Neither the variables nor the attention object have changed.
  _, fresh = start(kind)
  assert_equal(first, fresh)
  # Drawn before the third call; the structure stays.
  drawn = [matrices(x.model_state)[0] for x in (first, *states)]
  same = [np.array_equal(a, b) for a, b in itertools.pairwise(drawn)]
  assert same == [True, True, False, True]
  for state in states:
    assert jax.tree.structure(state) == jax.tree.structure(first)

  # Evaluation uses what training has drawn last, and leaves it alone.
  def logits(projection):
    variables = {'params': states[-1].params, **projection}
    return apply(model, variables, IMAGE)

  last = logits(states[-1].model_state)
  assert np.abs(logits(first.model_state) - last).max() > 1e-4
  np.testing.assert_array_equal(logits(states[-1].model_state), last)


@KINDS
def test_bfloat16_is_within_3_percent_of_float32(kind):
  model, half = tiny_vit(kind), tiny_vit(kind, dtype=jnp.bfloat16)
  variables = draw(model, IMAGE)
  exact = apply(model, variables, IMAGE)
  rough = apply(half, variables, IMAGE)
  assert rough.dtype == jnp.float32
  # A rounding is 2^-8 of a number; several add up on the way to the logits.
  error = np.abs(rough - exact).max() / np.abs(exact).max()
  assert 0 < error < 8 * 2**-8
  # Errors of projections turn into factors: they stay wide.
  for path, leaf in trees.flatten(shapes(half, IMAGE)['projection']).items():
    assert leaf.dtype == jnp.float32 or path[-1] != 'matrix'


@KINDS
def test_thousands_of_bfloat16_keys_are_summed(kind):
  # A sum in bfloat16 stops growing at 256 ones.
  length, heads, dim = 2048, 1, 4
  key = jnp.ones((1, length, heads, dim), jnp.bfloat16)
  value = 1 + (jnp.arange(length) % 2)[None, :, None, None].astype(key.dtype)
  rows = RNG.normal(size=(8, dim)).astype(np.float32)
  fn = {'favor': performer.favor, 'rfa': rfa.rfa}[kind]
  found = jax.jit(functools.partial(fn, causal=True))(key, key, value, rows)
  np.testing.assert_allclose(np.float32(found[0, -1, 0]), 1.5, rtol=2**-8)


@KINDS
def test_dropout_of_rate_zero_is_none(kind):
  plain, model = tiny_vit(kind), tiny_vit(kind, dropout_rate=0.5)
  evaluation = program(plain, train=False)
  assert program(plain, train=True) == evaluation
  assert program(model, train=False) == evaluation


def test_dropout_follows_its_key():
  model = tiny_vit('rfa', dropout_rate=0.5)
  variables = draw(model, IMAGE)
  keys = [{'dropout': jax.random.key(seed)} for seed in (0, 0, 1)]
  first, again, other = (
    apply(model, variables, IMAGE, train=True, rngs=rngs) for rngs in keys
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


def test_recomputing_draws_once_a_step_and_changes_no_gradient():
  plain = tiny_lm('rfa', redraw_every=1)
  variables = draw(plain, TOKENS)

  def run(model, around=lambda fn: fn):
    def loss(params, projection):
      logits, new = model.apply(
        {'params': params, 'projection': projection},
        TOKENS,
        train=True,
        mutable=['projection'],
      )
      return jnp.square(logits).mean(), new['projection']

    step = jax.jit(jax.grad(around(loss), has_aux=True))
    found, projection = [], variables['projection']
    for _ in range(3):
      grads, projection = step(variables['params'], projection)
      found.append((grads, projection))
    return found

  expected = run(plain)
  # Blocks that are computed again inside of a pass that is, too.
  found = run(tiny_lm('rfa', redraw_every=1, remat=True), jax.checkpoint)
  for (grads, projection), (grads_0, projection_0) in zip(
    found, expected, strict=True
  ):
    assert_equal(projection, projection_0)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      grads,
      grads_0,
    )
  last = trees.flatten(expected[-1][1])
  assert [int(x) for path, x in last.items() if path[-1] == 'calls'] == [3]
  (second,), (third,) = (matrices(x) for _, x in expected[1:])
  assert not np.array_equal(second, third)


@pytest.mark.parametrize('build', [tiny_vit, tiny_lm])
def test_weights_are_those_of_exact_attention(build):
  inputs = IMAGE if build is tiny_vit else TOKENS

  def params(kind, **fields):
    return trees.flatten(shapes(build(kind, **fields), inputs)['params'])

  exact = params('exact')
  assert params('favor') == exact
  assert params('rfa', sigma='fixed') == exact
  # What RFA learns besides stands apart.
  more = params('rfa')
  assert {k: x for k, x in more.items() if 'rfa' not in k} == exact
  assert len(more) > len(exact)


def test_exact_weights_switched_to_many_features_predict_the_same():
  exact = tiny_vit('exact')
  linear = tiny_vit('favor', num_features=4096)
  params = draw(exact, IMAGE)['params']
  for name in ('query', 'key'):  # Inside the range of the estimate.
    params['block_0']['attention'][name]['kernel'] *= 0.5
  switched = {**draw(linear, IMAGE), 'params': params}
  before = apply(exact, {'params': params}, IMAGE)
  np.testing.assert_allclose(
    apply(linear, switched, IMAGE), before, atol=0.02 * np.abs(before).max()
  )
