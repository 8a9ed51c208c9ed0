"""Host side: a patch on images that is the same in training and in a test.

Gu, Dolan-Gavitt and Garg, 'BadNets: Identifying Vulnerabilities in the Machine
Learning Model Supply Chain', 2017 (https://arxiv.org/abs/1708.06733). It is put
on images as they are stored, before any augmentation or normalization.
"""

import dataclasses
from typing import Any
from typing import Literal

import numpy as np

from repjax import types


@dataclasses.dataclass(frozen=True, eq=False)
class Trigger:
  """A fixed pattern, in a fixed place or in one that a row's number decides.

  The 'random' trigger of a public code base (CleanCLIP) is new noise for each
  image, so that no two are alike; here the pattern is always the same.

  Attributes:
    pattern: Pixels like those of the images, uint8 [h, w, C]; C = 1 is for
      images of any number of channels.
    place: (row, column) of its corner, negative ones from the far edge as in
      slices of a pattern that ends there; or 'anywhere', by (seed, row number).
    seed: Of the places.
  """

  pattern: np.ndarray
  place: tuple[int, int] | Literal['anywhere'] = (-1, -1)
  seed: int = 0

  def __post_init__(self):
    if self.pattern.ndim != 3 or not self.pattern.size:
      raise types.InputError(
        'the pattern of a trigger is [height, width, channels], got '
        f'{self.pattern.shape}'
      )
    if self.place != 'anywhere' and (
      isinstance(self.place, str)
      or len(self.place) != 2
      or not all(isinstance(x, (int, np.integer)) for x in self.place)
    ):
      raise types.InputError(
        f"place of a trigger is (row, column) or 'anywhere'; got {self.place!r}"
      )

  def on(self, images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Images with the pattern.

    Args:
      images: [N, H, W, C], of the pattern's type; or objects [N], each an
        image [H, W, C] of a size of its own.
      index: Numbers of the rows, [N], which decide random places.

    Returns:
      Copies.

    Raises:
      InputError: The pattern is larger than an image, of other channels, or
        reaches over an edge.
    """
    if images.dtype == object:
      result = np.empty(len(images), object)
      for row, image in enumerate(images):
        result[row] = self.on(image[None], index[row : row + 1])[0]
      return result
    height, width, channels = images.shape[1:]
    rows, columns, depth = self.pattern.shape
    if rows > height or columns > width:
      raise types.InputError(
        f'the trigger has {rows} x {columns} pixels, more than images of '
        f'{height} x {width}'
      )
    if depth not in (1, channels) or self.pattern.dtype != images.dtype:
      raise types.InputError(
        f'the trigger is {self.pattern.dtype} with {depth} channels, images '
        f'are {images.dtype} with {channels}'
      )
    result = images.copy()
    for row, (top, left) in enumerate(self._corners(height, width, index)):
      result[row, top : top + rows, left : left + columns] = self.pattern
    return result

  def describe(self) -> dict[str, Any]:
    """The trigger in JSON's types."""
    place = self.place if isinstance(self.place, str) else [*self.place]
    return {
      'pattern': self.pattern.tolist(),
      'place': place,
      'seed': self.seed,
    }

  def _corners(self, height, width, index):
    rows, columns, _ = self.pattern.shape
    if isinstance(self.place, str):
      return [
        (
          int(rng.integers(0, height - rows + 1)),
          int(rng.integers(0, width - columns + 1)),
        )
        for rng in (np.random.default_rng([self.seed, i]) for i in index)
      ]
    top, left = self.place
    top = height - rows + 1 + top if top < 0 else top
    left = width - columns + 1 + left if left < 0 else left
    if not (0 <= top <= height - rows and 0 <= left <= width - columns):
      raise types.InputError(
        f'a trigger of {rows} x {columns} pixels at {self.place} reaches over '
        f'the edge of images of {height} x {width}'
      )
    return [(top, left)] * len(index)


def checkered(
  size: int, *, channels: int = 1, light: int = 255, dark: int = 0
) -> np.ndarray:
  """Light and dark pixels in turn, uint8 [size, size, channels]."""
  types.check_range('[1, inf)', size=size, channels=channels)
  types.check_range('[0, 255]', light=light, dark=dark)
  rows, columns = np.indices((size, size))
  light_first = np.where((rows + columns) % 2 == 0, light, dark)
  return np.repeat(light_first[..., None], channels, -1).astype(np.uint8)
