"""Attacks against those of `torchattacks`, on one network of both libraries.

The extra `parity` is without it, since it asks for torchvision, which does not
load beside a torch for CPUs alone: `make parity` installs it by itself (`pip
install --no-deps torchattacks`).
"""

import jax.numpy as jnp
import numpy as np
import pytest

from repjax.attacks import fgsm
from repjax.attacks import losses

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
torchattacks = pytest.importorskip('torchattacks')

ROWS, SIDE, CHANNELS, WIDTH, CLASSES = 5, 8, 3, 20, 4
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(0, 1, (ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32)
LABEL = RNG.integers(0, CLASSES, ROWS)
FIRST = RNG.normal(size=(SIDE * SIDE * CHANNELS, WIDTH)).astype(np.float32) / 5
SECOND = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
EPSILON, ALPHA, STEPS = 0.1, 0.03, 7


def logits(image):
  hidden = jnp.tanh(image.reshape(len(image), -1) @ FIRST)
  return hidden @ SECOND


# PyTorch's images have channels first.
FIRST_THERE = np.ascontiguousarray(
  FIRST.reshape(SIDE, SIDE, CHANNELS, WIDTH).transpose(2, 0, 1, 3)
).reshape(-1, WIDTH)


class Network(torch.nn.Module):
  """The same."""

  def forward(self, image):
    flat = image.reshape(len(image), -1)
    return torch.tanh(flat @ torch.tensor(FIRST_THERE)) @ torch.tensor(SECOND)


LOSS = losses.cross_entropy(logits, jnp.asarray(LABEL))


def theirs(attack, **settings):
  network = Network().eval()
  made = attack(network, eps=EPSILON, **settings)
  made.set_device('cpu')
  image = torch.tensor(IMAGE).permute(0, 3, 1, 2).contiguous()
  changed = made(image, torch.tensor(LABEL))
  return changed.permute(0, 2, 3, 1).numpy()


def compare(ours, expected):
  assert abs(np.asarray(ours) - IMAGE).max() > 0.05
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_fgsm():
  found = fgsm.fgsm(LOSS, jnp.asarray(IMAGE), epsilon=EPSILON)
  compare(found, theirs(torchattacks.FGSM))


def test_pgd():
  found = fgsm.pgd(
    LOSS,
    jnp.asarray(IMAGE),
    None,
    epsilon=EPSILON,
    step_size=ALPHA,
    num_steps=STEPS,
  )
  settings = dict(alpha=ALPHA, steps=STEPS, random_start=False)
  compare(found, theirs(torchattacks.PGD, **settings))


def test_pgd_in_l2():
  found = fgsm.pgd(
    LOSS,
    jnp.asarray(IMAGE),
    None,
    epsilon=EPSILON * 10,
    step_size=ALPHA * 10,
    num_steps=STEPS,
    norm='l2',
  )
  made = torchattacks.PGDL2(
    Network().eval(),
    eps=EPSILON * 10,
    alpha=ALPHA * 10,
    steps=STEPS,
    random_start=False,
  )
  made.set_device('cpu')
  image = torch.tensor(IMAGE).permute(0, 3, 1, 2).contiguous()
  expected = made(image, torch.tensor(LABEL)).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('decay', [0.5, 1.0])
def test_mi_fgsm(decay):
  found = fgsm.mi_fgsm(
    LOSS,
    jnp.asarray(IMAGE),
    epsilon=EPSILON,
    step_size=ALPHA,
    num_steps=STEPS,
    decay=decay,
  )
  settings = dict(alpha=ALPHA, steps=STEPS, decay=decay)
  compare(found, theirs(torchattacks.MIFGSM, **settings))


def test_ti_fgsm():
  found = fgsm.ti_fgsm(
    LOSS,
    jnp.asarray(IMAGE),
    epsilon=EPSILON,
    step_size=ALPHA,
    num_steps=STEPS,
    decay=0.5,
    size=5,
    sigmas=3.0,
  )
  settings = dict(alpha=ALPHA, steps=STEPS, decay=0.5, len_kernel=5, nsig=3)
  settings['diversity_prob'] = 0.0
  compare(found, theirs(torchattacks.TIFGSM, **settings))


def test_resized_images_are_those_of_pytorch():
  from repjax.attacks import input_diversity
  from repjax.attacks import smoothing

  for size in (3, 6, 8, 11):
    weights = input_diversity._placed(SIDE, size, size, 0, 'linear')
    found = smoothing.both_sides(jnp.asarray(IMAGE), weights, weights)
    expected = torch.nn.functional.interpolate(
      torch.tensor(IMAGE).permute(0, 3, 1, 2),
      size=[size, size],
      mode='bilinear',
      align_corners=False,
    )
    np.testing.assert_allclose(
      found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5
    )
