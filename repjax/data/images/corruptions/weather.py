"""Host side: snow, frost, fog and bright light."""

import numpy as np

from repjax.data.images.corruptions import blur
from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions.kind import Rngs

# Weights of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

# Of the five photographs of frost that the authors' code draws from (two are
# one file): mean colours, and what is alike in all of them, measured on patches
# of 32 x 32 pixels of the photographs at the size that CIFAR-10-C has them.
_FROST = (
  (0.305, 0.585, 0.650),
  (0.787, 0.805, 0.841),
  (0.787, 0.805, 0.841),
  (0.540, 0.599, 0.648),
  (0.441, 0.484, 0.528),
)
_FROST_BETWEEN, _FROST_WITHIN = (
  0.047,
  0.062,
)  # Deviations of patches, of pixels.
_FROST_SLOPE = -2.1  # Of the logarithm of power over that of frequency.


def snow(
  images: np.ndarray,
  rngs: Rngs,
  *,
  mean: float,
  std: float,
  zoom: float,
  least: float,
  radius: int,
  blur_std: float,
  keep: float,
):
  """Falling flakes over a picture that is whitened.

  Flakes are magnified noise above `least`, moved along a steep line. What was
  the picture is mixed, 1 - `keep`, with a bright grey one.
  """
  size = images.shape[1:3]
  flakes = kind.each(rngs, lambda rng: rng.normal(mean, std, size))
  flakes = blur.magnified(flakes[..., None], zoom)[..., 0]
  flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
  angles = [rng.uniform(-135, -45) for rng in rngs]
  layer = np.stack(
    [
      blur.along_a_line(x, radius=radius, std=blur_std, angle=angle)
      for x, angle in zip(flakes, angles, strict=True)
    ]
  )
  layer = np.rint(layer * 255)[..., None] / 255
  grey = to_grey(images) * 1.5 + 0.5
  whitened = keep * images + (1 - keep) * np.maximum(images, grey)
  return whitened + layer + layer[:, ::-1, ::-1]


def frost(images: np.ndarray, rngs: Rngs, *, keep: float, cover: float):
  """Lays frost over the picture: keep * picture + cover * frost.

  The authors' code lays patches of five photographs. Here frost is drawn: one
  of their mean colours, with a texture whose deviations and spectrum are those
  of the photographs. It has no crystals.
  """
  size = images.shape[1:3]
  frequency = np.hypot(
    np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])
  )
  frequency[0, 0] = np.inf  # The mean is drawn by itself.
  amplitude = frequency ** (_FROST_SLOPE / 2)

  def draw(rng):
    colour = np.asarray(_FROST[rng.integers(len(_FROST))])
    colour = colour + _FROST_BETWEEN * rng.normal()
    texture = np.fft.ifft2(amplitude * np.fft.fft2(rng.normal(size=size))).real
    texture *= _FROST_WITHIN / max(texture.std(), 1e-12)
    return np.clip(colour + texture[..., None], 0, 1)

  layer = kind.each(rngs, draw)
  if images.shape[-1] == 1:
    layer = to_grey(layer)
  return keep * images + cover * layer


def fog(images: np.ndarray, rngs: Rngs, *, amount: float, decay: float):
  """Adds a cloud, and makes the picture darker by as much on average."""
  height, width = images.shape[1:3]
  side = 1 << (max(height, width) - 1).bit_length()
  cloud = _plasma(rngs, side, decay)[:, :height, :width, None]
  brightest = images.max((1, 2, 3), keepdims=True)
  dimmed = brightest / (brightest + amount)
  return (images + amount * cloud) * dimmed


def brightness(images: np.ndarray, rngs: Rngs, *, amount: float):
  """Adds to the value of hue, saturation and value."""
  del rngs  # Nothing is random.
  value = images.max(-1, keepdims=True)
  brighter = np.clip(value + amount, 0, 1)
  # Hue and saturation are ratios of channels: all grow alike, and black, which
  # has neither, becomes grey.
  return np.where(
    value > 0, images * brighter / np.where(value > 0, value, 1), brighter
  )


def to_grey(images: np.ndarray) -> np.ndarray:
  """[N, H, W, C] -> [N, H, W, 1]."""
  if images.shape[-1] == 1:
    return images
  return (images * LUMA).sum(-1, keepdims=True)


def _plasma(rngs, side, decay):
  """Clouds in [0, 1], [N, side, side], by the diamond-square algorithm.

  `side` is a power of two; what leaves one edge comes back at the other.
  """
  cloud = np.zeros((len(rngs), side, side))
  wobble, step = 100.0, side

  def around(total):
    noise = kind.each(
      rngs, lambda rng: rng.uniform(-wobble, wobble, total.shape[1:])
    )
    return total / 4 + wobble * noise

  while step >= 2:
    half = step // 2
    corners = cloud[:, ::step, ::step]
    pairs = corners + np.roll(corners, -1, axis=1)
    cloud[:, half::step, half::step] = around(
      pairs + np.roll(pairs, -1, axis=2)
    )
    corners, middles = (
      cloud[:, ::step, ::step],
      cloud[:, half::step, half::step],
    )
    beside = middles + np.roll(middles, 1, axis=1)
    beside = beside + corners + np.roll(corners, -1, axis=2)
    below = middles + np.roll(middles, 1, axis=2)
    below = below + corners + np.roll(corners, -1, axis=1)
    cloud[:, ::step, half::step] = around(beside)
    cloud[:, half::step, ::step] = around(below)
    step, wobble = half, wobble / decay
  cloud -= cloud.min((1, 2), keepdims=True)
  return cloud / np.maximum(cloud.max((1, 2), keepdims=True), 1e-12)


KINDS = dict(
  snow=kind.Kind(
    snow,
    kind.constants(
      'mean std zoom least radius blur_std keep',
      cifar=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
      ),
      imagenet=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
      ),
    ),
  ),
  frost=kind.Kind(
    frost,
    kind.constants(
      'keep cover',
      cifar=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
      imagenet=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
  ),
  fog=kind.Kind(
    fog,
    kind.constants(
      'amount decay',
      cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
      imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
  ),
  brightness=kind.Kind(
    brightness,
    kind.constants(
      'amount',
      cifar=(0.05, 0.1, 0.15, 0.2, 0.3),
      imagenet=(0.1, 0.2, 0.3, 0.4, 0.5),
    ),
  ),
)
