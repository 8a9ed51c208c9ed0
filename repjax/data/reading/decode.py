"""Host side: an encoded image to an array of fixed size, one image at a time.

For sets whose images differ in size. What can be done on a whole batch of
equal images belongs to `transforms`, which is faster.

Resizing is Pillow's: bilinear, averaging over all pixels when it shrinks.
TensorFlow's `tf.image.resize` does not average by default.
"""

from collections.abc import Callable
import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class Decode(NamedTuple):
  """How a picture becomes an array.

  Attributes:
    num_draws: Uniform numbers that `apply` uses.
    apply: (picture, draws [num_draws] in [0, 1)) -> uint8 [H, W, C].
  """

  num_draws: int
  apply: Callable[[Image.Image, np.ndarray], np.ndarray]


def to_array(picture: Image.Image) -> np.ndarray:
  """Pixels of a picture, uint8 [H, W, C]."""
  pixels = np.asarray(picture)
  return pixels if pixels.ndim == 3 else pixels[..., None]


def to_picture(
  image: bytes | np.ndarray, num_channels: int | None = None
) -> Image.Image:
  """The picture of a JPEG, PNG, ... file's bytes, or of pixels [H, W, C].

  Args:
    image: Bytes of a file, or uint8 pixels of 1, 3 or 4 channels.
    num_channels: What a file is converted to: 1, 3 or 4.
  """
  if isinstance(image, bytes):
    assert num_channels is not None  # Left out for pixels alone.
    return Image.open(io.BytesIO(image)).convert(_MODES[num_channels])
  if image.dtype != np.uint8 or image.shape[-1] not in _MODES:
    raise ValueError(
      'a picture needs uint8 pixels with 1, 3 or 4 channels, got '
      f'{image.dtype} {image.shape}'
    )
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def resize(size: int | tuple[int, int]) -> Decode:
  """The whole image at `size`: a side, or (height, width)."""
  height, width = _check_size(size)

  def apply(picture, draws):
    del draws  # Nothing is random.
    return _resized(picture, height, width)

  return Decode(0, apply)


def central_crop(
  size: int | tuple[int, int], *, fraction: float = 0.875
) -> Decode:
  """The middle of the image at `size`.

  The default is the usual evaluation of ImageNet models: short side to 256,
  then the central 224 x 224.

  Args:
    size: A side, or (height, width).
    fraction: What the crop takes of the largest one that has the shape of
      `size`, in (0, 1].
  """
  height, width = _check_size(size)
  if not 0 < fraction <= 1:
    raise ValueError(f'fraction must be in (0, 1], got {fraction=}')

  def apply(picture, draws):
    del draws  # Nothing is random.
    full_width, full_height = picture.size
    scale = fraction * min(full_width / width, full_height / height)
    x = (full_width - scale * width) / 2
    y = (full_height - scale * height) / 2
    box = (x, y, x + scale * width, y + scale * height)
    resample = Image.Resampling.BILINEAR
    return to_array(picture.resize((width, height), resample, box))

  return Decode(0, apply)


def inception_crop(
  size: int | tuple[int, int],
  *,
  area: tuple[float, float] = (0.05, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  attempts: int = 10,
) -> Decode:
  """A random part of the image at `size` (Szegedy et al., 2015, sec. 6).

  https://arxiv.org/abs/1409.4842

  Follows `tf.image.sample_distorted_bounding_box` without boxes, which the
  published ViT, SAM and BEiT recipes use: the aspect ratio is uniform, the
  height is uniform between those that give the smallest and the largest area
  and fit into the image; when no attempt meets the range of areas, the whole
  image is taken. Two differences: TensorFlow tries 100 times, and its
  kernel never puts a crop against the right or the lower edge.

  Args:
    size: A side, or (height, width).
    area: Least and largest part of the image's area, in (0, 1].
    aspect: Least and largest width / height of the crop.
    attempts: How often to try.
  """
  height, width = _check_size(size)
  if not 0 < area[0] <= area[1] <= 1:
    raise ValueError(f'area must be two rising numbers in (0, 1], got {area=}')
  if not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f'aspect must be two rising numbers > 0, got {aspect=}')
  if attempts < 1:
    raise ValueError(f'attempts must be at least 1, got {attempts=}')

  def apply(picture, draws):
    shape = crop_shape(picture.size, draws[2:], area=area, aspect=aspect)
    x = math.floor(draws[0] * (picture.width - shape[0] + 1))
    y = math.floor(draws[1] * (picture.height - shape[1] + 1))
    # `resize(..., box)` would mix in pixels from around the box.
    crop = picture.crop((x, y, x + shape[0], y + shape[1]))
    return _resized(crop, height, width)

  return Decode(2 + 2 * attempts, apply)


def crop_shape(
  full: tuple[int, int],
  draws: np.ndarray,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[int, int]:
  """(width, height) of an Inception crop.

  Args:
    full: (width, height) of the image in pixels.
    draws: [2 * attempts] in [0, 1): an aspect ratio and a height each.
    area: Range of the crop's part of the image's area.
    aspect: Range of width / height.
  """
  full_width, full_height = full
  least, most = (part * full_width * full_height for part in area)
  for draw_ratio, draw_height in draws.reshape(-1, 2):
    ratio = aspect[0] + draw_ratio * (aspect[1] - aspect[0])
    # The highest crop of this ratio that is neither too large nor too wide.
    highest = min(
      round(math.sqrt(most / ratio)),
      math.floor((full_width + 0.5) / ratio),
      full_height,
    )
    lowest = min(round(math.sqrt(least / ratio)), highest)
    height = lowest + math.floor(draw_height * (highest - lowest + 1))
    # Rounding may miss the range of areas by one row.
    for candidate in (height, height + 1, height - 1):
      width = round(candidate * ratio)
      fits = 0 < width <= full_width and 0 < candidate <= full_height
      if fits and least <= width * candidate <= most:
        return width, candidate
  return full


def _resized(picture, height, width):
  return to_array(picture.resize((width, height), Image.Resampling.BILINEAR))


def _check_size(size):
  height, width = (size, size) if isinstance(size, int) else size
  if height < 1 or width < 1:
    raise ValueError(f'size must be at least one pixel, got {size=}')
  return height, width
