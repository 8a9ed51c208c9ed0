"""Device code: crops inside of a step, of images never seen by the host."""

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax import types
from repjax.types import InputError


def random_crops(
  image: jax.Array, rngs: jax.Array, *, size: int, padding: int = 0
) -> jax.Array:
  """One window of each image, anywhere in it.

  The authors of PAD (https://arxiv.org/abs/2007.04309) never draw the last
  place of a window; here it is as likely as the others.

  Args:
    image: [B, H, W, C].
    rngs: One key an image, [B].
    size: Side of the windows.
    padding: Pixels by which an image's edge is repeated on each side before.

  Returns:
    [B, size, size, C].

  Raises:
    InputError: If a window is larger than the padded image.
  """
  if padding:
    around = (padding, padding)
    image = jnp.pad(image, ((0, 0), around, around, (0, 0)), mode='edge')
  spare = _spare(image, size)

  def one(image, rng):
    top, left = jax.random.randint(rng, (2,), 0, jnp.asarray(spare) + 1)
    return jax.lax.dynamic_slice(
      image, (top, left, 0), (size, size, image.shape[-1])
    )

  return jax.vmap(one)(image, rngs)


def of_transitions(
  batch: types.Batch, rng: jax.Array, *, size: int, padding: int = 0
) -> dict[str, jax.Array]:
  """Windows of 'image' and 'next_image' [B, H, W, C], each with its own place.

  As in PAD: of the motion between both, what is seen against the rest of the
  picture is left.
  """
  num = batch['mask'].shape[0]
  first, second = jax.random.split(rng)
  return {
    **batch,
    **{
      name: random_crops(
        batch[name], parallel.row_rngs(key, num), size=size, padding=padding
      )
      for name, key in (('image', first), ('next_image', second))
    },
  }


def center_crop(image: jax.Array, *, size: int) -> jax.Array:
  """The middle of each image, [B, H, W, C] -> [B, size, size, C].

  Raises:
    InputError: If the window is larger than the image.
  """
  top, left = (x // 2 for x in _spare(image, size))
  return image[:, top : top + size, left : left + size]


def _spare(image, size):
  height, width = image.shape[1:3]
  if not 1 <= size <= min(height, width):
    raise InputError(
      f'a crop of {size} x {size} pixels is not in an image of {height} x '
      f'{width}: change its size'
    )
  return height - size, width - size
