"""CLIP's files: buffers are left out, and grids follow the image size."""

import functools

import jax
import numpy as np
import safetensors.numpy
import small_networks

from repjax.layers.positions import grid_positions
from repjax.weights import clip_weights


def shapes(side):
  init = functools.partial(small_networks.CLIP.init, train=False)
  image = np.zeros((1, side, side, 3), np.float32)
  tokens = small_networks.tokens(rows=1)
  return jax.eval_shape(init, jax.random.key(0), image, tokens)['params']


def test_positions_follow_the_size_and_their_numbers_are_left_out(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'model.safetensors'
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes(8)
  )
  clip_weights.save(path, params)
  stored = safetensors.numpy.load_file(path)
  for tower, count in (('text', 20), ('vision', 5)):
    stored[f'{tower}_model.embeddings.position_ids'] = np.arange(count)[None]
  safetensors.numpy.save_file(stored, path)
  found = clip_weights.load(path, shapes(12))['image_tower']
  expected = grid_positions.resize_grid(
    params['image_tower']['positions']['embedding'],
    *((2, 2), (3, 3)),
    num_prefix_tokens=1,
    method='bicubic',
  )
  np.testing.assert_array_equal(found['positions']['embedding'], expected)
