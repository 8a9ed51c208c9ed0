"""Host side: images as other stains and scanners would have shown them.

What changes between laboratories, drawn anew for each image: its colours,
contrast and sharpness. Tellez et al., 'Quantifying the effects of data
augmentation and stain color normalization in convolutional neural networks for
computational pathology', Medical Image Analysis 2019
(https://arxiv.org/abs/1902.06543), find such augmentation to be what makes
networks general over laboratories. There colours change in the space of stains
(HED) or in hue and saturation; here each channel by an affine map of its own,
which is both to first order and needs no space of stains.
"""

import numpy as np

from repjax import types
from repjax.data.images import transforms


def stain_jitter(
  strength: float = 0.5, *, blur: float = 1.0
) -> transforms.Transform:
  """Draws gain and offset of each channel, contrast and blur of each image.

  A value x in [0, 1] becomes c * (g * x + o - 1/2) + 1/2, clipped, with
  log2 of the contrast c and the gain g of a channel uniform in [-strength,
  strength] and its offset o in [-strength / 2, strength / 2], after a blend
  with the mean of the 3 x 3 pixels around.

  Args:
    strength: >= 0; at 0 only the blur is left.
    blur: Largest weight of the blurred image, in [0, 1].

  Returns:
    A transform of uint8 images [B, H, W, C], with 3 channels at the most.
  """
  types.check_range('[0, inf)', strength=strength)
  types.check_range('[0, 1]', blur=blur)

  def fn(images, draws):
    if images.dtype != np.uint8 or images.shape[-1] > 3:
      raise ValueError(
        'stain_jitter needs uint8 images with 3 channels at the most, got '
        f'{images.dtype} {images.shape}'
      )
    channels = images.shape[-1]
    signed = 2 * draws.astype(np.float32)[:, None, None] - 1  # [B, 1, 1, 8]
    gain = 2 ** (strength * signed[..., :channels])
    offset = strength / 2 * signed[..., 3 : 3 + channels]
    contrast = 2 ** (strength * signed[..., 6:7])
    x = images.astype(np.float32) / 255
    if blur:
      weight = blur * draws.astype(np.float32)[:, None, None, 7:]
      x = x + weight * (_box(x) - x)
    x = contrast * (gain * x + offset - 0.5) + 0.5
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)

  return transforms.on_images(fn, 8)


def _box(x):
  """Means of the 3 x 3 pixels around each, the edge repeated."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), 'edge')
  rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
  return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
