"""FGSM of Mixup's study moves pixels in [0, 1], whatever their scale."""

import types

import jax
import numpy as np
import pytest

from configs.studies import mixup as study
from repjax.attacks import fgsm
from repjax.data.images import transforms

_PRESETS = ('paper', 'small', 'cifar10', 'gpu', 'smoke')


def _rows(config):
  """Images of all values, as the network sees them, and labels."""
  pixels = np.arange(4 * 8 * 8 * 3).reshape(4, 8, 8, 3) % 256
  scale = transforms.normalise(config.augment.mean, config.augment.std)
  batch = scale.apply({'image': pixels.astype(np.uint8)}, np.zeros((4, 0)))
  return dict(image=batch['image'], label=np.array([0, 1, 1, 0]))


def _predict(weights, batch):
  logits = batch['image'].reshape(len(batch['image']), -1) @ weights
  return {'logits': logits}


_METHOD = types.SimpleNamespace(predict=_predict)


def _weights():
  """Of two networks, [2, D, K]."""
  return jax.random.normal(jax.random.key(0), (2, 8 * 8 * 3, 2))


@pytest.mark.parametrize('preset', _PRESETS)
def test_pixels_stay_in_their_box_and_move_by_epsilon(preset, monkeypatch):
  config = study.get_config(preset)
  rows, said = _rows(config), {}

  def attack(loss_fn, image, **settings):
    said.update(settings)
    return fgsm.fgsm(loss_fn, image, **settings)

  monkeypatch.setattr(study, 'fgsm', types.SimpleNamespace(fgsm=attack))
  study._attacked(_METHOD, _weights(), rows, config)
  mean, std = (np.asarray(config.augment[x]) for x in ('mean', 'std'))
  pixels = rows['image'] * std + mean
  for sign in (-1, 1):
    changed = fgsm.fgsm(
      lambda x, sign=sign: sign * x.sum((1, 2, 3)), rows['image'], **said
    )
    expected = np.clip(pixels + sign * config.study.epsilon, 0, 1)
    moved = np.asarray(changed) * std + mean
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize('preset', _PRESETS)
def test_an_epsilon_of_zero_leaves_the_accuracy(preset):
  config = study.get_config(preset)
  rows, weights = _rows(config), _weights()
  config.study.epsilon = 0.0
  attacked = study._attacked(_METHOD, weights, rows, config)
  logits = jax.vmap(lambda x: _predict(x, rows)['logits'])(weights)
  right = np.asarray(logits).argmax(-1) == rows['label']
  np.testing.assert_allclose(attacked, right.mean(1))
