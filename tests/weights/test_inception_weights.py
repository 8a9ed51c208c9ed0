"""Weights of the Inception of FID are read by name, or refused by name."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax import types
from repjax.weights import inception_weights
from repjax.weights import torch_layout


def arrays():
  """A file's arrays, each of one number of its own, and cheap to make."""
  leaves = torch_layout.flatten(inception_weights.shapes())
  made = {}
  for i, (name, leaf) in enumerate(sorted(leaves.items())):
    shape = leaf.shape
    if len(shape) == 4:
      shape = (shape[3], shape[2], *shape[:2])
    made[inception_weights.stored_name(name)] = np.broadcast_to(
      np.float32(i), shape
    ).copy()
  return made


def test_sizes_are_those_of_the_published_network():
  leaves = torch_layout.flatten(inception_weights.shapes())
  learnt = [
    leaf.size
    for name, leaf in leaves.items()
    if not name.endswith(('/mean', '/var'))
  ]
  # 27,161,264 of torchvision's, less its second head and its classifier.
  assert sum(learnt) == 27_161_264 - 3_326_696 - 2_049_000
  assert leaves['Mixed_6b/branch7x7_2/conv/kernel'].shape == (1, 7, 128, 128)
  assert leaves['Mixed_7c/branch3x3_2b/conv/kernel'].shape == (3, 1, 384, 384)


def test_files_of_both_kinds_are_read_by_name(tmp_path):
  stored = arrays()
  # [out, in, height, width] is turned: rows of a kernel tell.
  name = 'Conv2d_1a_3x3.conv.weight'
  stored[name] = np.arange(32 * 3 * 9, dtype=np.float32).reshape(32, 3, 3, 3)
  more = {
    'fc.weight': np.zeros((1008, 2048), np.float32),
    'AuxLogits.fc.bias': np.zeros(3, np.float32),
    'Mixed_5b.branch1x1.bn.num_batches_tracked': np.zeros((), np.int64),
  }
  paths = tmp_path / 'it.safetensors', tmp_path / 'it.npz'
  safetensors.numpy.save_file({**stored, **more}, paths[0])
  np.savez(paths[1], **stored)
  first, second = (inception_weights.load(x) for x in paths)
  kernel = first['Conv2d_1a_3x3']['conv']['kernel']
  np.testing.assert_array_equal(kernel[1, 2, 0], stored[name][:, 0, 1, 2])
  assert (
    first['Mixed_7c']['branch_pool']['bn']['mean'][0]
    == (stored['Mixed_7c.branch_pool.bn.running_mean'][0])
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_network_of_imagenet_is_not_that_of_the_fid(tmp_path):
  classes = np.zeros((1000, 2048), np.float32)
  np.savez(tmp_path / 'it.npz', **arrays(), **{'fc.weight': classes})
  with pytest.raises(
    types.InputError, match=r'1000 classes, .* of the FID 1008'
  ):
    inception_weights.load(tmp_path / 'it.npz')


@pytest.mark.parametrize('kind', ['missing', 'left over', 'shape', 'damaged'])
def test_a_file_that_does_not_fit_is_refused_by_name(kind, tmp_path):
  stored, path = arrays(), tmp_path / 'it.npz'
  name = 'Mixed_6e.branch7x7dbl_4.bn.running_var'
  if kind == 'missing':
    del stored[name]
  elif kind == 'left over':
    name = 'Mixed_8a.conv.weight'
    stored[name] = np.zeros(2, np.float32)
  elif kind == 'shape':
    stored[name] = np.zeros(7, np.float32)
  np.savez(path, **stored)
  if kind == 'damaged':
    path.write_bytes(path.read_bytes()[:1000])
    name = 'it.npz'
  with pytest.raises(types.InputError, match=name):
    inception_weights.load(path)


def test_a_home_is_a_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  np.savez(tmp_path / 'it.npz', **arrays())
  inception_weights.load('~/it.npz')
