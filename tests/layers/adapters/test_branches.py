"""Each row of the unified view against its formula in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import adapters
from repjax.layers import attention

pytestmark = pytest.mark.versions

HEADS, WIDTH, LENGTH, SIZE = 2, 6, 5, 3
X = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def draw(model, x=X):
  """Variables with random leaves: no Wup that is 0 hides an error."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )


def run(model, variables, x=X, **settings):
  apply = jax.jit(functools.partial(model.apply, **settings))
  return np.asarray(apply(variables, x))


def relu(x):
  return np.maximum(x, 0)


def bottleneck(x, leaves):
  down, up = leaves['down'], leaves['up']
  hidden = relu(x @ down['kernel'] + down['bias'])
  return np.tensordot(hidden, up['kernel'], 1) + up['bias']


class Net(nn.Module):
  """Two layers in a name of their own."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4, name='second')(nn.Dense(WIDTH, name='first')(x))


@pytest.mark.parametrize(
  'settings',
  [
    dict(mask=np.ones((3, WIDTH, 4), np.float32)),
    dict(mask=jnp.ones((3, WIDTH, 4))),
    dict(feature_group_count=2),
  ],
)
def test_convolutions_that_are_no_one_matrix_are_refused(settings):
  model = adapters.adapt(
    nn.Sequential([nn.Conv(4, (3,), **settings)]),
    {'layers_0': adapters.lora(2)},
  )
  (name,) = settings
  with pytest.raises(types.InputError, match=f'is a Conv with {name}'):
    jax.eval_shape(model.init, jax.random.key(0), X)


@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_bottlenecks_after_and_beside_a_layer(scale):
  model = adapters.adapt(
    Net(),
    {
      'first': adapters.adapter(SIZE),
      'second': adapters.parallel_adapter(SIZE, scale=scale),
    },
  )
  variables = draw(model)
  base, own = variables['base'], variables['params']
  h = X @ base['first']['kernel'] + base['first']['bias']
  h = h + bottleneck(h, own['first']['adapter'])
  name = 'parallel_adapter' if scale == 1 else 'scaled_parallel'
  expected = h @ base['second']['kernel'] + base['second']['bias']
  expected += scale * bottleneck(h, own['second'][name])
  np.testing.assert_allclose(
    run(model, variables), expected, rtol=1e-5, atol=1e-5
  )


def test_a_bottleneck_may_read_a_normalised_output():
  model = adapters.adapt(
    Net(), {'second': adapters.adapter(2, layer_norm=True)}
  )
  variables = draw(model)
  base, own = variables['base'], variables['params']['second']['adapter']
  h = X
  for name in ('first', 'second'):
    h = h @ base[name]['kernel'] + base[name]['bias']
  normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(
    h.var(-1, keepdims=True) + 1e-5
  )
  normed = normed * own['norm']['scale'] + own['norm']['bias']
  np.testing.assert_allclose(
    run(model, variables), h + bottleneck(normed, own), atol=1e-5
  )


def test_lora_adds_a_matrix_of_low_rank():
  model = adapters.adapt(Net(), {'.+': adapters.lora(2, alpha=6.0)})
  variables = draw(model)
  expected = X
  for name in ('first', 'second'):
    base, own = variables['base'][name], variables['params'][name]['lora']
    change = 3.0 * own['down']['kernel'] @ own['up']['kernel']
    expected = expected @ (base['kernel'] + change) + base['bias']
  np.testing.assert_allclose(
    run(model, variables), expected, rtol=1e-5, atol=1e-5
  )


def heads(x, base):
  """Queries, keys and values [B, L, H, D]."""
  return (
    np.einsum('bld,dhe->blhe', x, base[name]['kernel']) + base[name]['bias']
    for name in ('query', 'key', 'value')
  )


def softmax_attention(query, key, value, mask=None):
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(key.shape[-1])
  if mask is not None:
    scores = np.where(mask, scores, -1e30)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqk,bkhd->bqhd', weights, value)


def project(h, base):
  kernel = base['out']['kernel']
  return np.einsum('blhe,hed->bld', h, kernel) + base['out']['bias']


def attend(rules, *, attention_fn=nn.dot_product_attention, mask=None):
  """(output of linen's attention with adapters, its variables)."""
  model = adapters.adapt(
    nn.MultiHeadDotProductAttention(HEADS, attention_fn=attention_fn), rules
  )
  variables = draw(model)
  return run(model, variables, mask=mask), variables


# Row 1 hides the last two keys, as padding; or each query the later keys.
PADDING = np.ones((2, 1, 1, LENGTH), bool)
PADDING[1, ..., 3:] = False
TRIANGLE = np.tril(np.ones((1, 1, LENGTH, LENGTH), bool))


@pytest.mark.parametrize(
  ('attention_fn', 'mask', 'sees'),
  [
    (nn.dot_product_attention, None, np.ones((1, 1, 1, LENGTH), bool)),
    (nn.dot_product_attention, TRIANGLE & PADDING, TRIANGLE & PADDING),
    (attention.Softmax(), PADDING, PADDING),
    (attention.Softmax(causal=True), None, TRIANGLE),
    (attention.Softmax(causal=True), PADDING, TRIANGLE & PADDING),
    (attention.Softmax(causal=True), TRIANGLE & PADDING, TRIANGLE & PADDING),
  ],
)
def test_a_prefix_is_concatenated_and_equals_the_gated_form(
  attention_fn, mask, sees
):
  found, variables = attend(
    {'': adapters.prefix(SIZE)}, attention_fn=attention_fn, mask=mask
  )
  base, own = variables['base'], variables['params']['prefix']
  query, key, value = heads(X, base)
  rows = [np.broadcast_to(own[n], (2, *own[n].shape)) for n in ('key', 'value')]
  wide = np.pad(
    np.broadcast_to(sees, (2, 1, LENGTH, LENGTH)),
    ((0, 0), (0, 0), (0, 0), (SIZE, 0)),
    constant_values=True,
  )
  concatenated = softmax_attention(
    query,
    np.concatenate([rows[0], key], 1),
    np.concatenate([rows[1], value], 1),
    wide,
  )
  np.testing.assert_allclose(found, project(concatenated, base), atol=2e-5)

  # Table 1 of the paper: (1 - gate) h + gate dh, in parallel.
  share = adapters.gate(
    jnp.asarray(query), jnp.asarray(key), own['key'], mask=sees
  )
  share = np.asarray(share)[..., None]
  h = softmax_attention(query, key, value, sees)
  dh = softmax_attention(query, *rows)
  gated = (1 - share) * h + share * dh
  np.testing.assert_allclose(gated, concatenated, rtol=0, atol=1e-6)


def test_zero_keys_take_their_share():
  """Why no prefix starts at the base network."""
  query = np.zeros((1, 2, 1, 4), np.float32)
  share = adapters.gate(query, np.ones((1, 6, 1, 4)), np.zeros((2, 1, 4)))
  np.testing.assert_allclose(share, 2 / 8, rtol=1e-6)


def test_a_reparametrized_prefix_is_made_by_its_network():
  made = adapters.Reparametrization(4, 5)
  found, variables = attend({'': adapters.prefix(SIZE, reparametrization=made)})
  base, own = variables['base'], variables['params']
  shared = own['reparametrization_0']
  hidden = np.tanh(
    shared['embedding'] @ shared['hidden']['kernel'] + shared['hidden']['bias']
  )
  rows = [
    np.tensordot(hidden, own['prefix'][n]['kernel'], 1)
    + own['prefix'][n]['bias']
    for n in ('key', 'value')
  ]
  rows = [np.broadcast_to(row, (2, *row.shape)) for row in rows]
  query, key, value = heads(X, base)
  h = softmax_attention(
    query,
    np.concatenate([rows[0], key], 1),
    np.concatenate([rows[1], value], 1),
  )
  np.testing.assert_allclose(found, project(h, base), atol=2e-5)


def test_bottlenecks_of_heads_come_before_the_output_projection():
  found, variables = attend(
    {
      '()': adapters.parallel_attention(SIZE),
      '': adapters.multi_head_parallel(2),
    }
  )
  base, own = variables['base'], variables['params']
  query, key, value = heads(X, base)
  h = softmax_attention(query, key, value)
  h = h + bottleneck(X, own['parallel_attention'])
  per_head = own['multi_head_parallel']
  scores = relu(np.einsum('bqhd,lhd->bqhl', query, per_head['key']))
  h = h + np.einsum('bqhl,lhd->bqhd', scores, per_head['value'])
  np.testing.assert_allclose(found, project(h, base), atol=3e-5)


def test_heads_together_have_as_many_weights_as_one_bottleneck():
  sizes = {}
  for name, make in (
    ('parallel_attention', adapters.parallel_attention),
    ('multi_head_parallel', adapters.multi_head_parallel),
  ):
    _, variables = attend({'': make(4)})
    leaves = jax.tree.leaves_with_path(variables['params'])
    sizes[name] = sum(x.size for p, x in leaves if 'bias' not in str(p))
  assert sizes == dict.fromkeys(sizes, 2 * 4 * WIDTH)


class Head(nn.Module):
  """Says whether it trains, and drops nothing itself."""

  @nn.compact
  def __call__(self, x, *, train):
    del train
    return nn.Dense(4, name='dense')(x)


def test_dropout_applies_where_the_caller_trains():
  # One input of value 1 and one output: dh is 0 or twice what it was.
  model = adapters.adapt(Head(), {'dense': adapters.lora(1, dropout_rate=0.5)})
  x = np.ones((64, 1), np.float32)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), x
  )
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
  rngs = {'dropout': jax.random.key(1)}
  for settings in (dict(train=True), dict(train=False, rngs=rngs)):
    np.testing.assert_array_equal(run(model, variables, x, **settings), 3.0)
  dropped = run(model, variables, x, train=True, rngs=rngs)
  assert set(np.unique(dropped)) == {2.0, 4.0}
  assert 16 < (dropped[:, 0] == 2).sum() < 48


def test_dropout_of_bottlenecks_applies_where_the_caller_trains():
  rule = {'dense': adapters.parallel_adapter(1, dropout_rate=0.5)}
  model = adapters.adapt(Head(), rule)
  x = np.ones((64, 1), np.float32)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), x
  )
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
  rngs = {'dropout': jax.random.key(1)}
  still = run(model, variables, x, train=False, rngs=rngs)
  assert len(np.unique(still)) == 1
  moved = run(model, variables, x, train=True, rngs=rngs)
  assert len(np.unique(moved)) == 2


def test_the_table_has_a_row_for_every_maker():
  made = [
    adapters.lora(1),
    adapters.adapter(1),
    adapters.parallel_adapter(1),
    adapters.parallel_adapter(1, scale=2.0),
    adapters.parallel_attention(1),
    adapters.multi_head_parallel(1),
    adapters.prefix(1),
  ]
  assert {adapter.name for adapter in made} == set(adapters.DESIGNS)
  # No two methods are the same design.
  assert len({adapter.design for adapter in made}) == len(made)
