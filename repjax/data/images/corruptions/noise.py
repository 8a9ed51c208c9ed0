"""Host side: the noises of the common corruptions, and the held-out speckle."""

import numpy as np

from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions.kind import Rngs


def gaussian_noise(images: np.ndarray, rngs: Rngs, *, std: float):
  """Adds Gaussian noise to every value."""
  shape = images.shape[1:]
  return images + std * kind.each(rngs, lambda rng: rng.normal(size=shape))


def shot_noise(images: np.ndarray, rngs: Rngs, *, photons: float):
  """Counts of photons, of which white has so many on average."""
  drawn = zip(images, rngs, strict=True)
  return np.stack([rng.poisson(x * photons) for x, rng in drawn]) / photons


def impulse_noise(images: np.ndarray, rngs: Rngs, *, rate: float):
  """Replaces a share of all values by 0 or 1, each with probability half."""
  shape = images.shape[1:]
  draws = kind.each(rngs, lambda rng: rng.random((2, *shape)))
  replaced, white = draws[:, 0] <= rate, draws[:, 1] <= 0.5
  return np.where(replaced, white, images)


def speckle_noise(images: np.ndarray, rngs: Rngs, *, std: float):
  """Adds Gaussian noise in proportion to the value."""
  return images + images * gaussian_noise(np.zeros_like(images), rngs, std=std)


KINDS = dict(
  gaussian_noise=kind.Kind(
    gaussian_noise,
    kind.constants(
      'std',
      cifar=(0.04, 0.06, 0.08, 0.09, 0.10),
      imagenet=(0.08, 0.12, 0.18, 0.26, 0.38),
    ),
  ),
  shot_noise=kind.Kind(
    shot_noise,
    kind.constants(
      'photons', cifar=(500, 250, 100, 75, 50), imagenet=(60, 25, 12, 5, 3)
    ),
  ),
  impulse_noise=kind.Kind(
    impulse_noise,
    kind.constants(
      'rate',
      cifar=(0.01, 0.02, 0.03, 0.05, 0.07),
      imagenet=(0.03, 0.06, 0.09, 0.17, 0.27),
    ),
  ),
  speckle_noise=kind.Kind(
    speckle_noise,
    kind.constants(
      'std',
      cifar=(0.06, 0.10, 0.12, 0.16, 0.20),
      imagenet=(0.15, 0.20, 0.35, 0.45, 0.60),
    ),
  ),
)
