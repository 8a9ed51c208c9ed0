"""FAVOR+ against exact attention, its own quadratic form, and in networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax.layers import attention
from repjax.layers import performer
from repjax.layers.attention.linear import random_features
from repjax.methods import supervised
from repjax.models import vit
from repjax.optim import sam
from repjax.types import InputError

DIM = 16


def inputs(length=24, heads=2, scale=0.7, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  shape = (3, batch, length, heads, DIM)
  query, key, value = rng.normal(size=shape).astype(np.float32)
  return scale * query, scale * key, value


def projection(num_features=64, seed=0, dim=DIM):
  return random_features.draw_projection(
    jax.random.key(seed), num_features, dim
  )


@functools.partial(jax.jit, static_argnames=('kernel', 'causal'))
def favor(*arrays, rows=None, **settings):
  """On one projection, compiled."""
  rows = projection() if rows is None else rows
  return performer.favor(*arrays, rows, chunk_size=8, **settings)


def quadratic(query, key, value, rows, *, kernel='positive', sees):
  """The implied attention by its definition, in float64."""
  x, y = (np.float64(a) * query.shape[-1] ** -0.25 for a in (query, key))
  rows = np.float64(rows)
  a, b = (np.einsum('blhd,md->blhm', z, rows) for z in (x, y))
  down = np.exp(-np.square(y).sum(-1, keepdims=True) / 2)
  if kernel == 'positive':
    a, b = np.exp(a), np.exp(b) * down
  elif kernel == 'hyperbolic':
    a = np.exp(np.concatenate([a, -a], -1))
    b = np.exp(np.concatenate([b, -b], -1)) * down
  elif kernel == 'trigonometric':
    a = np.concatenate([np.cos(a), np.sin(a)], -1)
    b = np.concatenate([np.cos(b), np.sin(b)], -1) / down
  else:
    a, b = np.maximum(a, 0) + 1e-3, np.maximum(b, 0) + 1e-3
  weights = np.einsum('bqhm,bkhm->bhqk', a, b) * sees
  norm = weights.sum(-1, keepdims=True)
  weights = weights / np.where(norm == 0, 1, norm)
  return np.einsum('bhqk,bkhv->bqhv', weights, value)


@pytest.mark.parametrize(
  'kernel, causal',
  [
    ('positive', False),
    ('positive', True),
    ('hyperbolic', False),
    ('trigonometric', True),
    (jax.nn.relu, False),
  ],
)
def test_linear_form_is_the_quadratic_one(kernel, causal):
  arrays = inputs()
  mask = np.random.default_rng(3).random((2, 24)) < 0.7
  mask[:, 0] = True
  found = favor(*arrays, kernel=kernel, causal=causal, mask=mask)
  sees = mask[:, None, None]
  if causal:
    sees = sees & np.tril(np.ones((24, 24), bool))
  expected = quadratic(*arrays, projection(), kernel=kernel, sees=sees)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_generalized_kernels_need_no_projection():
  kernel = random_features.elu_plus_one
  query, key, value = inputs()
  run = functools.partial(performer.favor, kernel=kernel, epsilon=0.1)
  found = jax.jit(run)(query, key, value, None)
  a, b = (np.asarray(kernel(DIM**-0.25 * x)) + 0.1 for x in (query, key))
  weights = np.einsum('bqhm,bkhm->bhqk', a, b)
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhqk,bkhv->bqhv', weights, value)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_kernels_of_either_sign_stay_finite():
  kernels = (jnp.cos, jnp.tanh, jax.nn.gelu, jax.nn.sigmoid)

  @jax.jit
  def run(*arrays):
    return [
      performer.favor(*arrays, projection(), kernel=kernel, causal=True)
      for kernel in kernels
    ]

  for found in run(*inputs()):
    assert np.isfinite(found).all()


def test_many_features_are_exact_attention():
  arrays = inputs(length=32, scale=0.4)
  exact = attention.softmax_attention(*arrays)
  scale = np.sqrt(np.square(exact).mean())

  @jax.jit
  def error(rngs):
    def one(rng):
      rows = random_features.draw_projection(rng, 512, DIM)
      return performer.favor(*arrays, rows)

    return jnp.square(jax.vmap(one)(rngs) - exact[None]).mean() ** 0.5

  rngs = jax.random.split(jax.random.key(0), 8)
  assert error(rngs) < 0.08 * scale


def test_later_keys_leave_earlier_outputs_alone_also_far_from_the_origin():
  query, key, value = inputs()
  before = favor(query, key, value, causal=True)
  changed = np.array(key)
  changed[:, 20] *= 6
  after = favor(query, changed, value, causal=True)
  np.testing.assert_array_equal(after[:, :20], before[:, :20])
  assert np.abs(after[:, 20:] - before[:, 20:]).max() > 1e-3
  far = favor(30 * query, -30 * query, value, causal=True)
  assert np.isfinite(far).all()
  np.testing.assert_allclose(far[:, 0], value[:, 0], rtol=1e-4, atol=1e-5)


def test_bfloat16_inputs_are_summed_in_float32():
  half = [jnp.asarray(x, jnp.bfloat16) for x in inputs()]
  found = favor(*half, causal=True)
  assert found.dtype == jnp.bfloat16
  wide = favor(*(np.float32(x) for x in half), causal=True)
  # Nothing but the last rounding: 2^-8 of a value at most.
  np.testing.assert_allclose(np.float32(found), wide, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize('kernel', ['positive', 'hyperbolic', 'trigonometric'])
def test_relative_variance_is_that_of_the_estimate(kernel):
  pair = np.random.default_rng(1).normal(size=(2, DIM)).astype(np.float32)
  pair *= 0.8 * DIM**0.25 / np.linalg.norm(pair, axis=-1, keepdims=True)
  predicted = performer.relative_variance(*pair, num_features=8, kernel=kernel)
  x, y = (v[None, None] * DIM**-0.25 for v in pair)
  feature_map = getattr(random_features, kernel)

  @jax.jit
  @jax.vmap
  def estimate(rng):
    rows = random_features.draw_projection(rng, 8, DIM, kind='iid')
    a, b = feature_map(x, rows), feature_map(y, rows)
    dot = (a.values * b.values).sum()
    return dot * jnp.exp((a.log_scale + b.log_scale).sum())

  found = estimate(jax.random.split(jax.random.key(0), 10000))
  ratio = found.var() / np.exp(2 * (x * y).sum()) / predicted
  assert 0.85 < ratio < 1.15


def test_diagnosis_predicts_the_error():
  diagnose = jax.jit(performer.diagnose)
  for scale in (0.5, 3.0):
    query, key, value = inputs(length=96, scale=scale)
    diagnosis = diagnose(query, key)
    assert diagnosis.median.shape == (2, 2)
    predicted = diagnosis.attended.mean()
    exact = attention.softmax_attention(query, key, value)
    rows = projection(256)
    error = np.square(favor(query, key, value, rows=rows) - exact).mean()
    found = error / np.square(exact).mean()
    if scale == 0.5:
      assert found < 0.1
      assert 0.25 < found / predicted < 4
    else:  # As bad as it can be, and announced.
      assert found > 0.5
      assert predicted > 10


# As an attention_fn.


def layer(**settings):
  settings = dict(num_features=32, chunk_size=8) | settings
  return nn.MultiHeadDotProductAttention(
    num_heads=2, attention_fn=performer.Favor(**settings), qkv_features=32
  )


TOKENS = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(layer().init)(jax.random.key(0), TOKENS)


def test_attention_layer_takes_it_unchanged(variables):
  rows = variables['projection']['favor']['matrix']
  assert rows.shape == (32, DIM)

  def own(query, key, value, **settings):
    del settings
    return performer.favor(query, key, value, rows, causal=True)

  plain = nn.MultiHeadDotProductAttention(
    num_heads=2, attention_fn=own, qkv_features=32
  )
  np.testing.assert_allclose(
    jax.jit(layer(causal=True).apply)(variables, TOKENS),
    jax.jit(plain.apply)({'params': variables['params']}, TOKENS),
    atol=1e-6,
  )


def test_masked_keys_are_gone_in_cross_attention(variables):
  mask = np.arange(12) < 7
  other = np.where(mask[None, :, None], TOKENS, 99.0)
  apply = jax.jit(layer().apply)
  run = functools.partial(apply, variables, TOKENS[:, :5])
  np.testing.assert_array_equal(
    run(other, other, mask=mask[None, None, None]),
    run(TOKENS, TOKENS, mask=mask[None, None, None]),
  )
  assert not np.allclose(run(other, other), run(TOKENS, TOKENS))


def test_implied_weights_are_sown(variables):
  apply = functools.partial(
    layer().apply, sow_weights=True, mutable=['intermediates']
  )
  _, sown = jax.jit(apply)(variables, TOKENS)
  (weights,) = sown['intermediates']['attention_weights']
  assert weights.shape == (2, 2, 12, 12)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-4)


def test_decoding_is_the_causal_form():
  fn = performer.Favor(num_features=32, causal=True, chunk_size=4)

  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, state, *arrays, mode, **settings):
      if mode == 'parallel':
        return fn(*arrays), state
      return getattr(fn, mode)(state, *arrays, **settings)

  arrays = inputs(length=11)
  state = fn.init_state(
    batch_size=2, max_length=99, num_heads=2, head_dim=DIM, value_dim=DIM
  )
  assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))
  model = Decoder()
  init = jax.jit(model.init_with_output, static_argnames='mode')
  apply = jax.jit(model.apply, static_argnames='mode', donate_argnums=1)
  (whole, _), variables = init(
    jax.random.key(0), state, *arrays, mode='parallel'
  )
  # A prompt of 4 with two places of padding, then one token after another.
  found, after = apply(
    variables,
    state,
    *(x[:, :6] for x in arrays),
    mode='prefill',
    mask=np.arange(6) < np.full((2, 1), 4),
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  outputs = [found[:, :4]]
  for t in range(4, 11):
    token = (x[:, t : t + 1] for x in arrays)
    found, after = apply(variables, after, *token, mode='step')
    outputs.append(found)
  np.testing.assert_allclose(
    np.concatenate(outputs, 1), whole, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  'settings, fields, match',
  [
    (dict(mask=np.ones((2, 1, 12, 12), bool)), {}, 'key mask'),
    (dict(mask=np.ones((2, 2, 1, 12), bool)), {}, 'key mask'),
    (dict(mask=np.ones((2, 1, 1, 9), bool)), {}, 'key mask'),
    (dict(bias=np.zeros((2, 12, 12))), {}, 'bias'),
    (dict(dropout_rate=0.1), {}, 'dropout'),
    (dict(key=np.zeros((2, 9, 2, DIM))), {}, 'keys and values'),
    (dict(query=np.zeros((2, 5, 2, DIM))), dict(causal=True), 'as many'),
    (dict(query=np.zeros((2, 12, 2, 4))), {}, 'equal size'),
    ({}, dict(num_features=0), 'num_features'),
    ({}, dict(kernel='softmax'), 'kernel'),
    ({}, dict(projection='none'), 'projection'),
    ({}, dict(projection='raw'), 'projection'),
    ({}, {}, 'linen module'),
  ],
)
def test_what_cannot_be_done_is_said(settings, fields, match):
  class Host(nn.Module):
    fn: performer.Favor

    @nn.compact
    def __call__(self, **arrays):
      return self.fn(**arrays)

  arrays = dict(zip(('query', 'key', 'value'), inputs(12), strict=True))
  with pytest.raises(InputError, match=match):
    fn = performer.Favor(**fields)
    if not settings:
      fn(**arrays)
    Host(fn).init(jax.random.key(0), **(arrays | settings))


def test_projection_of_another_head_size_is_refused():
  with pytest.raises(InputError, match='heads of size 8'):
    performer.favor(*inputs(), projection(dim=8))
  with pytest.raises(InputError, match='segments'):
    performer.favor(*inputs(), projection(), segments=np.zeros((2, 5)))
  with pytest.raises(InputError, match='causal=True'):
    performer.Favor().prefill(None, *inputs())


@pytest.mark.parametrize(
  'other',
  [dict(batch_size=1), dict(num_heads=1), dict(head_dim=8, value_dim=8)],
)
def test_a_decoding_state_of_other_inputs_is_refused(other):
  fn = performer.Favor(num_features=32, causal=True)

  class Host(nn.Module):
    @nn.compact
    def __call__(self, state, *arrays):
      return fn.step(state, *arrays)

  sizes = dict(batch_size=2, num_heads=2, head_dim=DIM, value_dim=DIM)
  state = fn.init_state(max_length=9, **(sizes | other))
  with pytest.raises(InputError, match=r'decoding state is .*init_state'):
    jax.eval_shape(Host().init, jax.random.key(0), state, *inputs(length=1))


@pytest.fixture(scope='module')
def method():
  model = vit.ViT(
    3,
    patch_size=2,
    hidden_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=1,
    attention_fn=performer.Favor(num_features=8, redraw_every=2),
    head_init=nn.initializers.lecun_normal(),
  )
  return supervised.make(
    model, optax.chain(sam(rho=0.05), optax.sgd(0.1)), microbatches=1
  )


@pytest.mark.devices(4)
def test_vit_trains_with_sam_on_equal_projections(method):
  rng = np.random.default_rng(0)
  batch = dict(
    image=rng.normal(size=(8, 4, 4, 1)).astype(np.float32),
    label=rng.integers(3, size=8),
    mask=np.ones(8, np.float32),
  )
  first = jax.device_get(jax.jit(method.init)(jax.random.key(0), batch))
  step = parallel.train_step(method.update)
  state, sharded = parallel.replicate(first), parallel.shard(batch)
  for _ in range(3):
    state, sums = step(state, sharded, jax.random.key(1))
  for leaf in jax.tree.leaves(state):
    replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(replicas) == 4
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])
  assert np.isfinite(float(sums['loss'][0]))
  before, after = (
    jax.device_get(s.model_state)['projection']['block_0']['attention']['favor']
    for s in (first, state)
  )
  # One call a step, although SAM goes through the model twice.
  assert after['calls'] == 3
  assert not np.array_equal(before['matrix'], after['matrix'])


def test_gradients_per_example_sum_to_those_of_a_remade_batch(variables):
  rest = {'projection': variables['projection']}
  settings = dict(num_heads=2, qkv_features=32)
  fn = performer.Favor(num_features=32, causal=True, chunk_size=8)
  cls = nn.MultiHeadDotProductAttention

  def grad(tokens, cls):
    model = cls(attention_fn=fn, **settings)

    def loss(params):
      return jnp.square(model.apply({'params': params, **rest}, tokens)).sum()

    return jax.grad(loss)(variables['params'])

  @jax.jit
  def both_ways(tokens):
    each = jax.vmap(lambda x: grad(x[None], cls))(tokens)
    return grad(tokens, nn.remat(cls)), jax.tree.map(lambda x: x.sum(0), each)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    *both_ways(TOKENS),
  )


def test_a_hopeless_estimate_is_infinitely_bad_and_not_nan():
  query, key, _ = inputs(length=32, scale=10.0)
  assert np.isposinf(performer.diagnose(query, key).attended).all()
