"""Device code: two large views of each image, and several small ones.

Caron et al., 'Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments', NeurIPS 2020, section 3.3 (https://arxiv.org/abs/2006.09882).
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax.data.images import views
from repjax.types import InputError
from repjax.types import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiCrop:
  """(images [B, H, W, C], key) -> (large [B, 2, ...], small [B, V, ...]).

  What is drawn for a row depends on its place in the global batch, not on the
  number of devices.

  Attributes:
    size: Side of the large views.
    local_size: Side of the small ones, at most `size`.
    num_local: V, number of small views.
    area: Range of a large crop's part of the image's area.
    local_area: That of a small one's.
    flip: Whether half of the views are mirrored.
    brightness: Strength, as in `views.random_views`.
    contrast: Strength.
    saturation: Strength.
  """

  size: int
  local_size: int
  num_local: int = 8
  area: Sequence[float] = (0.4, 1.0)
  local_area: Sequence[float] = (0.05, 0.4)
  flip: bool = True
  brightness: float = 0.4
  contrast: float = 0.4
  saturation: float = 0.2

  def __post_init__(self):
    check_range('[1, inf)', size=self.size, local_size=self.local_size)
    check_range('[0, inf)', num_local=self.num_local)
    if self.local_size > self.size:
      raise InputError(
        f'local_size={self.local_size} is larger than size={self.size}: small '
        'views are parts of images'
      )
    for area in (self.area, self.local_area):
      self._views(area, self.size)  # Refuses what it cannot draw.

  def _views(self, area: Sequence[float], size: int) -> views.Views:
    return views.random_views(
      area=area,
      size=size,
      flip=self.flip,
      brightness=self.brightness,
      contrast=self.contrast,
      saturation=self.saturation,
    )

  def check(self, shape: Sequence[int]) -> None:
    """Raises InputError where a small view is larger than the image.

    Args:
      shape: Of images, [..., H, W, C].
    """
    if self.local_size > min(shape[-3:-1]):
      raise InputError(
        f'local_size={self.local_size} is larger than images of '
        f'{shape[-3]} x {shape[-2]}'
      )

  def __call__(
    self, image: jax.Array, rng: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Both kinds of views; small ones are [B, 0, ...] without any."""
    self.check(image.shape)

    def several(area, size, numbers):
      make = self._views(area, size)
      made = [
        make(image, parallel.row_rngs(jax.random.fold_in(rng, i), len(image)))
        for i in numbers
      ]
      shape = (len(image), 0, size, size, image.shape[-1])
      return jnp.stack(made, 1) if made else jnp.zeros(shape, image.dtype)

    return (
      several(self.area, self.size, range(2)),
      several(self.local_area, self.local_size, range(2, 2 + self.num_local)),
    )
