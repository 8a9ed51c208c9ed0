"""GPM against a restatement of the authors' PyTorch code.

What is restated from sahagobinda/GPM (main_pmnist.py and main_cifar100.py):
inputs of linear layers as columns; all patches of a convolution as columns,
channels first; one direction fewer than eq. 5 asks for after the first task;
eq. 9 from the second on; no columns beyond the number of inputs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg
from sklearn import datasets

from repjax import optim
from repjax.layers import layer_inputs

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')


def crops(task, rows, size):
  """Random crops of a photograph, [rows, size, size, 3] in [-1, 1]."""
  photo = datasets.load_sample_images().images[task % 2] / 127.5 - 1
  rng = np.random.default_rng(task)
  tops = rng.integers(0, photo.shape[0] - size, rows)
  lefts = rng.integers(0, photo.shape[1] - size, rows)
  found = [
    photo[y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True)
  ]
  return np.stack(found).astype(np.float32)


class Memory:
  """The bases of the authors' code, in float64."""

  def __init__(self):
    self.bases = None

  def update(self, matrices, thresholds):
    matrices = [torch.tensor(np.asarray(m)).double() for m in matrices]
    if self.bases is None:
      self.bases = [
        self.first(m, eps) for m, eps in zip(matrices, thresholds, strict=True)
      ]
    else:
      self.bases = [
        self.later(m, eps, basis)
        for m, eps, basis in zip(matrices, thresholds, self.bases, strict=True)
      ]

  def first(self, matrix, threshold):
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    share = torch.cumsum(values**2, 0) / (values**2).sum()
    return vectors[:, : int((share < threshold).sum())]

  def later(self, matrix, threshold, basis):
    total = float((matrix**2).sum())
    rest = matrix - basis @ (basis.T @ matrix)
    vectors, values, _ = torch.linalg.svd(rest, full_matrices=False)
    covered = 1 - float((values**2).sum()) / total
    count = 0
    while covered < threshold and count < len(values):
      covered += float(values[count] ** 2) / total
      count += 1
    joined = torch.cat([basis, vectors[:, :count]], 1)
    return joined[:, : len(matrix)]


def compare(state, memory, reorder):
  """Same numbers of directions and same spans, layer by layer."""
  for layer, basis in zip(reorder, memory.bases, strict=True):
    rank = int(state.ranks[layer])
    assert rank == basis.shape[1] > 0
    ours = np.asarray(state.bases[layer], np.float64)[:, :rank]
    theirs = basis.numpy()[reorder[layer]]
    assert linalg.subspace_angles(ours, theirs).max() < 1e-3
  return [basis.shape[1] for basis in memory.bases]


class Mlp(nn.Module):
  """784-100-100-10 without biases, as for permuted MNIST."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    del train, mask
    x = image.reshape(len(image), -1)
    x = nn.relu(nn.Dense(100, use_bias=False, name='lin1')(x))
    x = nn.relu(nn.Dense(100, use_bias=False, name='lin2')(x))
    return nn.Dense(10, use_bias=False, name='fc1')(x)


def test_the_mlp_has_the_authors_bases_after_every_task():
  layers, thresholds = ('lin1', 'lin2', 'fc1'), (0.95, 0.99, 0.99)
  model, memory, history = Mlp(), Memory(), []
  params = model.init(jax.random.key(0), jnp.zeros((1, 784)), train=False)
  state = optim.project_gradients().init(params['params'])
  weights = [
    torch.tensor(np.asarray(params['params'][name]['kernel']).T.copy())
    for name in layers
  ]
  for task in range(3):
    order = np.random.default_rng(task).permutation(784)
    image = crops(task, 300, 28)[..., :1].reshape(300, 784)[:, order]
    x, matrices = torch.tensor(image), []
    for weight in weights:
      matrices.append(x.T.numpy())
      x = torch.relu(torch.nn.functional.linear(x, weight))
    captured = layer_inputs.representations(
      model, params, {'image': image, 'mask': np.ones(300)}
    )
    for name, matrix in zip(layers, matrices, strict=True):
      np.testing.assert_allclose(captured[name], matrix, rtol=1e-4, atol=1e-5)
    memory.update(matrices, thresholds)
    state = optim.update_bases(
      state,
      dict(zip(layers, matrices, strict=True)),
      dict(zip(layers, thresholds, strict=True)),
      first_task_strict=True,
    )
    as_is = {name: slice(None) for name in layers}
    history.append(compare(state, memory, as_is))
  assert history[0] < history[1] < history[2]


class Convolutions(nn.Module):
  """The first two convolutions of the authors' network for CIFAR-100."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    del train, mask
    x = nn.Conv(64, (4, 4), padding='VALID', use_bias=False, name='conv1')(
      image
    )
    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
    x = nn.Conv(128, (3, 3), padding='VALID', use_bias=False, name='conv2')(x)
    return x.mean((1, 2))


def test_convolutions_have_the_authors_bases_after_every_task():
  shapes = {'conv1': (4, 4, 3), 'conv2': (3, 3, 64)}
  num_images = {'conv1': 24, 'conv2': 20}
  # Where each of our inputs (height, width, channel) stands in theirs.
  reorder = {
    name: np.arange(h * w * c).reshape(c, h, w).transpose(1, 2, 0).ravel()
    for name, (h, w, c) in shapes.items()
  }
  model, memory, history = Convolutions(), Memory(), []
  params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
  state = optim.project_gradients().init(params['params'])
  weight = np.asarray(params['params']['conv1']['kernel']).transpose(3, 2, 0, 1)
  for task in range(2):
    image = crops(task, 24, 32)
    x = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    inputs = {'conv1': x}
    x = torch.nn.functional.conv2d(x, torch.tensor(weight.copy()))
    inputs['conv2'] = torch.nn.functional.max_pool2d(torch.relu(x), 2)
    matrices = [
      torch.nn.functional.unfold(inputs[name][: num_images[name]], (h, w))
      .permute(1, 0, 2)
      .reshape(h * w * c, -1)
      .numpy()
      for name, (h, w, c) in shapes.items()
    ]
    captured = layer_inputs.representations(
      model, params, {'image': image, 'mask': np.ones(24)}, rows=num_images
    )
    for name, matrix in zip(shapes, matrices, strict=True):
      np.testing.assert_allclose(
        captured[name], matrix[reorder[name]], rtol=1e-4, atol=1e-5
      )
    memory.update(matrices, (0.97 + 0.003 * task,) * 2)
    state = optim.update_bases(
      state, captured, 0.97, growth=0.003, first_task_strict=True
    )
    history.append(compare(state, memory, reorder))
  assert history[0] < history[1]
