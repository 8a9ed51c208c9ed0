"""Rows that cancel out in float32 are clipped all the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.privacy import clipping
from repjax.privacy.ghost import rules

pytestmark = pytest.mark.versions

ROWS = 8
OFFSETS = (0.0, 255.0, 1e4, 1e7)


class Dense(nn.Module):
  """One layer, by the rule that its sizes take."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(32, name='layer')(x)


class Conv(nn.Module):
  """A convolution over positions."""

  @nn.compact
  def __call__(self, x):
    return nn.Conv(32, (3,), padding='VALID', name='layer')(x)


def differences(y):
  """A loss of which nothing is left where all positions are alike."""
  return jnp.abs(y[:, 1::2] - y[:, ::2]).sum((1, 2))


def shifted(length, width, offset):
  """Positions that differ by little beside what they have in common."""
  rng = np.random.default_rng(0)
  x = offset * rng.normal(size=(ROWS, 1, width))
  return (x + rng.normal(size=(ROWS, length, width))).astype('f4')


def movements(model, x, loss=differences):
  """What each row moves the sum by, at a clip norm of 1."""
  params = jax.jit(model.init)(jax.random.key(0), x[:1])['params']

  def loss_fn(params, batch, rng):
    del rng
    return loss(model.apply({'params': params}, batch))

  clip = clipping.clipped_gradient(loss_fn, 1.0, method='ghost')
  run = jax.jit(lambda mask: clip(params, x, None, mask).grads)
  return np.array(
    [
      np.sqrt(sum(np.square(np.asarray(g, 'f8')).sum() for g in leaves))
      for leaves in (jax.tree.leaves(run(mask)) for mask in np.eye(ROWS))
    ]
  )


@pytest.mark.parametrize('offset', OFFSETS)
@pytest.mark.parametrize(
  'model, length, width',
  [(Dense(), 4, 64), (Dense(), 64, 8), (Conv(), 6, 64), (Conv(), 66, 8)],
)
def test_a_common_offset_does_not_hide_a_gradient(model, length, width, offset):
  moved = movements(model, shifted(length, width, offset))
  assert moved.max() <= 1 + 1e-3
  if not offset:  # Nothing cancels out, and nothing is clipped more.
    np.testing.assert_allclose(moved, 1, atol=1e-5)


@pytest.mark.parametrize('scale', [1.0, 1e4, 1e7])
@pytest.mark.parametrize('num_embeddings', [10, 1000])
def test_large_cotangents_of_one_word_that_cancel_out(num_embeddings, scale):
  rng = np.random.default_rng(1)
  g = rng.normal(size=(ROWS, 8, 16))
  g[:, 1::2] = scale * g[:, ::2] * -1 + g[:, 1::2]
  g[:, ::2] *= scale
  g = g.astype('f4')
  ids = np.zeros((ROWS, 8), int)
  embed = nn.Embed(num_embeddings, 16)
  rule = rules.rule(embed, '__call__')
  squared = jax.jit(jax.vmap(lambda ids, g: rule(ids, g)['embedding']))(ids, g)
  true = np.square(np.asarray(g, 'f8').sum(1)).sum(1)
  assert (np.sqrt(true) <= np.sqrt(np.asarray(squared, 'f8')) * 1.001).all()
  if scale == 1:
    np.testing.assert_allclose(squared, true, rtol=2e-5)


def test_a_tied_table_whose_ends_cancel_out():
  rng = np.random.default_rng(2)
  embed = nn.Embed(400, 16)

  @jax.jit
  def squared_norm(ids, g, x, p):
    both = [
      rules.rule(embed, method)(*arrays)['embedding']
      for method, arrays in (('__call__', (ids, g)), ('attend', (x, p)))
    ]
    return sum(both) + 2 * rules.tied(embed, ids, g, x, p)

  for scale in (1e2, 1e4, 1e6):
    ids = np.arange(4)
    g = (scale * rng.normal(size=(4, 16))).astype('f4')
    # The head's gradient is the negative of the embedding's, nearly.
    x = g + rng.normal(size=(4, 16)).astype('f4')
    p = -np.eye(4, 400, dtype='f4')
    squared = squared_norm(ids, g, x, p)
    true = np.square(np.asarray(g, 'f8') - np.asarray(x, 'f8')).sum()
    assert np.sqrt(true) <= 1.001 * np.sqrt(max(float(squared), 0))


def hard_inputs(kind, length, width, rng):
  """[T, P] that float32 sums badly."""
  little = rng.normal(size=(length, width)) * 10 ** rng.uniform(-6, 0)
  if kind == 'shifted':
    return rng.normal(size=(1, width)) + little
  if kind == 'constant':  # Each addition is rounded the same way.
    return rng.uniform(0.1, 10) + little[:, :1] + np.zeros((1, width))
  centres = rng.normal(size=(2, width))
  return centres[np.arange(length) % 2] + little


@pytest.mark.parametrize('kind', ['shifted', 'constant', 'of two kinds'])
@pytest.mark.parametrize(
  'sizes', [(4, 64, 32), (4, 1024, 1024), (2, 4096, 4096), (64, 256, 1024)]
)
def test_norms_are_not_found_too_small(kind, sizes):
  length, width, columns = sizes
  rng = np.random.default_rng(3)
  product = jax.jit(rules._product)
  for g in (
    rng.normal(size=(length, columns)),
    np.where(np.arange(length) % 2, 1, -1)[:, None] * np.ones((1, columns)),
  ):
    x = hard_inputs(kind, length, width, rng).astype('f4')
    g = (g - g.mean(0)).astype('f4')
    found = float(product(x, g))
    x, g = x.astype('f8'), g.astype('f8')
    true = ((x @ x.T) * (g @ g.T)).sum()
    assert np.sqrt(true) <= 1.001 * np.sqrt(found)


@pytest.mark.parametrize('exponent', [-120, -30, 0, 40, 64, 125])
@pytest.mark.parametrize('sizes', [(1, 64, 32), (3, 64, 32), (40, 8, 4)])
def test_factors_may_be_as_small_as_the_other_is_large(sizes, exponent):
  length, width, columns = sizes
  rng = np.random.default_rng(4)
  x = rng.uniform(0.5, 1, (length, width)).astype('f4')
  g = rng.uniform(0.5, 1, (length, columns)).astype('f4')
  product = jax.jit(rules._product)
  usual = float(product(x, g))
  found = float(product(np.ldexp(x, exponent), np.ldexp(g, -exponent)))
  assert found == usual or (not np.isfinite(found) and length > 3)


def test_what_is_not_finite_has_no_norm_and_nothing_has_none():
  rng = np.random.default_rng(5)
  x, g = rng.normal(size=(2, 1, 64)).astype('f4')
  for bad in (np.nan, np.inf):
    broken = np.where(np.arange(64) == 5, bad, x).astype('f4')
    assert not np.isfinite(float(jax.jit(rules._product)(broken, g)))
  assert float(jax.jit(rules._product)(x, 0 * g)) == 0


def test_a_row_in_front_of_a_norm_moves_the_sum_by_the_clip_norm():
  # Cotangents are about 1 / |x|: squared on their own they are nothing.
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
      init = nn.initializers.normal(0.0125)
      x = nn.Dense(256, use_bias=False, kernel_init=init, name='layer')(x)
      x = nn.LayerNorm(use_scale=False, use_bias=False)(x)
      return 0.05 * nn.Dense(2, name='head')(x)

  rng = np.random.default_rng(6)
  x = (1.8e18 * rng.normal(size=(ROWS, 64))).astype('f4')
  moved = movements(Normed(), x, loss=lambda y: y.sum(-1))
  np.testing.assert_allclose(moved, 1, rtol=1e-3)


@pytest.mark.parametrize('num_embeddings', [3, 300])
def test_ids_that_are_no_rows_hide_no_gradient(num_embeddings):
  embed = nn.Embed(num_embeddings, 2)
  ids = jnp.array([-1, -num_embeddings - 1, num_embeddings, 0])
  g = jnp.array([[30.0, 40.0], [-30.0, -40.0], [1.0, 2.0], [0.0, 0.0]])
  found = jax.jit(rules.rule(embed, '__call__'))(ids, g)['embedding']
  np.testing.assert_allclose(found, 2500.0, rtol=1e-4)
