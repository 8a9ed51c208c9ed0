"""Host side: the blurs of the common corruptions, and the held-out Gaussian."""

import math

import numpy as np
from scipy import ndimage

from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions.kind import Rngs


def gaussian_blur(images: np.ndarray, rngs: Rngs, *, std: float):
  """Blurs height and width; the edge goes on outside."""
  del rngs  # Nothing is random.
  return ndimage.gaussian_filter(images, (0, std, std, 0), mode='nearest')


def defocus_blur(
  images: np.ndarray, rngs: Rngs, *, radius: float, alias: float
):
  """Blurs with a disk, whose own edge is blurred by `alias`."""
  del rngs  # Nothing is random.
  disk = _disk(radius, alias)
  return filter2d(images, disk)


def glass_blur(
  images: np.ndarray, rngs: Rngs, *, std: float, reach: int, rounds: int
):
  """Blurs, moves pixels about within `reach`, and blurs again.

  The authors' code is written as if neighbours changed places, but its two
  sides are views of one array, so that a pixel becomes a copy of its neighbour
  and the neighbour stays. So it does here.
  """
  height, width = images.shape[1:3]
  blurred = gaussian_blur(images, rngs, std=std)
  moved = to_levels(blurred)
  ys = np.arange(height - reach, reach, -1)
  xs = np.arange(width - reach, reach, -1)
  places = [(y, x) for _ in range(rounds) for y in ys for x in xs]
  steps = kind.each(
    rngs, lambda rng: rng.integers(-reach, reach, size=(len(places), 2))
  )
  row = np.arange(len(images))
  for place, (y, x) in enumerate(places):
    # Published for squares: what lies beyond the last pixel is the last one.
    near_y = np.minimum(y + steps[:, place, 1], height - 1)
    near_x = np.minimum(x + steps[:, place, 0], width - 1)
    moved[:, y, x] = moved[row, near_y, near_x]
  return gaussian_blur(moved / 255, rngs, std=std)


def motion_blur(images: np.ndarray, rngs: Rngs, *, radius: int, std: float):
  """Blurs along a line within 45 degrees of the horizontal one.

  As the port `imagecorruptions` does; the original calls ImageMagick.
  """
  angles = [rng.uniform(-45, 45) for rng in rngs]
  return np.stack(
    [
      along_a_line(image, radius=radius, std=std, angle=angle)
      for image, angle in zip(images, angles, strict=True)
    ]
  )


def zoom_blur(images: np.ndarray, rngs: Rngs, *, stop: float, step: float):
  """Mean of the image and of its magnifications 1, 1 + step, ... up to stop."""
  del rngs  # Nothing is random.
  factors = np.arange(1, stop, step)
  total = images + sum(magnified(images, factor) for factor in factors)
  return total / (len(factors) + 1)


# What weather needs, too.


def to_levels(images: np.ndarray) -> np.ndarray:
  """[0, 1] -> 0 to 255 as uint8, by cutting off, as the authors' code does.

  A value that rounding has left just below a level counts as that level, so
  that equal pixels stay equal on every machine.
  """
  return np.floor(np.clip(images, 0, 1) * 255 + 1e-5).astype(np.uint8)


def filter2d(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Symmetric kernel over height and width; outside the image is mirrored."""
  from scipy import signal  # Slow to import.

  (up, left), (height, width) = np.array(kernel.shape) // 2, images.shape[1:3]
  ys, xs = _mirrored(height, up), _mirrored(width, left)
  padded = images[:, ys][:, :, xs]
  return signal.fftconvolve(
    padded, kernel[None, :, :, None], mode='valid', axes=(1, 2)
  )


def magnified(images: np.ndarray, factor: float) -> np.ndarray:
  """The middle of images, [N, H, W, C], magnified to their size."""
  by_row = _magnify(images.shape[1], factor)
  by_column = _magnify(images.shape[2], factor)
  num_rows, height = images.shape[:2]
  rows = by_row @ images.reshape(num_rows, height, -1)
  return by_column @ rows.reshape(images.shape)


def along_a_line(
  image: np.ndarray, *, radius: int, std: float, angle: float
) -> np.ndarray:
  """Weighted mean of an image [H, W, ...] and its shifts in one direction.

  Weights are half a Gaussian. Shifts are whole pixels; the edge goes on
  outside. (The port ends a motion at the image's border, and so loses light
  where the line is longer than the image.)
  """
  distances = np.arange(2 * radius + 1)
  weights = np.exp(-(distances**2) / (2 * std**2))
  weights /= weights.sum()
  direction = math.sin(math.radians(angle)), math.cos(math.radians(angle))
  rows, columns = (np.arange(size) for size in image.shape[:2])
  blurred = np.zeros_like(image)
  for distance, weight in zip(distances, weights, strict=True):
    down, right = (math.ceil(distance * part - 0.5) for part in direction)
    y = np.clip(rows + down, 0, len(rows) - 1)
    x = np.clip(columns + right, 0, len(columns) - 1)
    blurred += weight * image[y[:, None], x]
  return blurred


def _disk(radius, alias):
  """A disk with soft edges, of sum 1 before they are cut off."""
  reach = max(8, math.ceil(radius))
  near = np.arange(-reach, reach + 1)
  disk = (near[:, None] ** 2 + near**2 <= radius**2).astype(np.float64)
  disk /= disk.sum()
  taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
  soft = np.exp(-(taps**2) / (2 * alias**2))
  soft /= soft.sum()
  for axis in (0, 1):
    disk = ndimage.correlate1d(disk, soft, axis=axis, mode='mirror')
  inside = np.flatnonzero(disk.max(0) > 1e-12)  # Zeros only cost time.
  part = slice(inside[0], inside[-1] + 1)
  return disk[part, part]


def _mirrored(size, reach):
  """Places of -reach to size + reach in an image that is mirrored outside."""
  if size == 1:
    return np.zeros(1 + 2 * reach, np.int64)
  place = np.arange(-reach, size + reach) % (2 * size - 2)
  return np.minimum(place, 2 * size - 2 - place)


def _magnify(size, factor):
  """Weights of old pixels for each new one, [size, size].

  Linear between the first and the last pixel of the middle, both of which stay,
  as SciPy's `zoom` does.
  """
  old = math.ceil(size / factor)
  new = round(old * factor)
  first = (size - old) // 2
  place = np.arange((new - size) // 2, (new - size) // 2 + size)
  place = first + place * ((old - 1) / max(new - 1, 1))
  return np.maximum(1 - abs(place[:, None] - np.arange(size)), 0)


KINDS = dict(
  defocus_blur=kind.Kind(
    defocus_blur,
    kind.constants(
      'radius alias',
      cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
      imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
  ),
  glass_blur=kind.Kind(
    glass_blur,
    kind.constants(
      'std reach rounds',
      cifar=(
        (0.05, 1, 1),
        (0.25, 1, 1),
        (0.4, 1, 1),
        (0.25, 1, 2),
        (0.4, 1, 2),
      ),
      imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
  ),
  motion_blur=kind.Kind(
    motion_blur,
    kind.constants(
      'radius std',
      cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
      imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
  ),
  zoom_blur=kind.Kind(
    zoom_blur,
    kind.constants(
      'stop step',
      cifar=(
        (1.06, 0.01),
        (1.11, 0.01),
        (1.16, 0.01),
        (1.21, 0.01),
        (1.26, 0.01),
      ),
      imagenet=(
        (1.11, 0.01),
        (1.16, 0.01),
        (1.21, 0.02),
        (1.26, 0.02),
        (1.31, 0.03),
      ),
    ),
  ),
  gaussian_blur=kind.Kind(
    gaussian_blur,
    kind.constants(
      'std', cifar=(0.4, 0.6, 0.7, 0.8, 1), imagenet=(1, 2, 3, 4, 6)
    ),
  ),
)
