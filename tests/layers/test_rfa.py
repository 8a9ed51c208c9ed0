"""Random feature attention against its recurrence, one position at a time."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import attention
from repjax.layers import rfa
from repjax.layers.attention.linear import random_features
from repjax.types import InputError

BATCH, LENGTH, HEADS, DIM, ROWS = 2, 13, 2, 8, 16


def inputs(length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  shape = (3, BATCH, length, HEADS, DIM)
  return tuple(rng.normal(size=shape).astype(np.float32))


def projections(num_rows=ROWS, heads=HEADS, seed=0, kind='orthogonal'):
  draw = functools.partial(
    random_features.draw_projection,
    num_features=num_rows,
    dim=DIM,
    kind=kind,
  )
  return jax.vmap(draw)(jax.random.split(jax.random.key(seed), heads))


@functools.partial(
  jax.jit,
  static_argnames=('features', 'causal', 'chunk_size', 'denominator', 'floor'),
)
def run(*arrays, chunk_size=4, **settings):
  return rfa.rfa(*arrays, chunk_size=chunk_size, **settings)


def gate_logits(seed=1):
  shape = (BATCH, LENGTH, HEADS)
  logits = 2 * np.random.default_rng(seed).normal(size=shape) + 1
  return logits.astype(np.float32)


def features(x, rows, kind):
  x = np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
  projected = np.einsum('blhd,hmd->blhm', x, np.float64(rows))
  if kind == 'gaussian':
    both = np.concatenate([np.sin(projected), np.cos(projected)], -1)
  else:
    both = np.maximum(projected, 0)
  return both / rows.shape[1] ** 0.5


def recurrence(query, key, value, rows, *, kind, logits=None, floor=0.01):
  """S_t and z_t as the paper writes them, in float64."""
  phi_q, phi_k = features(query, rows, kind), features(key, rows, kind)
  batch, length, heads, width = phi_q.shape
  total = np.zeros((batch, heads, width, value.shape[-1]))
  norm, weight = np.zeros((batch, heads, width)), np.zeros((batch, heads))
  outputs = []
  for t in range(length):
    keep, add = np.ones((2, batch, heads))
    if logits is not None:
      keep = 1 / (1 + np.exp(-np.clip(np.float64(logits[:, t]), -99, 99)))
      add = 1 - keep
    new = phi_k[:, t] * add[..., None]
    total = (
      total * keep[..., None, None] + new[..., None] * value[:, t, :, None]
    )
    norm = norm * keep[..., None] + new
    weight = weight * keep + add
    above = np.einsum('bhm,bhmv->bhv', phi_q[:, t], total)
    below = np.einsum('bhm,bhm->bh', phi_q[:, t], norm)
    outputs.append(above / np.maximum(below, floor * weight)[..., None])
  return np.stack(outputs, 1)


@pytest.mark.parametrize(
  'kind, gated, chunk_size',
  [
    ('gaussian', False, 4),
    ('gaussian', True, 4),
    ('arccos', True, 4),
  ],
)
def test_parallel_form_is_the_recurrence(kind, gated, chunk_size):
  arrays, rows = inputs(), projections()
  logits = gate_logits() if gated else None
  found = run(
    *arrays,
    rows,
    features=kind,
    causal=True,
    gate_logits=logits,
    chunk_size=chunk_size,
  )
  expected = recurrence(*arrays, rows, kind=kind, logits=logits)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_bidirectional_and_cross_forms_are_the_mean_over_keys():
  kind = 'gaussian'
  (_, key, value), rows = inputs(), projections()
  query = inputs(length=5, seed=2)[0]
  mask = np.random.default_rng(3).random((BATCH, LENGTH)) < 0.7
  found = run(query, key, value, rows, features=kind, mask=mask)
  weights = np.einsum(
    'bqhm,bkhm->bhqk', features(query, rows, kind), features(key, rows, kind)
  )
  weights = weights * mask[:, None, None]
  below = np.maximum(weights.sum(-1), 0.01 * mask.sum(-1)[:, None, None])
  expected = np.einsum('bhqk,bkhv->bqhv', weights / below[..., None], value)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_many_features_are_softmax_attention_of_unit_vectors():
  query, key, value = inputs(length=32)
  # softmax_attention divides by sqrt(D).
  query, key = (
    x / np.linalg.norm(x, axis=-1, keepdims=True) * DIM**0.25
    for x in (query, key)
  )
  exact = attention.softmax_attention(query, key, value)
  size = np.sqrt(np.square(exact).mean())

  @jax.jit
  def error(rngs):
    def one(rng):
      rows = random_features.draw_projection(rng, 512, DIM)
      return rfa.rfa(query, key, value, rows)

    return jnp.square(jax.vmap(one)(rngs) - exact[None]).mean() ** 0.5

  assert error(jax.random.split(jax.random.key(0), 8)) < 0.1 * size


def test_closed_gate_starts_anew_and_open_gate_skips():
  arrays, rows = inputs(), projections()
  logits = np.full((BATCH, LENGTH, HEADS), 3.0, np.float32)
  logits[:, 5] = -1e9
  found = run(*arrays, rows, causal=True, gate_logits=logits)
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found[:, 5], arrays[2][:, 5], rtol=1e-5)
  fresh = recurrence(
    *(x[:, 5:] for x in arrays), rows, kind='gaussian', logits=logits[:, 5:]
  )
  np.testing.assert_allclose(found[:, 5:], fresh, rtol=1e-5, atol=1e-5)
  logits[:, 5] = 1e9
  skipped = run(*arrays, rows, causal=True, gate_logits=logits)
  without = recurrence(
    *(np.delete(x, 5, 1) for x in arrays),
    rows,
    kind='gaussian',
    logits=np.delete(logits, 5, 1),
  )
  np.testing.assert_allclose(
    skipped[:, 6:], without[:, 5:], rtol=1e-5, atol=1e-5
  )


def test_gradients_of_gates_and_rows_are_those_of_the_recurrence():
  arrays, rows = inputs(), projections()
  logits = gate_logits()
  rng = np.random.default_rng(7)
  directions = rng.normal(size=rows.shape), rng.normal(size=logits.shape)

  def loss(rows, logits):
    found = rfa.rfa(
      *arrays, rows, causal=True, gate_logits=logits, chunk_size=4
    )
    return jnp.sin(found).sum()

  def oracle(step):
    moved = [
      np.float64(x) + step * d
      for x, d in zip((rows, logits), directions, strict=True)
    ]
    found = recurrence(*arrays, moved[0], kind='gaussian', logits=moved[1])
    return np.sin(found).sum()

  grads = jax.jit(jax.grad(loss, (0, 1)))(rows, logits)
  found = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
  expected = (oracle(1e-5) - oracle(-1e-5)) / 2e-5
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_denominators_are_bounded_and_the_share_is_sown():
  arrays = inputs(length=64)
  # A bandwidth of 1/6: a kernel too sharp for its features.
  found = run(*arrays, 6 * projections(), floor=0.1)
  assert np.abs(found).max() <= np.abs(arrays[2]).max() / 0.1

  class Host(nn.Module):
    @nn.compact
    def __call__(self):
      return rfa.Rfa(num_features=16, temperature=1 / 6)(*arrays)

  init = functools.partial(Host().init_with_output, mutable=True)
  _, sown = jax.jit(init)(jax.random.key(0))
  (share,) = sown['intermediates']['rfa']['clamped_denominators']
  assert 0.05 < share < 1


def test_first_output_of_the_papers_code_is_not_the_first_value():
  arrays, rows = inputs(), projections(num_rows=64)
  value = arrays[2][:, 0]
  kernel = np.einsum(
    'bhm,bhm->bh',
    features(arrays[0], rows, 'gaussian')[:, 0],
    features(arrays[1], rows, 'gaussian')[:, 0],
  )
  # 64 rows scaled by 0.1: the sum under the fraction is 0.64 of the kernel.
  np.testing.assert_allclose(
    run(*arrays, rows, causal=True, denominator='paper_code')[:, 0],
    0.64 * kernel[..., None] * value,
    rtol=1e-4,
    atol=1e-5,
  )


# As an attention_fn.

TOKENS = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)


def layer(**settings):
  return nn.MultiHeadDotProductAttention(
    num_heads=HEADS,
    attention_fn=rfa.Rfa(num_features=ROWS, chunk_size=4, **settings),
  )


def test_attention_layer_learns_sigma_and_gate():
  model = layer(causal=True, gate='learned')
  variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
  own = variables['params']['rfa']
  assert own['sigma'].shape == (HEADS, DIM)
  assert own['gate_kernel'].shape == (HEADS * DIM, HEADS)
  rows = variables['projection']['rfa']['rows']['matrix']
  assert rows.shape == (HEADS, ROWS, DIM)
  assert not np.array_equal(rows[0], rows[1])

  # sigma scales the rows, the gate comes from keys before they are normalised.
  own = dict(own, sigma=own['sigma'] * 1.5)
  params = {**variables['params'], 'rfa': own}

  def by_hand(query, key, value, **settings):
    del settings
    logits = key.reshape(2, 12, -1) @ own['gate_kernel']
    logits += own['gate_bias'][None, None]
    return rfa.rfa(
      query, key, value, 1.5 * rows, causal=True, gate_logits=logits
    )

  plain = nn.MultiHeadDotProductAttention(num_heads=HEADS, attention_fn=by_hand)

  train = jax.jit(
    lambda state: model.apply(state, TOKENS, mutable=['projection'])
  )
  state, drawn = {**variables, 'params': params}, []
  for _ in range(3):
    found, new = train(state)
    if not drawn:  # The first call uses the rows of init.
      expected = jax.jit(plain.apply)({'params': params}, TOKENS)
      np.testing.assert_allclose(found, expected, atol=1e-5)
    state = {**state, **new}
    drawn.append(state['projection']['rfa']['rows']['matrix'])
  # And every other one its own.
  np.testing.assert_array_equal(drawn[0], rows)
  assert not np.array_equal(drawn[0], drawn[1])
  assert not np.array_equal(drawn[1], drawn[2])


GATED = rfa.Rfa(num_features=ROWS, causal=True, gate='learned', chunk_size=4)


class Decoder(nn.Module):
  @nn.compact
  def __call__(self, state, *arrays, mode, **settings):
    if mode == 'parallel':
      return GATED(*arrays, **settings), state
    return getattr(GATED, mode)(state, *arrays)


@pytest.fixture(scope='module')
def parallel():
  """State before the first token, outputs of the whole, variables."""
  state = GATED.init_state(
    batch_size=BATCH, max_length=0, num_heads=HEADS, head_dim=DIM, value_dim=DIM
  )
  init = functools.partial(Decoder().init_with_output, mode='parallel')
  (whole, _), variables = jax.jit(init)(jax.random.key(0), state, *inputs())
  return state, whole, variables


def test_segments_and_single_steps_are_the_whole_sequence(parallel):
  state, whole, variables = parallel
  arrays = inputs()
  apply = jax.jit(Decoder().apply, static_argnames='mode')
  outputs = []
  for start in (0, 5):
    part = (x[:, start : start + 5] for x in arrays)
    out, state = apply(variables, state, *part, mode='prefill')
    outputs.append(out)
  for t in range(10, LENGTH):
    token = (x[:, t : t + 1] for x in arrays)
    out, state = apply(variables, state, *token, mode='step')
    outputs.append(out)
  np.testing.assert_allclose(
    np.concatenate(outputs, 1), whole, rtol=1e-5, atol=1e-5
  )


def test_padding_may_hold_anything_also_for_the_gates_gradient(parallel):
  state, _, variables = parallel
  query, key, value = inputs()
  mask = np.arange(LENGTH) < 9

  def loss(params, fill):
    dirty = [jnp.where(mask[:, None, None], x, fill) for x in (key, value)]
    out, _ = Decoder().apply(
      {**variables, 'params': params},
      state,
      query,
      *dirty,
      mode='parallel',
      mask=mask[None, None, None],
    )
    return jnp.cos(out).sum()

  grad = jax.jit(jax.value_and_grad(loss))
  dirty = grad(variables['params'], np.float32(np.nan))
  clean = grad(variables['params'], np.float32(0))
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(clean))
  jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_bfloat16_is_rounded_only_at_the_end():
  half, rows = [jnp.asarray(x, jnp.bfloat16) for x in inputs()], projections()
  found = run(*half, rows, causal=True)
  assert found.dtype == jnp.bfloat16
  expected = recurrence(*(np.float32(x) for x in half), rows, kind='gaussian')
  np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
  'fields, match',
  [
    (dict(gate='learned'), 'causal=True'),
    (dict(gate='maybe'), 'gate'),
    (dict(features='relu'), 'features'),
    (dict(denominator='none'), 'denominator'),
    (dict(denominator='paper_code', features='arccos'), 'arccos'),
    (dict(floor=0.0), 'floor'),
    (dict(num_features=0), 'num_features'),
    (dict(temperature=0.0), 'temperature'),
  ],
)
def test_wrong_settings_are_named(fields, match):
  with pytest.raises(InputError, match=match):
    rfa.Rfa(**fields)


def test_wrong_shapes_are_named():
  with pytest.raises(InputError, match='gate_logits'):
    rfa.rfa(
      *inputs(), projections(), causal=True, gate_logits=np.zeros((2, 13))
    )
  with pytest.raises(InputError, match='heads of size 8'):
    rfa.rfa(*(x[..., :4] for x in inputs()), projections())
