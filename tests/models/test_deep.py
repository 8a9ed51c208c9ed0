"""Blocks as one loop: the numbers and trees of blocks one after another."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit

IMAGE = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 11, (3, 7))
SOURCE = np.random.default_rng(2).integers(0, 11, (3, 5))
MASK = np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])
DEPTH = 3
SMALL = dict(hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=DEPTH)
TEXT = dict(SMALL, vocab_size=11, num_positions=9)


def tiny_vit(**fields):
  return vit.ViT(3, patch_size=4, **(SMALL | fields))


def both(model):
  """One model in both forms."""
  return model.clone(scan_layers=False), model.clone(scan_layers=True)


def draw(model, *inputs, **named):
  """Variables with random leaves, so that none starts as 0 or 1."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False, **named),
    jax.random.key(0),
    *inputs,
  )
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype), shapes
  )


def loops(model, variables, *inputs, **named):
  """Number of loops over DEPTH blocks in the model's forward pass."""
  text = str(
    jax.make_jaxpr(
      lambda variables: model.apply(variables, *inputs, train=False, **named)
    )(variables)
  )
  return text.count(f'length={DEPTH}\n')


MODELS = {
  'ViT': (tiny_vit(), (IMAGE,), {}),
  'ViT, bf16': (tiny_vit(dtype=jnp.bfloat16, pool='average'), (IMAGE,), {}),
  'ViT, drop path': (tiny_vit(drop_path_rate=0.3), (IMAGE,), {}),
  'DecoderLM': (transformer.DecoderLM(**TEXT), (TOKENS,), {}),
  'DecoderLM, rotary, remat': (
    transformer.DecoderLM(**TEXT, position='rotary', remat=True),
    (TOKENS,),
    {},
  ),
  'MaskedLM': (
    text_heads.MaskedLM(**TEXT, norm='post', embedding_norm=True),
    (TOKENS,),
    dict(mask=MASK),
  ),
  'EncoderDecoder': (
    transformer.EncoderDecoder(**TEXT),
    (TOKENS,),
    dict(source=SOURCE, source_mask=SOURCE < 9, mask=MASK),
  ),
}


@pytest.mark.parametrize('name', MODELS)
def test_numbers_and_gradients_are_those_of_blocks_one_after_another(name):
  model, inputs, named = MODELS[name]
  plain, scanned = both(model)
  variables = draw(plain, *inputs, **named)
  assert loops(plain, variables, *inputs, **named) == 0
  assert loops(scanned, variables, *inputs, **named) >= 1

  def run(model):
    def loss(variables):
      outputs = model.apply(variables, *inputs, train=False, **named)
      return jnp.mean(jnp.sin(outputs)), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      variables
    )
    return outputs, grads

  tolerance = 2e-2 if getattr(model, 'dtype', None) is jnp.bfloat16 else 1e-5
  chex.assert_trees_all_close(
    run(scanned), run(plain), rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize('name', ['ViT, drop path', 'EncoderDecoder'])
def test_a_seed_gives_the_same_parameters(name):
  model, inputs, named = MODELS[name]
  plain, scanned = (
    jax.jit(functools.partial(each.init, train=True, **named))(
      jax.random.key(1), *inputs
    )
    for each in both(model)
  )
  chex.assert_trees_all_equal(plain, scanned)
