"""Host side: random hues, an augmentation that says: colour means nothing."""

import numpy as np

from repjax.data.images import transforms


def random_hue() -> transforms.Transform:
  """Turns the hues of each image by a random part of the circle of colours.

  What is grey stays as it is; brightness and saturation (HSV) stay.
  """

  def fn(images, draws):
    return turned(images, draws[:, 0])

  return transforms.on_images(fn, 1)


def turned(images: np.ndarray, turns: np.ndarray) -> np.ndarray:
  """Images with their hues turned.

  Args:
    images: uint8 [n, H, W, 3].
    turns: Parts of the circle of colours, [n]; 1/3 makes red green, green blue
      and blue red.

  Returns:
    uint8 [n, H, W, 3].
  """
  if images.dtype != np.uint8 or images.shape[-1] != 3:
    raise ValueError(
      f'Hues are those of uint8 images with 3 channels, got {images.dtype} '
      f'{images.shape}'
    )
  rgb = images.astype(np.float32)
  value, low = rgb.max(-1), rgb.min(-1)
  chroma = value - low
  red, green, blue = np.moveaxis(rgb, -1, 0)
  # Sixths of the circle, counted from red; of grey pixels any number.
  scale = np.maximum(chroma, 1)
  hue = np.where(
    value == red,
    (green - blue) / scale,
    np.where(
      value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale
    ),
  )
  hue = hue + 6 * np.asarray(turns, np.float32)[:, None, None]
  # A channel falls from the value to the lowest over one sixth, two sixths
  # before and behind its own place: red 0, green 2, blue 4.
  away = (hue[..., None] - np.array([0, 2, 4], np.float32)) % 6
  away = np.minimum(away, 6 - away)
  share = np.clip(2 - away, 0, 1)
  turned = low[..., None] + chroma[..., None] * share
  return np.rint(turned).astype(np.uint8)
