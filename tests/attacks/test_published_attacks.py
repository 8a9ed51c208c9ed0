"""Attacks against images that `torchattacks` made, without it.

torchattacks.npz was made once with torchattacks 3.5.1, by the settings below,
on the network that stands in it; tests/parity compares where it is installed.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from repjax.attacks import fgsm
from repjax.attacks import losses

STORED = dict(np.load(pathlib.Path(__file__).parent / 'torchattacks.npz'))
IMAGE = jnp.asarray(STORED['image'])
BALL = dict(epsilon=0.1, step_size=0.03, num_steps=7)


def loss(image):
  hidden = jnp.tanh(image.reshape(len(image), -1) @ STORED['first'])
  return losses.cross_entropy(
    lambda _: hidden @ STORED['second'], jnp.asarray(STORED['label'])
  )(image)


@pytest.mark.parametrize(
  ('name', 'attack'),
  [
    ('fgsm', lambda: fgsm.fgsm(loss, IMAGE, epsilon=0.1)),
    ('pgd', lambda: fgsm.pgd(loss, IMAGE, None, **BALL)),
    ('mi_fgsm', lambda: fgsm.mi_fgsm(loss, IMAGE, decay=1.0, **BALL)),
    (
      'ti_fgsm',
      lambda: fgsm.ti_fgsm(loss, IMAGE, decay=0.5, size=5, sigmas=3.0, **BALL),
    ),
    (
      'pgd_l2',
      lambda: fgsm.pgd(
        loss, IMAGE, None, epsilon=1.0, step_size=0.3, num_steps=7, norm='l2'
      ),
    ),
  ],
)
def test_images_are_those_of_torchattacks(name, attack):
  found = np.asarray(attack())
  assert abs(found - STORED['image']).max() > 0.05
  np.testing.assert_allclose(found, STORED[name], atol=1e-5)
