"""Ghost norms against Opacus's per-sample gradients on the same weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.privacy import clipping

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
grad_sample = pytest.importorskip('opacus.grad_sample')

ROWS = 6


class Images(nn.Module):
  """Two convolutions and a linear layer."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), strides=2, padding=1, name='0')(x)
    x = nn.Conv(
      6, (3, 3), padding=2, kernel_dilation=2, feature_group_count=2, name='2'
    )(nn.relu(x))
    return nn.Dense(5, name='5')(nn.relu(x).mean((1, 2)))


class Pool(torch.nn.Module):
  """Mean over positions, [B, C, ...] or [B, T, C] -> [B, C]."""

  def __init__(self, axes):
    super().__init__()
    self.axes = axes

  def forward(self, x):
    return x.mean(self.axes)


class Texts(nn.Module):
  """An embedding, a norm and two linear layers."""

  @nn.compact
  def __call__(self, ids):
    x = nn.LayerNorm(epsilon=1e-5, name='1')(nn.Embed(11, 8, name='0')(ids))
    x = nn.relu(nn.Dense(12, name='2')(x))
    return nn.Dense(5, use_bias=False, name='5')(x.mean(1))


def torch_images():
  return torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(8, 6, 3, padding=2, dilation=2, groups=2),
    torch.nn.ReLU(),
    Pool((2, 3)),
    torch.nn.Linear(6, 5),
  )


def torch_texts():
  return torch.nn.Sequential(
    torch.nn.Embedding(11, 8),
    torch.nn.LayerNorm(8),
    torch.nn.Linear(8, 12),
    torch.nn.ReLU(),
    Pool(1),
    torch.nn.Linear(12, 5, bias=False),
  )


def to_linen(model):
  """Parameters by the number of the layer."""
  params = {}
  for name, leaf in model.named_parameters():
    layer, kind = name.split('.')
    value = leaf.detach().numpy()
    module = model[int(layer)]
    if kind == 'weight':
      kind = {
        torch.nn.Embedding: 'embedding',
        torch.nn.LayerNorm: 'scale',
      }.get(type(module), 'kernel')
      if kind == 'kernel':  # [out, in, ...] -> [..., in, out].
        value = np.moveaxis(value, (0, 1), (-1, -2))
    params.setdefault(layer, {})[kind] = jnp.asarray(value)
  return params


def opacus_gradients(model, x, label):
  """Per-sample gradients by parameter, [B, ...]."""
  wrapped = grad_sample.GradSampleModule(model, loss_reduction='sum')
  loss = torch.nn.functional.cross_entropy(
    wrapped(x), torch.tensor(label), reduction='sum'
  )
  loss.backward()
  return {
    name.removeprefix('_module.'): leaf.grad_sample.detach().numpy()
    for name, leaf in wrapped.named_parameters()
  }


def inputs(kind):
  rng = np.random.default_rng(0)
  label = rng.integers(0, 5, ROWS)
  if kind == 'images':
    image = rng.normal(size=(ROWS, 9, 9, 3)).astype(np.float32)
    return image, torch.tensor(image.transpose(0, 3, 1, 2).copy()), label
  ids = rng.integers(0, 4, (ROWS, 7))  # Some words come more than once.
  return ids, torch.tensor(ids), label


@pytest.mark.parametrize(
  'kind, model, make',
  [('images', Images(), torch_images), ('texts', Texts(), torch_texts)],
)
def test_norms_and_clipped_sums_are_those_of_opacus(kind, model, make):
  torch.manual_seed(0)
  theirs = make()
  with torch.no_grad():
    for leaf in theirs.parameters():  # No zeros, which would hide an error.
      leaf.add_(0.1 * torch.randn_like(leaf))
  ours, x, label = inputs(kind)
  params = to_linen(theirs)
  grads = opacus_gradients(theirs, x, label)
  norms = np.sqrt(
    sum(np.square(g).reshape((ROWS, -1)).sum(1) for g in grads.values())
  )
  clip_norm = float(np.median(norms))

  def loss_fn(params, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['x'])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )

  found = jax.jit(
    clipping.clipped_gradient(loss_fn, clip_norm, method='ghost')
  )(params, {'x': jnp.asarray(ours), 'label': jnp.asarray(label)})
  np.testing.assert_allclose(found.norms, norms, rtol=1e-4)
  factors = np.minimum(1, clip_norm / (norms + 1e-6))
  summed = make()
  with torch.no_grad():
    for name, leaf in summed.named_parameters():
      leaf.copy_(torch.tensor(np.einsum('b,b...->...', factors, grads[name])))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()),
    found.grads,
    to_linen(summed),
  )
