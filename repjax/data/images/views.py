"""Device code: random views of images inside of a step.

Two views of one image are what contrastive learning calls a pair (Chen,
Kornblith, Norouzi and Hinton, 'A Simple Framework for Contrastive Learning of
Visual Representations', ICML 2020, https://arxiv.org/abs/2002.05709, appendix
A). Images are floats on any scale: what is drawn for a row depends on its key.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from repjax import types

# (images [B, H, W, C], one key an image [B]) -> images of the same shape.
Views = Callable[[jax.Array, jax.Array], jax.Array]


def random_views(
  *,
  area: Sequence[float] = (0.08, 1.0),
  aspect: Sequence[float] = (3 / 4, 4 / 3),
  flip: bool = True,
  brightness: float = 0.4,
  contrast: float = 0.4,
  saturation: float = 0.4,
  size: int | None = None,
) -> Views:
  """Crop and resize, mirror, and change brightness, contrast and saturation.

  The defaults are those that the authors of STARTUP use
  (https://arxiv.org/abs/2010.07734). A crop keeps within the image: where a
  drawn side is longer than the image's, it is cut to it. Colours change by
  factors around 1, uniform in 1 +- the strength: contrast around the image's
  mean, saturation around each pixel's, and brightness by a shift of
  (factor - 1) times the image's root mean square, since the images here are
  normalized, and their zero is no black.

  Args:
    area: Range of the crop's part of the image's area; (1, 1) for none.
    aspect: Range of width / height of the crop, uniform in its logarithm.
    flip: Whether to mirror half of the images.
    brightness: Strength, in [0, 1); 0 for none.
    contrast: Strength, in [0, 1); 0 for none.
    saturation: Strength, in [0, 1); 0 for none. Changes no grey image.
    size: Side of the view, in pixels; None for that of the image.

  Raises:
    InputError: If a value is out of range.
  """
  if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
    raise types.InputError(f'area is (least, most) in (0, 1]; got {area}')
  if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
    raise types.InputError(f'aspect is (least, most) above 0; got {aspect}')
  types.check_range(
    '[0, 1)', brightness=brightness, contrast=contrast, saturation=saturation
  )

  def one(image, rng):
    rngs = jax.random.split(rng, 5)
    if tuple(area) != (1.0, 1.0) or size is not None:
      image = _cropped(image, rngs[0], area, aspect, size)
    if flip:
      image = jnp.where(jax.random.bernoulli(rngs[1]), image[:, ::-1], image)
    if contrast:
      mean = image.mean()
      image = mean + _factor(rngs[2], contrast) * (image - mean)
    if saturation and image.shape[-1] > 1:
      grey = image.mean(-1, keepdims=True)
      image = grey + _factor(rngs[3], saturation) * (image - grey)
    if brightness:
      root = jnp.sqrt(jnp.square(image).mean())
      image = image + (_factor(rngs[4], brightness) - 1) * root
    return image

  return jax.vmap(one)


def _factor(rng, strength):
  return jax.random.uniform(rng, (), jnp.float32, 1 - strength, 1 + strength)


def _cropped(image, rng, area, aspect, size):
  """A window of the image, resized to all of it, or to a square."""
  rng_area, rng_aspect, rng_place = jax.random.split(rng, 3)
  part = jax.random.uniform(rng_area, (), jnp.float32, *area)
  ratio = jnp.exp(
    jax.random.uniform(rng_aspect, (), jnp.float32, *map(jnp.log, aspect))
  )
  ratio = ratio * (image.shape[0] / image.shape[1])  # Of pixels, not of parts.
  # Height and width as parts of the image's sides.
  sides = jnp.minimum(jnp.sqrt(jnp.stack([part / ratio, part * ratio])), 1.0)
  first = jax.random.uniform(rng_place, (2,)) * (1 - sides)
  shape = image.shape if size is None else (size, size, image.shape[-1])
  lengths = jnp.asarray(shape[:2], jnp.float32)
  scale = lengths / jnp.asarray(image.shape[:2], jnp.float32)
  # Pixels are resampled bilinearly between their centres.
  return jax.image.scale_and_translate(
    image.astype(jnp.float32),
    shape,
    (0, 1),
    scale / sides,
    -first / sides * lengths,
    method='linear',
    antialias=False,
  ).astype(image.dtype)
