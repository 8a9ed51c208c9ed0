"""A step of the paper's refinements has their shapes."""

import jax
import numpy as np

from configs import vit_transfer as recipe
from configs.parts import refined_vits


def test_a_step_of_the_paper_s_refinements():
  config = recipe.get_config('paper')
  method = refined_vits.refinement(config, 1000, 55_000)
  batch = {
    'image': np.zeros((4, 224, 224, 3), np.float32),
    'label': np.zeros(4, np.int32),
    'mask': np.ones(4, np.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  trained = {x.size for x in jax.tree.leaves(state.params)}
  assert 9 * 384**2 in trained and 384 * 1536 not in trained
  whole = {x.size for x in jax.tree.leaves(state)}
  assert {384 * 1536, 384 * 1000} <= whole  # A ViT-S and its head, frozen.
  after, _ = jax.eval_shape(method.update, state, batch, jax.random.key(0))
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  said = jax.eval_shape(method.predict, state, batch)
  # Of each block: the plain token through the head, and the refined ones.
  for name in ('plain', 'refined'):
    assert said[name].shape == (4, config.model.num_layers, 1000)
