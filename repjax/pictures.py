"""Host side: images as a page can show them."""

import numpy as np


def visible(images: np.ndarray, *, side: int = 256) -> np.ndarray:
  """Images of 1, 3 or 4 channels, no larger than a page shows.

  Args:
    images: [N, H, W, C]. Of other numbers of channels the mean is shown.
    side: Most pixels of a side; of larger images every second one, say.
  """
  step = -(-max(images.shape[1:3]) // side)
  images = images[:, ::step, ::step]
  if images.shape[-1] in (1, 3, 4):
    return images
  return images.mean(-1, keepdims=True).astype(images.dtype)
