"""Host side: small bright squares on noise, and the boxes around them.

As small as the traffic lights that the detector of Alsallakh et al., ICLR 2021
(https://openreview.net/forum?id=m1CD7tPubNy), misses, and in all places alike.
"""

import numpy as np

from repjax import types
from repjax.data.reading import source as sources


def draw(
  num_rows: int,
  *,
  seed: int,
  side: int = 32,
  size: int = 3,
  contrast: float = 0.5,
  noise: float = 0.15,
  split: str = 'train',
) -> sources.Source:
  """Images of which a half has one square, anywhere inside.

  Args:
    num_rows: N.
    seed: Decides everything. Sets of different seeds share no random numbers.
    side: Side of the images in pixels.
    size: Side of the squares in pixels.
    contrast: How much brighter squares are, in parts of the range of pixels.
    noise: Standard deviation of what is added to each pixel, in the same parts.
    split: For messages.

  Returns:
    The source with 'image' uint8 [side, side, 1], 'label' (whether there is a
    square) and 'box' float32 [4]: its middle (y, x) and its sides (h, w) in
    pixels, all 0 where there is none.

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  types.check_range(f'[1, {side}]', size=size)
  rng = np.random.default_rng([seed, num_rows, side, size])
  label = rng.permutation(np.arange(num_rows) % 2)
  corners = rng.integers(0, side - size + 1, (num_rows, 2))
  image, box = paint(
    corners, rng, side=side, size=size, contrast=contrast, noise=noise
  )
  blank, _ = paint(corners, rng, side=side, size=size, contrast=0, noise=noise)
  there = label[:, None, None, None] > 0
  return sources.from_arrays(
    'spots',
    {
      'image': np.where(there, image, blank),
      'label': label.astype(np.int32),
      'box': box * label[:, None].astype(np.float32),
    },
    num_classes=2,
    split=split,
  )


def paint(
  corners: np.ndarray,
  rng: np.random.Generator,
  *,
  side: int,
  size: int,
  contrast: float,
  noise: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Images with one square each.

  Args:
    corners: (row, column) of the first pixel of each square, [N, 2].
    rng: Draws the noise.
    side: Side of the images in pixels.
    size: Side of the squares in pixels, at most `side`.
    contrast: How much brighter squares are, in [0, 1].
    noise: Standard deviation of the noise, in [0, 1].

  Returns:
    (uint8 [N, side, side, 1], boxes (y, x, h, w) float32 [N, 4]).

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[8, 1024]', side=side)
  types.check_range(f'[1, {side}]', size=size)
  types.check_range('[0, 1]', contrast=contrast, noise=noise)
  at = np.arange(side)
  inside = (at >= corners[:, :, None]) & (at < corners[:, :, None] + size)
  square = inside[:, 0, :, None] & inside[:, 1, None, :]
  image = 0.35 + contrast * square + noise * rng.normal(size=square.shape)
  pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None]
  middles = corners + size / 2
  box = np.concatenate([middles, np.full((len(corners), 2), size)], 1)
  return pixels, box.astype(np.float32)
