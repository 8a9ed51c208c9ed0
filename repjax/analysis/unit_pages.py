"""Host side: units on a page, each with its exemplars and its description."""

from collections.abc import Sequence

import numpy as np

from repjax import plots
from repjax import types


def shaded(
  image: np.ndarray, mask: np.ndarray, *, opacity: float = 0.75
) -> np.ndarray:
  """Images that are dark where the mask is not, float in [0, 1].

  Args:
    image: [..., H, W, C], uint8, or floating point in [0, 1].
    mask: [..., H, W].
    opacity: 1 makes what is outside black.
  """
  types.check_range('[0, 1]', opacity=opacity)
  if image.dtype == np.uint8:
    image = image / 255
  light = np.where(mask, 1.0, 1 - opacity)[..., None]
  return np.clip(image, 0, 1) * light


def page(
  images: np.ndarray, masks: np.ndarray, texts: Sequence[str]
) -> plots.Figure:
  """One row a unit: its exemplars, where it is at work in them, and its words.

  Args:
    images: [U, k, H, W, C], uint8, or floating point in [0, 1].
    masks: [U, k, H, W].
    texts: One a unit.

  Raises:
    InputError: There is no unit, or numbers of units differ.
  """
  if not len(images) or not len(images) == len(masks) == len(texts):
    raise types.InputError(
      'a page needs images, masks and a text of each unit; got '
      f'{len(images)}, {len(masks)} and {len(texts)}'
    )
  units, k, height, width, channels = images.shape
  pad = max(1, height // 12)
  board = np.ones((units, height + pad, k, width + pad, channels))
  board[:, :height, :, :width] = shaded(images, masks).transpose(0, 2, 1, 3, 4)
  board = board.reshape(units * (height + pad), k * (width + pad), channels)
  fig = plots.Figure(figsize=(0.55 * k + 3.2, 0.55 * units + 0.2))
  axes = fig.add_axes((0, 0, 1, 1))
  axes.imshow(board[..., 0] if channels == 1 else board, cmap='gray', vmin=0)
  axes.axis('off')
  scale = (0.55 * k + 3.2) / (0.55 * k)
  axes.set_xlim(0, board.shape[1] * scale)
  for i, text in enumerate(texts):
    axes.text(
      board.shape[1] + 2 * pad,
      i * (height + pad) + height / 2,
      text,
      fontsize=8,
      va='center',
      parse_math=False,
    )
  return fig
