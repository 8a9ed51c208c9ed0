"""One Tent update equals the authors' in PyTorch, on a copied network.

https://github.com/DequanWang/tent, tent.py: batch norms in training mode
without running statistics, everything else frozen, Adam on the mean entropy;
outputs are those of the forward pass before the update.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import loop
from repjax.adapt import norm_layers
from repjax.adapt import tent
from repjax.layers import norms
from repjax.methods import supervised

torch = pytest.importorskip('torch', reason='needs the extra parity')

pytestmark = pytest.mark.parity

NUM_CLASSES = 10


class _Net(nn.Module):
  """Two convolutions, each with a norm, and a head."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image
    for i, width in enumerate((8, 16)):
      x = nn.Conv(
        width,
        (3, 3),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        name=f'conv_{i}',
      )(x)
      x = norms.BatchNorm(name=f'norm_{i}')(x, train=train, mask=mask)
      x = nn.relu(x)
    return nn.Dense(NUM_CLASSES, name='head')(x.mean((1, 2)))


class _Torch(torch.nn.Module):
  def __init__(self, params):
    super().__init__()
    self.convs = torch.nn.ModuleList(
      [torch.nn.Conv2d(*x, 3, padding=1, bias=False) for x in ((3, 8), (8, 16))]
    )
    self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(x) for x in (8, 16)])
    self.head = torch.nn.Linear(16, NUM_CLASSES)
    with torch.no_grad():
      for i in range(2):
        kernel = params[f'conv_{i}']['kernel']
        self.convs[i].weight.copy_(_tensor(np.transpose(kernel, (3, 2, 0, 1))))
        self.norms[i].weight.copy_(_tensor(params[f'norm_{i}']['scale']))
        self.norms[i].bias.copy_(_tensor(params[f'norm_{i}']['bias']))
      self.head.weight.copy_(_tensor(params['head']['kernel'].T))
      self.head.bias.copy_(_tensor(params['head']['bias']))

  def forward(self, x):
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = torch.relu(norm(conv(x)))
    return self.head(x.mean((2, 3)))


def _tensor(x):
  return torch.from_numpy(np.array(x, np.float32))


def _their_steps(net, batches, optimizer):
  """Tent's loop, online: logits of each batch before its update."""
  net.train()
  net.requires_grad_(False)
  for norm in net.norms:
    norm.requires_grad_(True)
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = None
  optimizer = optimizer(net.norms.parameters())
  found = []
  for images in batches:
    logits = net(_tensor(np.transpose(images, (0, 3, 1, 2))))
    (-(logits.softmax(1) * logits.log_softmax(1)).sum(1)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    found.append(logits.detach().numpy())
  return np.stack(found)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    # One step of Adam moves everything by its rate, whatever the gradient is;
    # two tell gradients apart, and SGD does at once.
    (optax.adam(1e-3), lambda p: torch.optim.Adam(p, 1e-3, betas=(0.9, 0.999))),
    (optax.sgd(5.0), lambda p: torch.optim.SGD(p, 5.0)),
    (
      optax.sgd(5.0, momentum=0.9),
      lambda p: torch.optim.SGD(p, 5.0, momentum=0.9),
    ),
  ],
)
def test_updates_equal_the_authors(ours, theirs):
  rng = np.random.default_rng(0)
  batches = rng.normal(0.4, 1.5, (3, 20, 12, 12, 3)).astype(np.float32)
  method = supervised.make(_Net(), optax.sgd(0.1))
  batch = {
    'image': batches[0],
    'label': rng.integers(0, NUM_CLASSES, 20),
    'mask': np.ones(20, np.float32),
  }
  state = loop.init(method, batch, 0, jax.local_devices()[:1])
  for seed in range(2):  # Scales and biases of their own.
    state, _ = jax.jit(method.update)(state, batch, jax.random.key(seed))
  state = jax.device_get(state)
  net = _Torch(state.params)
  expected = _their_steps(net, batches, theirs)

  layers = norm_layers.find(method.predict, state, batch)
  variables = {**state.model_state, 'params': state.params}
  adapter = tent.make(
    method.predict, ours, norm_layers.affine(variables, layers)
  )
  stream = {'image': batches, 'mask': np.ones((3, 20), np.float32)}
  adapted, outputs = jax.jit(lambda s, x: tent.over(adapter, s, x))(
    state, stream
  )
  np.testing.assert_allclose(outputs['logits'], expected, atol=1e-5, rtol=1e-4)
  for i in range(2):
    for name, theirs_now in (
      ('scale', net.norms[i].weight),
      ('bias', net.norms[i].bias),
    ):
      ours_now = np.asarray(adapted.leaves[f'params/norm_{i}/{name}'])
      np.testing.assert_allclose(ours_now, theirs_now.detach(), atol=1e-5)
      assert abs(ours_now - state.params[f'norm_{i}'][name]).max() > 1e-3
