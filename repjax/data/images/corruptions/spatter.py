"""Host side: drops of water or mud on the lens, a held-out corruption.

The authors' code calls OpenCV; its edges, distances and equalised histograms
are made here with SciPy.
"""

import numpy as np
from scipy import ndimage

from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions import weather
from repjax.data.images.corruptions.kind import Rngs

_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
_LOW, _HIGH = 50, 150  # Canny's thresholds.
_FAR = 20  # Distances from an edge beyond it are alike.
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def spatter(
  images: np.ndarray,
  rngs: Rngs,
  *,
  mean: float,
  std: float,
  blur_std: float,
  least: float,
  amount: float,
  mud: bool,
):
  """Smooth noise above `least` is liquid.

  Args:
    images: [N, H, W, C].
    rngs: One a row.
    mean: Of the noise.
    std: Of the noise.
    blur_std: Of the Gaussian that smooths it.
    least: Where liquid begins.
    amount: Brightness of water, or the Gaussian that blurs the edge of mud.
    mud: Whether it covers, as mud, or adds light, as water.
  """
  size = images.shape[1:3]
  noise = kind.each(rngs, lambda rng: rng.normal(mean, std, size))
  liquid = ndimage.gaussian_filter(
    noise, (0, blur_std, blur_std), mode='nearest'
  )
  color = _MUD if mud else _WATER
  if images.shape[-1] == 1:
    color = weather.to_grey(color)
  if mud:
    cover = (liquid > least).astype(np.float64)
    cover = ndimage.gaussian_filter(cover, (0, amount, amount), mode='nearest')
    cover = np.where(cover < 0.8, 0, cover)[..., None]
    return images * (1 - cover) + color * cover
  levels = (np.where(liquid < least, 0, liquid) * 255).astype(np.uint8)
  light = np.stack([x * _relief(x) for x in levels])[..., None]
  light /= np.maximum(light.max((1, 2, 3), keepdims=True), 1e-12)
  return images + np.clip(amount * light * color, 0, 1)


def _relief(layer):
  """How bright drops shine, by the distance from their edges, [H, W]."""
  edges = _canny(layer)
  far = np.full(layer.shape, float(_FAR))
  if edges.any():
    far = np.minimum(ndimage.distance_transform_edt(~edges), _FAR)
  far = ndimage.uniform_filter(far, 3, mode='mirror')
  far = _equalised(np.floor(far + 1e-5).astype(np.uint8)).astype(np.float64)
  far = np.clip(ndimage.correlate(far, _EMBOSS, mode='mirror'), 0, 255)
  return np.rint(ndimage.uniform_filter(far, 3, mode='mirror'))


def _canny(layer):
  """Edges of a grey image, as OpenCV finds them.

  Canny, 'A Computational Approach to Edge Detection', PAMI 1986
  (https://doi.org/10.1109/TPAMI.1986.4767851).
  """
  values = layer.astype(np.float64)
  down, right = (ndimage.sobel(values, axis, mode='nearest') for axis in (0, 1))
  strength = abs(down) + abs(right)
  padded = np.pad(strength, 1)
  height, width = layer.shape

  def beside(y, x):
    return padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]

  # An edge is as strong as no neighbour across it: left and right, above and
  # below, or along a diagonal.
  slope = np.tan(np.pi / 8)
  flat = abs(down) < slope * abs(right)
  steep = abs(down) > abs(right) / slope
  falls = down * right < 0
  largest = np.select(
    [flat, steep, falls],
    [
      (strength > beside(0, -1)) & (strength >= beside(0, 1)),
      (strength > beside(-1, 0)) & (strength >= beside(1, 0)),
      (strength > beside(-1, 1)) & (strength > beside(1, -1)),
    ],
    (strength > beside(-1, -1)) & (strength > beside(1, 1)),
  )
  weak = largest & (strength > _LOW)
  pieces, count = ndimage.label(weak, np.ones((3, 3)))
  has_strong = np.zeros(count + 1, bool)
  has_strong[pieces[weak & (strength > _HIGH)]] = True
  return has_strong[pieces] & weak


def _equalised(layer):
  """Levels by their rank: all of them are about as frequent, uint8."""
  counts = np.bincount(layer.ravel(), minlength=256)
  first = int(np.flatnonzero(counts)[0])
  rest = layer.size - counts[first]
  if not rest:
    return layer
  below = np.cumsum(counts) - counts[first]
  table = np.rint(np.clip(below * (255 / rest), 0, 255))
  return table.astype(np.uint8)[layer]


KINDS = dict(
  spatter=kind.Kind(
    spatter,
    kind.constants(
      'mean std blur_std least amount mud',
      cifar=(
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
      ),
      imagenet=(
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
      ),
    ),
  ),
)
