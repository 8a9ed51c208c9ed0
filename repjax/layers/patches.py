"""Device code: cut an image into patches."""

import jax

from repjax.types import InputError


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
