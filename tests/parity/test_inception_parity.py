"""The Inception of FID against numbers that pytorch-fid computed.

`InceptionV3([3])` of pytorch-fid 0.3.0 was run outside of this repository, with
the blocks of torchvision 0.6.0, on weights and images that NumPy draws here
again; all 2,048 features agreed to 5e-7 of the largest.
"""

import jax
import numpy as np
import pytest

from repjax.models import inception
from repjax.weights import inception_weights
from repjax.weights import torch_layout

pytestmark = pytest.mark.parity

_FEATURES = [
  [1.9727066, 3.0517025, 0.11466139, 0.7409823, 1.4245106, 0.03816274],
  [2.0421743, 3.0105593, 0.17538255, 0.7885346, 1.4040188, 0.03125856],
]
_MEAN, _STD = 2.8956518, 4.063473


def _drawn():
  """Arrays of a file, in the order of their names there."""
  rng, made = np.random.default_rng(0), {}
  leaves = torch_layout.flatten(inception_weights.shapes())
  shapes = {}
  for name, leaf in leaves.items():
    kernel = len(leaf.shape) == 4
    order = (3, 2, 0, 1) if kernel else (0,)
    shapes[inception_weights.stored_name(name)] = tuple(
      leaf.shape[i] for i in order
    )
  for name, shape in sorted(shapes.items()):
    if name.endswith('conv.weight'):
      scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
      x = rng.standard_normal(shape, np.float32) * scale
    elif name.endswith(('bn.weight', 'running_var')):
      x = 0.5 + rng.random(shape, np.float32)
    else:
      x = 0.1 * rng.standard_normal(shape, np.float32)
    made[name] = x.astype(np.float32)
  return made


def test_features_are_those_of_pytorch_fid(tmp_path):
  np.savez(tmp_path / 'inception.npz', **_drawn())
  params = inception_weights.load(tmp_path / 'inception.npz')
  images = np.random.default_rng(1).random((2, 3, 40, 48), np.float32)
  images = 2 * images.transpose(0, 2, 3, 1) - 1
  found = jax.jit(inception.Inception().apply)({'params': params}, images)
  assert found.shape == (2, inception.WIDTH)
  np.testing.assert_allclose(found[:, :6], _FEATURES, rtol=1e-4)
  np.testing.assert_allclose([found.mean(), found.std()], [_MEAN, _STD], 1e-5)
