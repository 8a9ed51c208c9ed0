"""A step of the paper's refinements has their shapes and settings."""

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


def test_the_paper_s_body_has_stochastic_depth():
  rates = {'paper': 0.1, 'small': 0.0, 'gpu': 0.0, 'smoke': 0.0}
  assert set(recipe.PRESETS) == set(rates)
  for preset, rate in rates.items():
    config = recipe.get_config(preset)
    assert refined_vits.network(config, 10).drop_path_rate == rate
    assert refined_vits.with_refinement(config, 10).vit.drop_path_rate == rate
  for remat in (False, True):
    config.model.remat = remat
    made = refined_vits.with_refinement(config, 10)
    assert made.remat == made.vit.remat == remat


def test_stochastic_depth_is_of_training_steps():
  config = recipe.get_config('paper')
  config.model.update(
    patch_size=2, hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=3
  )
  config.refinement.order = 'together'  # The first block is never left out.
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(8, 4, 4, 1)).astype(np.float32),
    'label': np.arange(8) % 3,
    'mask': np.ones(8, np.float32),
  }
  losses = []
  for rate in (0.0, 0.9):
    config.model.drop_path_rate = rate
    method = refined_vits.refinement(config, 3, 6)
    state = method.init(jax.random.key(0), batch)
    update = jax.jit(method.update)
    losses.append(
      [
        float(update(state, batch, jax.random.key(i))[1]['loss'][0])
        for i in range(3)
      ]
    )
  assert np.ptp(losses[0]) == 0
  assert np.ptp(losses[1]) > 1e-3
