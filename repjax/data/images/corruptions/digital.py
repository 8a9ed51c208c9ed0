"""Host side: contrast, elastic, pixelate, JPEG, and the held-out saturate."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from repjax.data.images.corruptions import blur
from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions.kind import Rngs


def contrast(images: np.ndarray, rngs: Rngs, *, keep: float):
  """Moves all values towards the mean of their channel."""
  del rngs  # Nothing is random.
  mean = images.mean((1, 2), keepdims=True)
  return (images - mean) * keep + mean


def elastic_transform(
  images: np.ndarray, rngs: Rngs, *, reach: float, std: float, affine: float
):
  """Moves three points, and then all pixels by a smooth random field.

  Numbers are shares of the smaller side; published are those of 32 and 224
  pixels.

  Args:
    images: [N, H, W, C].
    rngs: One a row.
    reach: What the field, uniform in [-1, 1] before it is smoothed, is
      multiplied with.
    std: Of the Gaussian that smooths it.
    affine: How far each of the three points moves at most.
  """
  size = images.shape[1:3]
  side = min(size)
  grid = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'))

  def field(rng):
    drawn = rng.uniform(-1, 1, size=size)
    smooth = ndimage.gaussian_filter(
      drawn, std * side, mode='reflect', truncate=3
    )
    return reach * side * smooth

  changed = []
  for image, rng in zip(images, rngs, strict=True):
    places = _affine_places(grid, side, rng, affine * side)
    image = _at(image, places, mode='mirror')
    right, down = field(rng), field(rng)
    changed.append(_at(image, grid + np.stack([down, right]), mode='reflect'))
  return np.stack(changed)


def pixelate(images: np.ndarray, rngs: Rngs, *, keep: float):
  """Shrinks to a share of the size, and makes it as large again."""
  del rngs  # Nothing is random.
  height, width = images.shape[1:3]
  small = max(int(width * keep), 1), max(int(height * keep), 1)

  def through(picture):
    picture = picture.resize(small, Image.Resampling.BOX)
    return picture.resize((width, height), Image.Resampling.BOX)

  return _of_pictures(images, through)


def jpeg_compression(images: np.ndarray, rngs: Rngs, *, quality: int):
  """Writes and reads a JPEG file."""
  del rngs  # Nothing is random.

  def through(picture):
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=quality)
    return Image.open(file)

  return _of_pictures(images, through)


def saturate(images: np.ndarray, rngs: Rngs, *, factor: float, more: float):
  """Multiplies the saturation, and adds to it; grey images stay as they are.

  In a picture in colour, a grey pixel has hue 0 and turns red.
  """
  del rngs  # Nothing is random.
  if images.shape[-1] == 1:
    return images
  value = images.max(-1, keepdims=True)
  chroma = value - images.min(-1, keepdims=True)
  old = chroma / np.where(value > 0, value, 1)
  new = np.clip(old * factor + more, 0, 1)
  # The share of the chroma that each channel lacks is given by the hue.
  lacks = (value - images) / np.where(chroma > 0, chroma, 1)
  lacks = np.where(chroma > 0, lacks, (0.0, 1.0, 1.0))
  return value * (1 - new * lacks)


def _of_pictures(images, fn):
  """Images through a function of Pillow's pictures of 256 levels."""
  grey = images.shape[-1] == 1
  levels = blur.to_levels(images)
  pictures = [Image.fromarray(x[..., 0] if grey else x) for x in levels]
  changed = np.stack([np.asarray(fn(x)) for x in pictures])
  return changed.reshape(images.shape) / 255


def _affine_places(grid, side, rng, most):
  """Where each pixel comes from, [2, H, W], when three points are moved."""
  centre = np.array(grid.shape[1:]) // 2
  third = side // 3
  # As x and y, of which the authors take the first to be the height's middle.
  before = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
  after = before + rng.uniform(-most, most, size=(3, 2))
  ones = np.ones((3, 1))
  back = np.linalg.solve(np.hstack([after, ones]), before)  # [3, 2]
  y, x = grid
  from_x, from_y = np.moveaxis(
    np.stack([x, y, np.ones_like(x)], -1) @ back, -1, 0
  )
  # OpenCV's places are multiples of 1 / 32 of a pixel.
  return np.rint(32 * np.stack([from_y, from_x])) / 32


def _at(image, places, *, mode):
  """Values of an image [H, W, C] at places [2, H, W], linear in between."""
  return np.stack(
    [
      ndimage.map_coordinates(x, places, order=1, mode=mode)
      for x in np.moveaxis(image, -1, 0)
    ],
    axis=-1,
  )


_AS_PUBLISHED = 244 / 224  # The authors say that they meant 224.

KINDS = dict(
  contrast=kind.Kind(
    contrast,
    kind.constants(
      'keep',
      cifar=(0.75, 0.5, 0.4, 0.3, 0.15),
      imagenet=(0.4, 0.3, 0.2, 0.1, 0.05),
    ),
  ),
  elastic_transform=kind.Kind(
    elastic_transform,
    kind.constants(
      'reach std affine',
      cifar=(
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
      ),
      imagenet=[
        (reach * _AS_PUBLISHED, std * _AS_PUBLISHED, affine * _AS_PUBLISHED)
        for reach, std, affine in (
          (2, 0.7, 0.1),
          (2, 0.08, 0.2),
          (0.05, 0.01, 0.02),
          (0.07, 0.01, 0.02),
          (0.12, 0.01, 0.02),
        )
      ],
    ),
  ),
  pixelate=kind.Kind(
    pixelate,
    kind.constants(
      'keep',
      cifar=(0.95, 0.9, 0.85, 0.75, 0.65),
      imagenet=(0.6, 0.5, 0.4, 0.3, 0.25),
    ),
  ),
  jpeg_compression=kind.Kind(
    jpeg_compression,
    kind.constants(
      'quality', cifar=(80, 65, 58, 50, 40), imagenet=(25, 18, 15, 10, 7)
    ),
  ),
  saturate=kind.Kind(
    saturate,
    kind.constants(
      'factor more',
      cifar=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
      imagenet=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
  ),
)
