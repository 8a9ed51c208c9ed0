"""The block: what its config refuses, repeats and tells adapters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import adapters
from repjax.models import block
from repjax.models import transformer
from repjax.types import InputError

CONFIG = block.BlockConfig(mlp_dim=12, num_heads=2)
TOKENS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def changed(**fields):
  return dataclasses.replace(CONFIG, **fields)


def draw(config):
  """Variables with random leaves."""
  rng = np.random.default_rng(1)
  init = functools.partial(block.Block(config).init, train=False)
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype),
    jax.eval_shape(init, jax.random.key(0), TOKENS),
  )


def apply(config, variables, **inputs):
  run = functools.partial(block.Block(config).apply, train=False)
  return jax.jit(run)(variables, TOKENS, **inputs)[0]


def test_a_block_adds_two_branches_to_its_tokens():
  variables = draw(CONFIG)
  params = variables['params']
  for branch in ('attention', 'mlp'):  # Without outputs there are no branches.
    params[branch]['out'] = jax.tree.map(np.zeros_like, params[branch]['out'])
  np.testing.assert_array_equal(apply(CONFIG, variables), TOKENS)


def test_layer_scale_multiplies_the_channels_of_branches():
  config = changed(layer_scale=0.5)
  variables = draw(config)
  plain = jax.tree.map(np.copy, variables)
  for branch in ('attention', 'mlp'):
    scale = plain['params'].pop(f'{branch}_scale')
    for leaf in plain['params'][branch]['out'].values():
      leaf *= scale
  np.testing.assert_allclose(
    apply(config, variables), apply(CONFIG, plain), atol=1e-5
  )


def test_a_bias_of_scores_can_hide_tokens_as_a_mask_does():
  variables = draw(CONFIG)
  mask = np.broadcast_to(np.arange(5) < 3, (2, 5))
  bias = np.broadcast_to(np.where(mask[0], 0, -1e9), (2, 5, 5))
  hidden = apply(CONFIG, variables, bias=bias)
  np.testing.assert_allclose(
    hidden, apply(CONFIG, variables, mask=mask), atol=1e-5
  )
  assert np.abs(hidden - apply(CONFIG, variables)).max() > 1e-2


def test_a_repeated_block_drops_more_and_more_of_its_paths():
  rates = [x.drop_path_rate for x in changed(drop_path_rate=0.3).repeat(4)]
  np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])
  assert CONFIG.repeat(1) == [CONFIG]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(norm='none'), "norm must be one of .* got 'none'"),
    (dict(activation='gelu'), "activation must be one of .* got 'gelu'"),
    (dict(num_heads=3), 'hidden_dim must be a multiple of num_heads'),
  ],
)
def test_bad_fields_are_refused_by_name(fields, message):
  with pytest.raises(InputError, match=message):
    draw(changed(**fields))


def test_adapters_compute_in_the_type_of_the_layer_that_they_change():
  model = transformer.Encoder(
    11,
    hidden_dim=8,
    mlp_dim=12,
    num_heads=2,
    num_layers=1,
    num_positions=5,
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
  )
  adapted = adapters.adapt(
    model, {r'.*/(mlp|block_0)': adapters.parallel_adapter(3)}
  )
  tokens = np.zeros((2, 5), np.int32)
  shapes = jax.eval_shape(
    functools.partial(adapted.init, train=False), jax.random.key(0), tokens
  )
  leaves = jax.tree.leaves(shapes['params'])
  assert leaves and all(x.dtype == jnp.bfloat16 for x in leaves)
