"""Device code: cut an image into patches, and put it together again."""

from typing import Literal
from typing import get_args

import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

Border = Literal['zero', 'reflect']


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
  """(height, width) of a size that may be given as one number."""
  height, width = (size, size) if isinstance(size, int) else size
  return height, width


def grid_shape(
  image_size: int | tuple[int, int], patch_size: int | tuple[int, int]
) -> tuple[int, int]:
  """Number of patches down and across.

  Args:
    image_size: Pixels, one number or (height, width).
    patch_size: Pixels, one number or (height, width).

  Returns:
    (rows, columns) of patches.

  Raises:
    InputError: The patches do not tile the image.
  """
  height, width = pair(image_size)
  patch_height, patch_width = pair(patch_size)
  if min(patch_height, patch_width) < 1:
    raise InputError(f'patch_size must be positive, got {patch_size=}')
  if height % patch_height or width % patch_width:
    raise InputError(
      f'patch_size must divide the image: got {patch_size=} for an image of '
      f'{height} x {width} pixels; resize the images or change patch_size'
    )
  return height // patch_height, width // patch_width


def extract(image: jax.Array, patch_size: int | tuple[int, int]) -> jax.Array:
  """Non-overlapping patches, row by row.

  A dense layer over the last three axes is then the strided convolution that
  ViT embeds patches with (Dosovitskiy et al., 2021, eq. 1,
  https://arxiv.org/abs/2010.11929), with the same kernel [P, P, C, D], and also
  runs as one matrix product in the backward pass.

  Args:
    image: [B, H, W, C].
    patch_size: P, or (P, P').

  Returns:
    [B, H / P, W / P', P, P', C].

  Raises:
    InputError: The patches do not tile the image.
  """
  batch, height, width, channels = image.shape
  rows, columns = grid_shape((height, width), patch_size)
  patch_height, patch_width = pair(patch_size)
  image = image.reshape(
    batch, rows, patch_height, columns, patch_width, channels
  )
  return image.swapaxes(2, 3)


def join(patches: jax.Array) -> jax.Array:
  """The image that patches make, the inverse of `extract`.

  Args:
    patches: [B, rows, columns, P, P', C].

  Returns:
    [B, rows * P, columns * P', C].
  """
  batch, rows, columns, height, width, channels = patches.shape
  return patches.swapaxes(2, 3).reshape(
    (batch, rows * height, columns * width, channels)
  )


def extract_overlapping(
  image: jax.Array,
  patch_size: int,
  *,
  overlap: int,
  border: Border = 'zero',
) -> jax.Array:
  """Patches that see `overlap` pixels of their neighbours on each side.

  Lee et al., 'ViTGAN', ICLR 2022
  (https://arxiv.org/abs/2107.04589): windows of P + 2 o, P apart. Each is one
  row of pixels and channels, in the order of a kernel [P + 2 o, P + 2 o, C].

  Args:
    image: [B, H, W, C].
    patch_size: P.
    overlap: o; 0 gives the rows of `extract`.
    border: What lies around the image: zeros, or its reflection.

  Returns:
    [B, H / P, W / P, (P + 2 o)^2 C].

  Raises:
    InputError: The patches do not tile the image, or `overlap` is negative or,
      with a reflection, not less than the image.
  """
  check_range('[0, inf)', overlap=overlap)
  check_choice('border', border, get_args(Border))
  batch, height, width, _ = image.shape
  rows, columns = grid_shape((height, width), patch_size)
  if border == 'reflect' and overlap >= min(height, width):
    raise InputError(
      f'{overlap=} must be less than the sides of the image, {height} and '
      f"{width}, with border='reflect'"
    )
  sides = (overlap, overlap)
  image = jnp.pad(
    image,
    ((0, 0), sides, sides, (0, 0)),
    mode={'zero': 'constant', 'reflect': 'reflect'}[border],
  )
  size = patch_size + 2 * overlap

  def windows(x, axis, count):
    """Slices of every P-th place, stacked behind that axis."""
    last = (count - 1) * patch_size + 1
    parts = [
      jax.lax.slice_in_dim(x, i, i + last, patch_size, axis)
      for i in range(size)
    ]
    return jnp.stack(parts, axis + 1)

  image = windows(image, 1, rows)  # [B, rows, size, W + 2 o, C]
  image = windows(image, 3, columns)  # [B, rows, size, columns, size, C]
  return image.swapaxes(2, 3).reshape((batch, rows, columns, -1))
