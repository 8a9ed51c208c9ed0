"""Host side: histograms of oriented gradients, features that cost no privacy.

Dalal and Triggs, 'Histograms of Oriented Gradients for Human Detection', CVPR
2005 (https://doi.org/10.1109/CVPR.2005.177), without their overlapping blocks.
They do not depend on the training rows, so private learning may use them for
free; Tramer and Boneh, 'Differentially Private Learning Needs Better Features
(or Much More Data)', ICLR 2021 (https://arxiv.org/abs/2011.11660), show how
much linear models over such features gain.
"""

import numpy as np

from repjax.data.images import transforms

_CHUNK = 2048  # Images at a time: whole sets are transformed at once.


def oriented_gradients(
  *, cell: int, bins: int = 8, eps: float = 1e-3
) -> transforms.Transform:
  """Replaces 'image' by histograms of its gradients, one a cell.

  A pixel's gradient (central differences, edges repeated) counts with its
  length, divided between the two nearest of the directions 2 pi k / bins. A
  row is then divided by its norm, so that bright and pale images look alike.

  Args:
    cell: Side of a cell in pixels; divides the images' sides.
    bins: Directions, >= 2.
    eps: Added to norms.

  Returns:
    A transform of images [B, H, W, C], uint8 or float, whose channels are
    averaged first, to float32 [B, H / cell, W / cell, bins] of norm 1.
  """
  if cell < 1 or bins < 2:
    raise ValueError(f'Need cell >= 1 and bins >= 2; got {cell=}, {bins=}')

  def features(images, draws):
    del draws  # Nothing is random.
    _, height, width, _ = images.shape
    if height % cell or width % cell:
      raise ValueError(
        f'Images of {height} x {width} cannot be divided into cells of {cell=}'
      )
    parts = [
      _histograms(images[start : start + _CHUNK], cell, bins)
      for start in range(0, len(images), _CHUNK)
    ]
    found = np.concatenate(parts)
    norms = np.sqrt(np.square(found).sum((1, 2, 3), keepdims=True))
    return (found / (norms + eps)).astype(np.float32)

  return transforms.on_images(features)


def _histograms(images, cell, bins):
  """[B, H, W, C] -> [B, H / cell, W / cell, bins]."""
  batch, height, width, _ = images.shape
  grey = np.pad(
    images.astype(np.float32).mean(-1), ((0, 0), (1, 1), (1, 1)), mode='edge'
  )
  down = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
  right = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
  size = np.hypot(down, right)
  place = np.arctan2(down, right) / (2 * np.pi) * bins % bins
  low = np.floor(place).astype(np.int64)
  share = place - low
  shape = (batch, height // cell, width // cell, bins)
  row, y, x = np.ogrid[:batch, :height, :width]
  first = ((row * shape[1] + y // cell) * shape[2] + x // cell) * bins
  counts = [
    np.bincount(
      (first + direction % bins).ravel(),
      (size * weight).ravel(),
      minlength=batch * shape[1] * shape[2] * bins,
    )
    for direction, weight in ((low, 1 - share), (low + 1, share))
  ]
  return (counts[0] + counts[1]).reshape(shape)
