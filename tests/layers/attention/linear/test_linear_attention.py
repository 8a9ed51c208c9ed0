"""Linear attention forms against dense weights in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import causal_attention
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import random_features

BATCH, LENGTH, HEADS, DIM, VALUES = 2, 13, 2, 5, 3


def inputs(length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)

  def draw(width):
    return rng.normal(size=(BATCH, length, HEADS, width)).astype(np.float32)

  return draw(DIM), draw(DIM), draw(VALUES)


def scaled_features(x):
  """Positive features with a scale of their own, like FAVOR+'s."""
  top = x.max(-1, keepdims=True)
  return random_features.Features(jnp.exp(x - top), 3 * top[..., 0])


def plain_features(x):
  return random_features.Features(jnp.abs(x) + 0.1, None)


MAPS = {'scaled': scaled_features, 'plain': plain_features}


def gates(seed=1):
  logits = np.random.default_rng(seed).normal(size=(BATCH, LENGTH, HEADS)) + 1
  gate = 1 / (1 + np.exp(-logits))
  return gate, dict(
    log_weight=np.log(1 - gate).astype(np.float32),
    log_decay=np.log(gate).astype(np.float32),
  )


def dense(query, key, value, kind, *, sees, gate=None):
  """Sums over keys by the definition, one pair at a time."""
  query, key, value = (x.astype(np.float64) for x in (query, key, value))
  if kind == 'scaled':
    # exp(q - max) . exp(k - max) exp(3 max): the queries' scale cancels.
    q = np.exp(query - query.max(-1, keepdims=True))
    k = np.exp(key + 2 * key.max(-1, keepdims=True))
  else:
    q, k = np.abs(query) + 0.1, np.abs(key) + 0.1
  output = np.zeros((*query.shape[:3], value.shape[-1]))
  for b, t, h in np.ndindex(*query.shape[:3]):
    total, norm = 0.0, 0.0
    for s in range(key.shape[1]):
      if not sees(b, t, s):
        continue
      weight = q[b, t, h] @ k[b, s, h]
      if gate is not None:
        weight *= (1 - gate[b, s, h]) * np.prod(gate[b, s + 1 : t + 1, h])
      total = total + weight * value[b, s, h]
      norm = norm + weight
    output[b, t, h] = total / norm if norm > 0 else 0.0
  return output


def maps(kind):
  return dict(query_map=MAPS[kind], key_map=MAPS[kind])


def output(totals):
  return attention_sums.divide(totals, floor=1e-30)


@functools.partial(
  jax.jit, static_argnames=('kind', 'chunk_size', 'group_size')
)
def causal(kind, *arrays, chunk_size=4, group_size=None, **settings):
  totals, _ = causal_attention.causal(
    *arrays,
    **maps(kind),
    chunk_size=chunk_size,
    group_size=group_size,
    **settings,
  )
  return output(totals)


# From one chunk to the next; two groups, of which the last is filled up with a
# chunk; all four at once.
_each_form = pytest.mark.parametrize('group_size', [1, 3, 4])


@functools.partial(jax.jit, static_argnames=('kind', 'chunk_size'))
def bidirectional(kind, query, key, value, *, mask=None, chunk_size=4):
  state = linear_attention.summarize(
    key, value, key_map=MAPS[kind], mask=mask, chunk_size=chunk_size
  )
  totals = linear_attention.read(
    query, state, query_map=MAPS[kind], chunk_size=chunk_size
  )
  return output(totals)


MASK = np.random.default_rng(2).random((BATCH, LENGTH)) < 0.7
MASK[0, :2] = False
SEGMENTS = np.array([[0] * 3 + [1] * 6 + [2] * 4, [5] * 1 + [3] * 12])


@pytest.mark.parametrize(
  'kind, case, chunk_size',
  [
    ('plain', 'mask', 4),
    ('scaled', 'plain', 100),
    ('scaled', 'segments', 4),
    ('scaled', 'gate', 4),
    ('plain', 'segments', 4),
    ('scaled', 'all', 4),
  ],
)
@_each_form
def test_causal_form_is_the_sum_over_earlier_keys(
  kind, case, chunk_size, group_size
):
  arrays = inputs()
  mask = MASK if case in ('mask', 'all') else None
  segments = SEGMENTS if case in ('segments', 'all') else None
  gate, logs = gates() if case in ('gate', 'all') else (None, {})
  if case == 'all':  # What is masked does not decay, either.
    gate = np.where(MASK[..., None], gate, 1.0)

  def sees(b, t, s):
    same = segments is None or segments[b, t] == segments[b, s]
    return s <= t and same and (mask is None or mask[b, s])

  expected = dense(*arrays, kind, sees=sees, gate=gate)
  found = causal(
    kind,
    *arrays,
    **logs,
    mask=mask,
    segments=segments,
    chunk_size=chunk_size,
    group_size=group_size,
  )
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
  'kind, mask', [('plain', None), ('scaled', MASK)], ids=['plain', 'mask']
)
def test_bidirectional_and_cross_forms_are_the_sum_over_keys(kind, mask):
  _, key, value = inputs()
  query, _, _ = inputs(length=7, seed=3)
  found = bidirectional(kind, query, key, value, mask=mask)
  expected = dense(
    query,
    key,
    value,
    kind,
    sees=lambda b, t, s: mask is None or mask[b, s],
  )
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_segmented_form_sees_its_own_segment_on_both_sides():
  arrays = inputs()
  run = functools.partial(
    causal_attention.segmented, **maps('scaled'), chunk_size=4
  )
  totals = jax.jit(run)(*arrays, segments=SEGMENTS, mask=MASK)
  expected = dense(
    *arrays,
    'scaled',
    sees=lambda b, t, s: SEGMENTS[b, t] == SEGMENTS[b, s] and MASK[b, s],
  )
  np.testing.assert_allclose(output(totals), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('group_size', [1, 3])
def test_a_sequence_in_parts_is_the_sequence(group_size):
  arrays, (gate, logs) = inputs(), gates()

  @jax.jit
  def run(state, arrays, logs):
    totals, state = causal_attention.causal(
      *arrays,
      **logs,
      **maps('scaled'),
      chunk_size=2,
      group_size=group_size,
      state=state,
    )
    return output(totals), state

  state = attention_sums.empty_state((BATCH,), HEADS, DIM, VALUES)
  outputs = []
  for part in (slice(0, 6), slice(6, 12)):
    before = state
    here = jax.tree.map(lambda x, part=part: x[:, part], (arrays, logs))
    found, state = run(state, *here)
    outputs.append(found)
  whole = dense(*arrays, 'scaled', sees=lambda b, t, s: s <= t, gate=gate)
  np.testing.assert_allclose(
    np.concatenate(outputs, 1), whole[:, :12], rtol=2e-5, atol=1e-5
  )
  # No gradient flows into what came before.
  slopes = jax.jit(jax.grad(lambda state: run(state, *here)[0].sum()))(before)
  assert all((leaf == 0).all() for leaf in slopes)


@_each_form
def test_gradients_are_those_of_the_dense_form(group_size):
  gate_logits = jnp.asarray(
    np.random.default_rng(4).normal(size=(BATCH, LENGTH, HEADS))
  )
  arrays = tuple(map(jnp.asarray, inputs()))

  def linear(query, key, value, logits):
    totals, _ = causal_attention.causal(
      query,
      key,
      value,
      **maps('scaled'),
      log_weight=jax.nn.log_sigmoid(-logits),
      log_decay=jax.nn.log_sigmoid(logits),
      mask=MASK,
      chunk_size=4,
      group_size=group_size,
    )
    return output(totals)

  def quadratic(query, key, value, logits):
    logits = jnp.where(MASK[..., None], logits, 100.0)
    fade = jnp.cumsum(jax.nn.log_sigmoid(logits), 1)
    logs = (
      jax.nn.log_sigmoid(-logits)[:, None] - fade[:, None] + fade[:, :, None]
    )
    q = jnp.exp(query)
    k = jnp.exp(key + 2 * key.max(-1, keepdims=True))
    weights = jnp.einsum('bthm,bshm->btsh', q, k) * jnp.exp(logs)
    seen = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)) & MASK[:, None]
    weights = jnp.where(seen[..., None], weights, 0)
    norm = weights.sum(2)
    norm = jnp.where(norm > 0, norm, 1)
    return jnp.einsum('btsh,bshv->bthv', weights, value) / norm[..., None]

  @jax.jit
  def gradients(*args):
    return [
      jax.grad(lambda *args, fn=fn: jnp.sin(fn(*args)).sum(), (0, 1, 2, 3))(
        *args
      )
      for fn in (linear, quadratic)
    ]

  for ours, theirs in zip(*gradients(*arrays, gate_logits), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
  ('chunk_size', 'group_size'), [(4, 1), (100, 1), (4, 3), (2, 7)]
)
def test_no_later_key_changes_an_output(chunk_size, group_size):
  query, key, value = inputs()
  run = functools.partial(
    causal, 'scaled', query, chunk_size=chunk_size, group_size=group_size
  )
  before = run(key, value)
  for factor in (6.0, 1e4):
    changed = np.array(key)
    changed[:, 9] *= factor
    other = np.array(value)
    other[:, 9] += 1.0
    after = run(changed, other)
    np.testing.assert_array_equal(after[:, :9], before[:, :9])
    assert np.isfinite(after).all()
    assert not np.array_equal(after[:, 9:], before[:, 9:])


@pytest.mark.parametrize('group_size', [1, 3])
def test_masked_keys_may_hold_anything_also_for_gradients(group_size):
  query, key, value = inputs()
  dirty = [np.where(MASK[..., None, None], x, np.nan) for x in (key, value)]

  def loss(key, value):
    left = causal('scaled', query, key, value, mask=MASK, group_size=group_size)
    both = bidirectional('scaled', query, key, value, mask=MASK)
    return (jnp.cos(left) + jnp.cos(both)).sum()

  grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
  clean = [np.where(MASK[..., None, None], x, 0.0) for x in (key, value)]
  jax.tree.map(np.testing.assert_array_equal, grad(*dirty), grad(*clean))


@pytest.mark.parametrize('group_size', [1, 3])
def test_extreme_keys_never_give_nan_or_zero(group_size):
  run = functools.partial(causal, 'scaled', group_size=group_size)
  # Each key's largest feature is 1 in its own scale, so one key that is there
  # alone always counts.
  query, key, value = inputs()
  for factor in (-300.0, 300.0):
    first = run(query, factor * key, value)[:, 0]
    np.testing.assert_allclose(first, value[:, 0], rtol=1e-5)
  # Each key is nothing beside the ones before it.
  falling = key - np.linspace(0, 1e4, LENGTH, dtype=np.float32)[:, None, None]
  found = run(query, falling, value)
  np.testing.assert_allclose(
    found, np.broadcast_to(value[:, :1], value.shape), rtol=1e-5
  )
  # And each is everything.
  np.testing.assert_allclose(
    run(query, 2 * key - falling, value), value, rtol=1e-5
  )


def test_memory_never_holds_a_state_or_features_per_position():
  length, num_features, width = 512, 64, 32
  x = jnp.ones((1, length, 1, width))
  matrix = jnp.ones((num_features, width))
  feature_map = functools.partial(random_features.positive, projection=matrix)

  def loss(x):
    totals, _ = causal_attention.causal(
      x, x, x, query_map=feature_map, key_map=feature_map, chunk_size=64
    )
    return output(totals).sum()

  def sizes(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (v.aval.size for v in eqn.outvars)
      inner = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
      )
      for jaxpr in inner:
        jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
        if hasattr(jaxpr, 'eqns'):
          yield from sizes(jaxpr)

  largest = max(sizes(jax.make_jaxpr(jax.grad(loss))(x).jaxpr))
  # Inputs, or one state a chunk; features would be length * num_features.
  assert largest <= length * width


def test_a_group_is_computed_without_a_loop():
  arrays = inputs(length=64)

  def loops(group_size):
    lowered = causal.lower('scaled', *arrays, group_size=group_size)
    return lowered.as_text().count('stablehlo.while')

  assert loops(16) == 0  # 16 chunks of 4.
  assert loops(4) == loops(1) == 1


@pytest.mark.parametrize('kind', ['plain', 'scaled'])
def test_all_chunks_at_once_are_as_exact_as_one_after_the_other(kind):
  # Far from the beginning, too, where sums are of thousands of keys.
  arrays = inputs(length=3000)
  one, all_of = (
    causal(kind, *arrays, chunk_size=8, group_size=x) for x in (1, 375)
  )
  query, key, value = arrays
  exact = dense(query[:, -1:], key, value, kind, sees=lambda b, t, s: True)
  np.testing.assert_allclose(all_of[:, -1:], exact, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(all_of, one, rtol=1e-3, atol=1e-5)


def test_work_and_memory_grow_as_the_length():
  def cost(length):
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    made = causal.lower(
      'scaled', x, x, x, chunk_size=16, group_size=length // 16
    ).compile()
    return (
      made.cost_analysis()['flops'],
      made.memory_analysis().temp_size_in_bytes,
    )

  for long, short in zip(cost(4096), cost(1024), strict=True):
    assert long / short < 4.2


@pytest.mark.parametrize('group_size', [1, 16])
def test_inputs_in_bfloat16_cost_no_more_than_their_rounding(group_size):
  arrays = inputs(length=64)
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  found = causal('scaled', *rounded, group_size=group_size)
  exact = causal('scaled', *(x.astype(jnp.float32) for x in rounded))
  # Sums are float32 whatever the inputs are.
  np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    found, causal('scaled', *arrays), atol=2**-5 * np.abs(arrays[2]).max()
  )


def test_groups_are_as_large_as_memory_allows(monkeypatch):
  size = functools.partial(
    attention_sums.group_size, chunk_size=256, num_features=256, value_dim=64
  )
  assert size(64, rows=12) == 1  # On CPUs.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  # A chunk of a row takes 4 * (256 * (2 * 256 + 256) + 3 * 256 * 64) bytes.
  each = 4 * (256 * 768 + 3 * 256 * 64)
  for num_chunks, rows in ((64, 12), (256, 12), (256, 200), (7, 10**6)):
    found = size(num_chunks, rows=rows)
    most = max(1, attention_sums.GROUP_BYTES // (each * rows))
    assert 1 <= found <= most
    groups = -(-num_chunks // found)
    # With fewer groups they would be too large.
    assert groups == 1 or num_chunks / (groups - 1) > most


def test_vmap_over_examples_is_the_batch():
  arrays = inputs()
  run = functools.partial(causal, 'scaled')
  whole = run(*arrays)
  np.testing.assert_allclose(jax.vmap(run)(*arrays), whole, atol=1e-6)


def test_attention_matrix_is_the_weights():
  query, key, value = inputs()

  attend = functools.partial(bidirectional, 'scaled')
  weights = linear_attention.attention_matrix(attend, query, key)
  assert weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(
    np.einsum('bhqk,bkhv->bqhv', weights, value),
    attend(query, key, value),
    atol=1e-5,
  )


def test_segments_with_a_state_are_refused():
  state = attention_sums.empty_state((BATCH,), HEADS, DIM, VALUES)
  with pytest.raises(ValueError, match='segments'):
    causal_attention.causal(*inputs(), segments=SEGMENTS, state=state)
