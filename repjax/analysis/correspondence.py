"""Device code: whether regions of two views are matched with their like.

Two views of an image that differ by a shift tell which region is which, without
any label. Li et al., 'Efficient Self-supervised Vision Transformers for
Representation Learning', ICLR 2022, section 3.2
(https://arxiv.org/abs/2106.09785), match regions by the cosine of what a
backbone says of them, and find that networks of several stages do it badly
unless their regions are trained.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.methods import self_distillation
from repjax.types import InputError


class Found(NamedTuple):
  """What was matched with what.

  Attributes:
    match: Region of the second view that each of the first is most alike,
      int32 [B, S].
    expected: The region that shows the same place, int32 [S]; -1 for one that
      the second view does not show.
    counted: Regions of the first view that show something and have one to be
      found, bool [B, S].
  """

  match: jax.Array
  expected: jax.Array
  counted: jax.Array

  def accuracy(self) -> jax.Array:
    """Share of counted regions that are matched with the right one."""
    right = (self.match == self.expected[None]) & self.counted
    return right.sum() / jnp.maximum(self.counted.sum(), 1)


def shifted(
  encode: Callable[[jax.Array], jax.Array],
  image: jax.Array,
  *,
  grid: int,
  shift: tuple[int, int],
  noise: float | jax.Array = 0.0,
  rng: jax.Array | None = None,
  least: float = 0.0,
) -> Found:
  """Matches regions of images with those of the same images, moved.

  Args:
    encode: Images -> regions [B, grid * grid, C], row by row.
    image: [B, H, H, C], H a multiple of `grid`; its smallest value is ground,
      which fills what a shift lays bare.
    grid: Regions along a side.
    shift: (down, right) by which the second view is moved, in regions.
    noise: Standard deviation of Gaussian noise on the second view.
    rng: Draws the noise; None for none.
    least: Standard deviation of a region's pixels above which it shows
      something: of two that show nothing, neither is the right one.

  Raises:
    InputError: Regions do not divide the image, or a shift leaves none.
  """
  side = image.shape[1]
  if side % grid or image.shape[2] != side:
    raise InputError(f'{grid=} regions do not divide images {image.shape[1:3]}')
  if max(map(abs, shift)) >= grid or not any(shift):
    raise InputError(f'{shift=} must move some of {grid} regions, not all')
  size = side // grid
  reach = max(map(abs, shift)) * size
  frame = ((0, 0), (reach, reach), (reach, reach), (0, 0))
  ground = image.min((0, 1, 2), keepdims=True)  # Of each channel.
  within = jnp.pad(jnp.ones_like(image[..., :1], bool), frame)
  framed = jnp.where(within, jnp.pad(image, frame), ground)
  top, left = (reach - x * size for x in shift)
  moved = framed[:, top : top + side, left : left + side]
  if rng is not None:
    moved += noise * jax.random.normal(rng, moved.shape, moved.dtype)
  rows, columns = jnp.divmod(jnp.arange(grid * grid), grid)
  there = (rows + shift[0], columns + shift[1])
  inside = (
    (there[0] >= 0) & (there[0] < grid) & (there[1] >= 0) & (there[1] < grid)
  )
  pixels = image.reshape((len(image), grid, size, grid, size, -1))
  shown = jnp.std(pixels, (2, 4)).max(-1).reshape((len(image), -1)) > least
  return Found(
    self_distillation.matches(encode(image), encode(moved)),
    jnp.where(inside, there[0] * grid + there[1], -1).astype(jnp.int32),
    shown & inside[None],
  )
