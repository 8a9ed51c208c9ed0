"""Host side: RandAugment (Cubuk et al., 2020) on whole batches.

https://arxiv.org/abs/1909.13719

The operations, their ranges and the empty colour 128 are those of the
authors' TensorFlow code (efficientnet/autoaugment.py), which differs from the
paper: 16 operations instead of 14 (no identity; invert, cutout and
solarize-add instead), and posterize and solarize get WEAKER as the magnitude
rises. One deliberate difference: contrast blends with the mean grey value, as
Pillow and the paper's text do; the TensorFlow code blends with the number of
pixels / 256.
"""

from collections.abc import Callable

import numpy as np

from repjax.data.images import transforms

_EMPTY = np.uint8(128)  # Colour of what comes from outside of the image.
_LUMA = np.array([0.2989, 0.5870, 0.1140], np.float32)


def rand_augment(
  num_layers: int = 2,
  magnitude: float = 10,
  *,
  translate: float = 100 / 224,
  cutout: float = 40 / 224,
) -> transforms.Transform:
  """Applies `num_layers` random operations to each image.

  Args:
    num_layers: N of the paper, operations an image.
    magnitude: M of the paper, the strength of all operations; 10 is the
      largest of AutoAugment, recipes for large networks go beyond.
    translate: Shift at magnitude 10 in parts of the image's side. The default
      is the authors' 100 pixels for images of 224; their CIFAR policies use
      10 of 32 pixels.
    cutout: Half the side of cutout's square at magnitude 10, in parts of the
      image's shorter side. The default is the authors' 40 pixels of 224.

  Returns:
    A transform of uint8 images with 1 or 3 channels.
  """
  if num_layers < 0 or magnitude < 0:
    raise ValueError(
      f'num_layers and magnitude must be >= 0, got {num_layers=} {magnitude=}'
    )
  table = operations(magnitude, translate, cutout)

  def fn(images, draws):
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
      raise ValueError(
        'RandAugment needs uint8 images with 1 or 3 channels, got '
        f'{images.dtype} {images.shape}'
      )
    images = images.copy()
    for layer in draws.reshape(len(images), num_layers, 4).swapaxes(0, 1):
      chosen = transforms.randint(layer[:, 0], len(table))
      for number, operation in enumerate(table.values()):
        rows = np.flatnonzero(chosen == number)
        if rows.size:
          images[rows] = operation(images[rows], layer[rows, 1:])
    return images

  return transforms.on_images(fn, 4 * num_layers)


Operation = Callable[[np.ndarray, np.ndarray], np.ndarray]


def operations(
  magnitude: float, translate: float, cutout: float
) -> dict[str, Operation]:
  """The operations at one magnitude, in the authors' order.

  Each is a function (images [n, H, W, C], draws [n, 3]) -> images; the draws
  decide the sign, and the place of cutout.
  """
  level = magnitude / 10
  factor = 1.8 * level + 0.1
  shear, angle = 0.3 * level, np.deg2rad(30 * level)

  def signed(draws):
    return np.where(draws[:, 0] < 0.5, 1.0, -1.0)

  def shift_x(images, draws):
    pixels = translate * level * images.shape[2]
    return _affine(images, x=(1, 0, signed(draws) * pixels))

  def shift_y(images, draws):
    pixels = translate * level * images.shape[1]
    return _affine(images, y=(0, 1, signed(draws) * pixels))

  def cut(images, draws):
    _, height, width, _ = images.shape
    half = int(cutout * level * min(height, width))
    y = transforms.randint(draws[:, 1], height)
    x = transforms.randint(draws[:, 2], width)
    images = images.copy()
    for box in transforms.boxes(images, y - half, x - half, y + half, x + half):
      box[...] = _EMPTY
    return images

  return {
    'autocontrast': lambda images, draws: autocontrast(images),
    'equalize': lambda images, draws: equalize(images),
    'invert': lambda images, draws: 255 - images,
    'rotate': lambda images, draws: rotate(images, angle * signed(draws)),
    'posterize': lambda images, draws: posterize(images, int(4 * level)),
    'solarize': lambda images, draws: solarize(images, int(256 * level)),
    'color': lambda images, draws: color(images, factor),
    'contrast': lambda images, draws: contrast(images, factor),
    'brightness': lambda images, draws: brightness(images, factor),
    'sharpness': lambda images, draws: sharpness(images, factor),
    'shear_x': lambda images, draws: _affine(
      images, x=(1, shear * signed(draws), 0)
    ),
    'shear_y': lambda images, draws: _affine(
      images, y=(shear * signed(draws), 1, 0)
    ),
    'translate_x': shift_x,
    'translate_y': shift_y,
    'cutout': cut,
    'solarize_add': lambda images, draws: solarize_add(
      images, int(110 * level)
    ),
  }


# Values.


def autocontrast(images: np.ndarray) -> np.ndarray:
  """Stretches each channel to 0 .. 255."""
  low = images.min(axis=(1, 2), keepdims=True).astype(np.int64)
  span = images.max(axis=(1, 2), keepdims=True) - low
  # Whole numbers, since 254.99999 would become 254.
  stretched = 255 * (images - low) // np.maximum(span, 1)
  return np.where(span > 0, stretched.astype(np.uint8), images)


def equalize(images: np.ndarray) -> np.ndarray:
  """Makes the histogram of each channel even, as Pillow does."""
  num_rows, height, width, channels = images.shape
  planes = images.transpose(0, 3, 1, 2).reshape(-1, height * width)
  plane = np.arange(len(planes))[:, None]
  counts = np.bincount(
    (plane * 256 + planes).ravel(), minlength=256 * len(planes)
  ).reshape(-1, 256)  # [n * C, 256]
  # The pixels of the largest value do not count.
  last = 255 - (counts[:, ::-1] > 0).argmax(axis=1)
  step = (height * width - counts[plane[:, 0], last]) // 255
  step = step[:, None]
  below = np.cumsum(counts, axis=1) - counts
  table = (below + step // 2) // np.maximum(step, 1)
  table = np.where(step > 0, np.minimum(table, 255), np.arange(256))
  planes = table[plane, planes].astype(np.uint8)
  return planes.reshape(num_rows, channels, height, width).transpose(0, 2, 3, 1)


def posterize(images: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the `bits` highest bits; 0 makes everything black, as theirs."""
  kept = 0xFF & ~(0xFF >> min(max(bits, 0), 8))
  return images & np.uint8(kept)


def solarize(images: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts values from `threshold` on."""
  return np.where(images < threshold, images, 255 - images)


def solarize_add(images: np.ndarray, addition: int) -> np.ndarray:
  """Adds to values below 128."""
  brighter = np.clip(images.astype(np.int64) + addition, 0, 255)
  return np.where(images < 128, brighter.astype(np.uint8), images)


def color(images: np.ndarray, factor: float) -> np.ndarray:
  """Away from (or beyond, factor > 1) the grey image."""
  return _blend(_grey(images), images, factor)


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
  """Away from the mean grey value of the image."""
  mean = _grey(images).mean(axis=(1, 2), keepdims=True)
  return _blend(np.floor(mean + 0.5), images, factor)


def brightness(images: np.ndarray, factor: float) -> np.ndarray:
  """Away from black."""
  return _blend(np.float32(0), images, factor)


def sharpness(images: np.ndarray, factor: float) -> np.ndarray:
  """Away from the image smoothed by Pillow's 3 x 3 kernel; edges stay."""
  smooth = images.astype(np.float32)
  _, height, width, _ = images.shape
  total = 4 * smooth[:, 1:-1, 1:-1]  # The kernel is ones, and 5 in the middle.
  for y in range(3):
    for x in range(3):
      total = total + smooth[:, y : height - 2 + y, x : width - 2 + x]
  smooth[:, 1:-1, 1:-1] = np.floor(total / 13)
  return _blend(smooth, images, factor)


def _grey(images):
  """Rounded luma, float32 [n, H, W, 1]."""
  if images.shape[-1] == 1:
    return images.astype(np.float32)
  return np.floor(images @ _LUMA + np.float32(0.5))[..., None]


def _blend(base, images, factor):
  """Base + factor * (images - base), clipped, cut to whole numbers."""
  blended = base + np.float32(factor) * (images.astype(np.float32) - base)
  return np.clip(blended, 0, 255).astype(np.uint8)


# Geometry.


def rotate(images: np.ndarray, radians: np.ndarray) -> np.ndarray:
  """Turns each image around its middle."""
  cos, sin = np.cos(radians), np.sin(radians)
  middle_y, middle_x = (images.shape[1] - 1) / 2, (images.shape[2] - 1) / 2
  return _affine(
    images,
    x=(cos, -sin, middle_x - cos * middle_x + sin * middle_y),
    y=(sin, cos, middle_y - sin * middle_x - cos * middle_y),
  )


def _affine(images, *, x=(1, 0, 0), y=(0, 1, 0)):
  """Takes each pixel from (x, y) of the image, to the nearest one.

  Args:
    images: [n, H, W, C].
    x: (a, b, c), numbers or [n]: the pixel at (x, y) comes from column
      a x + b y + c; column 0 is the centre of the first pixel.
    y: (a, b, c), numbers or [n]: the row that it comes from, as the column.
  """
  num_rows, height, width, _ = images.shape
  to_y, to_x = np.arange(height)[:, None], np.arange(width)

  def source(coefficients, size):
    a, b, c = (np.reshape(k, (-1, 1, 1)) for k in coefficients)
    nearest = np.floor(a * to_x + b * to_y + c + 0.5)
    nearest = np.broadcast_to(nearest, (num_rows, height, width))
    inside = (nearest >= 0) & (nearest < size)
    return np.clip(nearest, 0, size - 1).astype(np.int64), inside

  from_x, in_x = source(x, width)
  from_y, in_y = source(y, height)
  moved = images[np.arange(num_rows)[:, None, None], from_y, from_x]
  return np.where((in_x & in_y)[..., None], moved, _EMPTY)
