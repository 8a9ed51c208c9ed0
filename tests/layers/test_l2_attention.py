"""Attention by distances against loops, and how steep it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import l2_attention

TOKENS, DIM, HEADS = 16, 8, 2


def layer(kind, num_heads=HEADS):
  return l2_attention.SelfAttention(num_heads, kind=kind, norm='none')


@functools.cache
def fresh(kind, num_heads=HEADS):
  return layer(kind, num_heads).init(
    jax.random.key(1), jnp.zeros((1, TOKENS, DIM)), train=False
  )


def tokens(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(TOKENS, DIM)).astype(np.float32)


def weights(kind, x):
  _, seen = layer(kind).apply(
    fresh(kind), x[None], train=False, mutable='intermediates'
  )
  return np.asarray(seen['intermediates']['attention_weights'][0][0])


def projected(kind, name, x):
  kernel = np.asarray(fresh(kind)['params'][name]['kernel']) / np.sqrt(DIM)
  return (x @ kernel).reshape((TOKENS, HEADS, -1)).astype(np.float64)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize('kind', ['l2', 'l2_untied', 'l2_published', 'dot'])
def test_weights_are_those_of_a_loop_over_pairs(kind):
  x = tokens()
  query = projected(kind, 'query', x)
  key = query if kind == 'l2' else projected(kind, 'key', x)
  scores = np.zeros((HEADS, TOKENS, TOKENS))
  for h in range(HEADS):
    for i in range(TOKENS):
      for j in range(TOKENS):
        q, k, other = query[i, h], key[j, h], query[j, h]
        scores[h, i, j] = {
          'dot': q @ k,
          'l2_published': (q**2).mean() - 2 * q @ k + (other**2).mean(),
        }.get(kind, -((q - k) ** 2).sum())
  expected = softmax(scores / np.sqrt(DIM / HEADS))
  np.testing.assert_allclose(weights(kind, x), expected, atol=1e-5)


def test_the_output_is_projected_means_of_values():
  x = tokens()
  out = np.asarray(fresh('l2')['params']['out']['kernel']) / np.sqrt(DIM)
  value = projected('l2', 'value', x)
  mixed = np.einsum('hqk,khd->qhd', weights('l2', x), value)
  made = layer('l2').apply(fresh('l2'), x[None], train=False)[0]
  np.testing.assert_allclose(
    made, mixed.reshape((TOKENS, DIM)) @ out, atol=1e-5
  )


def test_a_token_looks_at_itself_where_keys_are_tied():
  x = 3 * tokens()
  diagonal = np.arange(TOKENS)[None]
  assert (weights('l2', x).argmax(-1) == diagonal).all()
  # The sign of the public code sends it to the farthest.
  assert (weights('l2_published', x).argmax(-1) == diagonal).mean() < 0.3


@functools.cache
def _slope(kind):
  """Function of tokens: the largest singular value of the Jacobian."""

  def apply(x):
    variables = fresh(kind, 1)
    return layer(kind, 1).apply(variables, x[None], train=False)[0].ravel()

  return jax.jit(jax.jacrev(apply))


def steepness(kind, scale):
  """Over three draws, with one token at 0 as where the proof fails for dots."""
  found = []
  for seed in range(3):
    x = scale * tokens(seed)
    x[0] = 0
    jacobian = np.asarray(_slope(kind)(x)).reshape((TOKENS * DIM, -1))
    found.append(np.linalg.svd(jacobian, compute_uv=False)[0])
  return max(found)


def test_tied_distances_are_lipschitz_and_products_are_not():
  params = fresh('l2', 1)['params']
  value, out = (
    np.linalg.norm(np.asarray(params[x]['kernel']) / np.sqrt(DIM), 2)
    for x in ('value', 'out')
  )
  scales = (1.0, 3.0, 10.0, 30.0, 100.0)
  tied = {s: steepness('l2', s) for s in scales}
  dot = {s: steepness('dot', s) for s in scales}
  assert max(tied.values()) <= 5 * value * out
  assert dot[10.0] >= 20 * tied[10.0]
  # It grows with the square of the tokens, until softmax saturates.
  assert dot[30.0] > 2 * dot[10.0] > 4 * dot[3.0]
  assert steepness('l2_untied', 10.0) > 5 * tied[10.0]


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(types.InputError, match='multiple of num_heads'):
    layer('l2', 3).init(jax.random.key(0), tokens()[None], train=False)
  with pytest.raises(types.InputError, match='attention must be one of'):
    layer('cosine').init(jax.random.key(0), tokens()[None], train=False)
