"""One row moves a sum by no more than the clip norm in bfloat16, too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax import types
from repjax.privacy import clipping

pytestmark = pytest.mark.versions

ROWS = 1024
CLIP_NORM = 0.1
HALF = jnp.bfloat16


class Net(nn.Module):
  """Layers of all kinds that have a rule, one table tied."""

  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(12, 8, dtype=self.dtype, name='embed')
    dense = nn.remat(nn.Dense) if self.remat else nn.Dense
    x = dense(8, dtype=self.dtype, name='mix')(embed(tokens))
    x = nn.Conv(8, (3,), dtype=self.dtype, name='conv')(jnp.sin(x))
    x = nn.LayerNorm(dtype=self.dtype, name='norm')(x)
    return embed.attend(jnp.sin(x))


def case(model=None, change=lambda params: params):
  """(loss_fn, params, rows that are all alike, so that gradients add up)."""
  model = model or Net()
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, 12, (1, 6)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, 'f4'), shapes
  )

  def loss_fn(params, batch, rng):
    del rng
    logits = model.apply({'params': change(params)}, batch)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    ahead = batch[:, 1:, None]
    return -jnp.take_along_axis(log_probs[:, :-1], ahead, 2).mean((1, 2))

  return loss_fn, params, jnp.repeat(tokens, ROWS, 0)


def cast(params):
  return trees.cast(params, HALF)


def cast_there_and_back(params):
  return trees.cast(cast(params), jnp.float32)


def cast_and_turned(params):
  mix = {**params['mix'], 'kernel': params['mix']['kernel'].T.astype(HALF).T}
  return cast({**params, 'mix': mix})


CASES = {
  'parameters are cast': lambda: case(change=cast),
  'layers cast': lambda: case(Net(dtype=HALF)),
  'cast there and back': lambda: case(change=cast_there_and_back),
  'cast and turned': lambda: case(change=cast_and_turned),
}


def movement(loss_fn, params, batch, **settings):
  """What one row more moves the sum by, over the clip norm."""
  clip = clipping.clipped_gradient(loss_fn, CLIP_NORM, **settings)
  run = jax.jit(lambda mask: clip(params, batch, None, mask).grads)
  sizes = []
  for number in (ROWS - 1, ROWS - 300):
    masks = [(jnp.arange(ROWS) < n) * 1.0 for n in (number, number + 1)]
    few, more = map(run, masks)
    gap = jax.tree.leaves(jax.tree.map(lambda a, b: b - a, few, more))
    sizes.append(np.sqrt(sum(np.square(np.asarray(x)).sum() for x in gap)))
  return max(sizes) / CLIP_NORM


@pytest.mark.parametrize('style', ['flat', 'per_layer'])
@pytest.mark.parametrize('name', CASES)
def test_one_row_moves_the_sum_by_the_clip_norm(name, style):
  found = movement(*CASES[name](), method='ghost', style=style)
  assert 0.9 < found <= 1.005


def test_auto_holds_the_clip_norm():
  assert movement(*CASES['layers cast']()) <= 1.005


@pytest.mark.parametrize('name', CASES)
def test_sums_are_those_of_single_rows(name):
  loss_fn, params, batch = CASES[name]()
  rng = np.random.default_rng(1)
  batch = jnp.asarray(rng.integers(0, 12, batch[:8].shape))
  ghost, vmap = (
    jax.jit(clipping.clipped_gradient(loss_fn, 0.1, method=method))(
      params, batch
    )
    for method in ('ghost', 'vmap')
  )
  np.testing.assert_allclose(ghost.norms, vmap.norms, rtol=0.02)
  gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), ghost.grads, vmap.grads)
  size = max(np.abs(x).max() for x in jax.tree.leaves(vmap.grads))
  assert max(jax.tree.leaves(gap)) < 0.02 * size


def test_what_cannot_be_summed_in_float32_is_left_to_vmap_or_refused():
  loss_fn, params, batch = case(Net(remat=True), cast)
  batch = batch[:4]
  with pytest.raises(types.InputError, match=r'bfloat16.*no remat'):
    clipping.clipped_gradient(loss_fn, 0.1, method='ghost')(params, batch)
  auto, vmap = (
    jax.jit(clipping.clipped_gradient(loss_fn, 0.1, method=method))(
      params, batch
    )
    for method in ('auto', 'vmap')
  )
  jax.tree.map(np.testing.assert_array_equal, auto.grads, vmap.grads)


@pytest.mark.parametrize('method', ['auto', 'ghost', 'vmap', 'microbatch'])
def test_half_parameters_are_refused(method):
  loss_fn, params, batch = case()
  clip = clipping.clipped_gradient(loss_fn, 0.1, method=method)
  with pytest.raises(types.InputError, match='keep them in float32'):
    clip(cast(params), batch)
