"""Clipped sums of whole language models against gradients of single rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import trees
from repjax.layers import attention
from repjax.layers import performer
from repjax.layers import rfa
from repjax.models import transformer
from repjax.privacy import clipping
from repjax.privacy.ghost import coverage

ROWS, LENGTH = 3, 5
ATTENTION = {
  'softmax': attention.Softmax(causal=True),
  'performer': performer.Favor(
    causal=True, num_features=6, redraw_every=0, chunk_size=2
  ),
  'rfa': rfa.Rfa(
    causal=True, num_features=6, gate='learned', redraw_every=0, chunk_size=2
  ),
}


def make(name, tied):
  """(loss_fn, params, batch) of a decoder of one block."""
  model = transformer.DecoderLM(
    11,
    hidden_dim=8,
    mlp_dim=12,
    num_heads=2,
    num_layers=1,
    num_positions=LENGTH,
    attention_fn=ATTENTION[name],
    tied=tied,
  )
  rng = np.random.default_rng(0)
  # Few kinds of tokens, so that ids repeat.
  tokens = jnp.asarray(rng.integers(0, 4, (ROWS, LENGTH + 1)))
  init = functools.partial(model.init, train=False)
  variables = dict(jax.jit(init)(jax.random.key(0), tokens[:, 1:]))
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, 'f4'),
    variables.pop('params'),
  )

  def loss_fn(params, batch, rng):
    del rng
    logits = model.apply(
      {'params': params, **variables}, batch['tokens'][:, :-1], train=True
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['tokens'][:, 1:]
    ).mean(-1)

  return loss_fn, params, {'tokens': tokens}


@pytest.mark.parametrize(
  'name, tied',
  [
    ('softmax', True),
    pytest.param('performer', True, marks=pytest.mark.dear),
    pytest.param('rfa', False, marks=pytest.mark.dear),
  ],
)
def test_norms_and_sums_are_those_of_single_rows(name, tied):
  loss_fn, params, batch = make(name, tied)
  row = jax.tree.map(lambda x: x[:1], batch)
  found = coverage.find(loss_fn, params, row, None)
  paths = ['/'.join(path) for path in trees.flatten(params)]
  # Dense layers and the embedding have rules, in one backward pass.
  rest = {paths[i] for i in found.leftover}
  words = ('norm', 'position', 'sigma', 'gate', 'rfa')
  assert all(any(word in path for word in words) for path in rest), rest
  assert len(found.covered) > 10
  assert found.outputs

  @jax.jit
  def run(params, batch):
    def one(row):
      row = jax.tree.map(lambda x: x[None], row)
      return jax.grad(lambda p: loss_fn(p, row, None).sum())(params)

    grads = jax.vmap(one)(batch)
    norms = jnp.sqrt(
      sum(
        jnp.square(g).reshape((ROWS, -1)).sum(1) for g in jax.tree.leaves(grads)
      )
    )
    limit = jnp.sort(norms)[1] * 1.01  # One row is clipped.
    clip = clipping.clipped_gradient(loss_fn, limit, method='ghost')
    return clip(params, batch), grads, norms, limit

  ours, grads, norms, limit = jax.device_get(run(params, batch))
  np.testing.assert_allclose(ours.norms, norms, rtol=1e-5)
  factors = np.minimum(1, limit / (norms + 1e-6))
  assert sorted(factors < 1) == [False, False, True]
  gap = size = 0.0
  for a, b in zip(
    jax.tree.leaves(ours.grads), jax.tree.leaves(grads), strict=True
  ):
    expected = np.einsum('b,b...->...', factors, b)
    gap += np.square(a - expected).sum()
    size += np.square(expected).sum()
  assert np.sqrt(gap) <= 1e-5 * np.sqrt(size)
