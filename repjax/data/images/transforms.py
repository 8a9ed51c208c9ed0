"""Host side: augmentation and scaling of whole batches of equal images.

All randomness of a row comes from that row's `draws`, so what happens to a
row does not depend on how many processes share the batch.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax.data.reading import decode

Columns = dict[str, np.ndarray]


class Transform(NamedTuple):
  """A function of a whole batch.

  Attributes:
    num_draws: Uniform numbers that each row needs.
    apply: (columns, draws [B, num_draws] in [0, 1)) -> columns. Returns a new
      dict and never writes into the arrays that it got.
  """

  num_draws: int
  apply: Callable[[Columns, np.ndarray], Columns]


class Recipe(NamedTuple):
  """Transforms for training and for evaluation.

  Attributes:
    train: Whole-batch transform of training batches, or None.
    evaluate: That of evaluation batches, which draws nothing, or None.
    decode_train: What each image goes through first, or None for sets whose
      images have one size already.
    decode_evaluate: What each image goes through first in evaluation, or None.
    shape: (H, W, C) of what the network sees; None where it is no image.
  """

  train: Transform | None
  evaluate: Transform | None
  decode_train: decode.Decode | None
  decode_evaluate: decode.Decode | None
  shape: tuple[int, int, int] | None


# What draws nothing and keeps all columns.
AS_IT_IS = Recipe(None, None, None, None, None)


def compose(*transforms: Transform) -> Transform:
  """One transform after the other, each with draws of its own."""
  ends = np.cumsum([0, *(t.num_draws for t in transforms)])

  def apply(columns, draws):
    for transform, start, end in zip(
      transforms, ends[:-1], ends[1:], strict=True
    ):
      columns = transform.apply(columns, draws[:, start:end])
    return columns

  return Transform(int(ends[-1]), apply)


def on_images(
  fn: Callable[[np.ndarray, np.ndarray], np.ndarray], num_draws: int = 0
) -> Transform:
  """The transform of the column 'image' by fn(images, draws) -> images."""

  def apply(columns, draws):
    return {**columns, 'image': fn(columns['image'], draws)}

  return Transform(num_draws, apply)


def randint(draws: np.ndarray, count: int | np.ndarray) -> np.ndarray:
  """Uniform integers in [0, count) from uniform numbers in [0, 1)."""
  return np.floor(draws * count).astype(np.int64)


# Geometry.


def random_crop(
  padding: int, *, mode: Literal['constant', 'reflect'] = 'constant'
) -> Transform:
  """Pads all sides by `padding` pixels and cuts the old size at random.

  Equal to shifting each image by up to `padding` pixels.

  Args:
    padding: In pixels.
    mode: 'constant' pads with 0, 'reflect' mirrors without repeating the edge.
  """
  if padding < 0 or mode not in ('constant', 'reflect'):
    raise ValueError(
      f"padding must be >= 0, mode 'constant' or 'reflect', got {padding=} "
      f'{mode=}'
    )

  def fn(images, draws):
    num_rows, height, width, channels = images.shape
    padded = np.pad(
      images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode
    )
    # Rows of pixels stay contiguous, which makes the copy fast.
    padded = padded.reshape(num_rows, padded.shape[1], -1)
    windows = np.lib.stride_tricks.sliding_window_view(
      padded, (height, width * channels), axis=(1, 2)
    )
    y = randint(draws[:, 0], 2 * padding + 1)
    x = randint(draws[:, 1], 2 * padding + 1)
    crops = windows[np.arange(num_rows), y, x * channels]
    return crops.reshape(images.shape)

  return on_images(fn, 2)


def random_flip() -> Transform:
  """Mirrors every second image, left to right."""

  def fn(images, draws):
    images = images.copy()
    flipped = np.flatnonzero(draws[:, 0] < 0.5)
    images[flipped] = images[flipped, :, ::-1]
    return images

  return on_images(fn, 1)


def pad(height: int, width: int, *, fill: float = 0) -> Transform:
  """Centres images on a larger canvas of one value."""

  def fn(images, draws):
    del draws  # Nothing is random.
    rows, columns = height - images.shape[1], width - images.shape[2]
    if rows < 0 or columns < 0:
      raise ValueError(
        f'{images.shape[1:3]} images do not fit into {height} x {width}'
      )
    sides = ((0, 0), _halves(rows), _halves(columns), (0, 0))
    return np.pad(images, sides, constant_values=fill)

  return on_images(fn)


def resize(height: int, width: int) -> Transform:
  """Resizes as Pillow's bilinear filter does: averages when it shrinks.

  Keeps the type; integers are rounded.
  """

  def fn(images, draws):
    del draws  # Nothing is random.
    by_row = _bilinear(images.shape[1], height)
    by_column = _bilinear(images.shape[2], width)
    resized = np.einsum(
      'hH,bHWc,wW->bhwc', by_row, images, by_column, optimize=True
    )
    if np.issubdtype(images.dtype, np.integer):
      resized = np.rint(resized)
    return resized.astype(images.dtype)

  return on_images(fn)


def _halves(total):
  return total // 2, total - total // 2


def _bilinear(old, new):
  """Weights of the old pixels for each new one, [new, old]."""
  scale = old / new
  reach = max(scale, 1.0)  # Half the width of the triangle, in old pixels.
  centres = (np.arange(new) + 0.5) * scale
  distance = np.abs(np.arange(old) + 0.5 - centres[:, None])
  weights = np.maximum(1 - distance / reach, 0)
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


# Erasing.


def cutout(size: int, *, fill: float = 0) -> Transform:
  """Fills a square around a random pixel (DeVries and Taylor, 2017).

  https://arxiv.org/abs/1708.04552

  The square may reach over the edge, so on average less than size ** 2 pixels
  are filled.

  Args:
    size: Side of the square in pixels; 16 in the paper for CIFAR-10. An even
      square reaches one pixel further up and left of its centre.
    fill: Value to fill with; the paper's 0 follows normalisation.
  """
  if size < 1:
    raise ValueError(f'size must be >= 1, got {size=}')

  def fn(images, draws):
    _, height, width, _ = images.shape
    top = randint(draws[:, 0], height) - size // 2
    left = randint(draws[:, 1], width) - size // 2
    images = images.copy()
    for box in boxes(images, top, left, top + size, left + size):
      box[...] = fill
    return images

  return on_images(fn, 2)


def random_erasing(
  *,
  probability: float = 0.5,
  area: tuple[float, float] = (0.02, 0.4),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
  fill: float | Sequence[float] | Literal['noise'] = 'noise',
  attempts: int = 10,
) -> Transform:
  """Fills a random rectangle (Zhong et al., 2020, algorithm 1).

  https://arxiv.org/abs/1708.04896

  Args:
    probability: Probability of erasing an image, in [0, 1].
    area: Range of the rectangle's part of the image's area.
    aspect: Range of height / width, uniform as in the paper.
    fill: 'noise' draws each value uniformly from [0, 255] (uint8) or [0, 1)
      (float), as the paper does (RE-R); a number, or one a channel, fills
      with it (the authors' code: the mean of ImageNet).
    attempts: How often to draw a rectangle until it fits; the paper repeats
      without end. After the last one the image stays as it is.
  """
  noisy = isinstance(fill, str)
  if not 0 <= probability <= 1 or (noisy and fill != 'noise'):
    raise ValueError(
      f"probability must be in [0, 1], fill numbers or 'noise', got "
      f'{probability=} {fill=}'
    )
  if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
    raise ValueError(
      f'area must rise within (0, 1], aspect above 0, got {area=} {aspect=}'
    )

  def fn(images, draws):
    num_rows, height, width, _ = images.shape
    tries = draws[:, 4:].reshape(num_rows, attempts, 2)
    part = area[0] + tries[..., 0] * (area[1] - area[0])
    ratio = aspect[0] + tries[..., 1] * (aspect[1] - aspect[0])
    high = np.rint(np.sqrt(part * height * width * ratio)).astype(np.int64)
    wide = np.rint(np.sqrt(part * height * width / ratio)).astype(np.int64)
    fits = (high < height) & (wide < width)
    first = np.arange(num_rows), fits.argmax(axis=1)
    high, wide = high[first], wide[first]
    top = randint(draws[:, 1], height - high + 1)
    left = randint(draws[:, 2], width - wide + 1)
    erased = (draws[:, 0] < probability) & fits.any(axis=1)
    images = images.copy()
    places = boxes(images, top, left, top + high, left + wide)
    for box, chosen, draw in zip(places, erased, draws[:, 3], strict=True):
      if chosen:
        box[...] = _noise(draw, box) if noisy else fill
    return images

  return on_images(fn, 4 + 2 * attempts)


def boxes(images, top, left, bottom, right) -> Iterator[np.ndarray]:
  """One rectangle of each image, as a view; ends are exclusive.

  A loop of slices is ten times faster than a mask of all pixels.
  """
  corners = np.stack([top, bottom, left, right], axis=1)
  for image, corner in zip(images, np.maximum(corners, 0), strict=True):
    yield image[corner[0] : corner[1], corner[2] : corner[3]]


def _noise(draw, like):
  """Uniform values in the shape and type of `like`, all from one draw."""
  # A draw has 53 random bits: enough to key a generator of its own.
  rng = np.random.Generator(np.random.Philox(key=int(draw * 2**53)))
  if like.dtype == np.uint8:
    return rng.integers(256, size=like.shape, dtype=np.uint8)
  return rng.random(like.shape, np.float32)


# Values.


def normalise(
  mean: float | Sequence[float] | np.ndarray,
  std: float | Sequence[float] | np.ndarray,
) -> Transform:
  """uint8 images to float32: (value / 255 - mean) / std.

  Args:
    mean: Mean of value / 255, in [0, 1]; one number or one a channel.
    std: Standard deviation of value / 255, > 0; one number or one a channel.
  """
  mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
  if not (std > 0).all() or not ((mean >= 0) & (mean <= 1)).all():
    raise ValueError(
      f'mean must be in [0, 1] and std > 0, both of value / 255, got {mean=} '
      f'{std=}'
    )
  return _affine(1 / (255 * std), -mean / std)


def scale_to_unit(low: float = -1.0, high: float = 1.0) -> Transform:
  """uint8 images to float32 in [low, high]; ViT's range is [-1, 1]."""
  return _affine(np.asarray((high - low) / 255), np.asarray(low))


def _affine(scale, offset):
  scale, offset = scale.astype(np.float32), offset.astype(np.float32)

  def of_row(x, shape):
    # One number a column and channel: NumPy is slow where the last axis is
    # short.
    return np.broadcast_to(x, shape).ravel() if x.ndim else x

  def fn(images, draws):
    del draws  # Nothing is random.
    if images.dtype != np.uint8:
      raise ValueError(f'images must be uint8 [0, 255], got {images.dtype}')
    factor, shift = (of_row(x, images.shape[2:]) for x in (scale, offset))
    scaled = images.reshape(*images.shape[:2], -1).astype(np.float32)
    scaled *= factor
    scaled += shift
    return scaled.reshape(images.shape)

  return on_images(fn)
