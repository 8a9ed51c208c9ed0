"""Device code: random views of images that gradients go through.

Zhao, Liu, Lin, Zhu and Han, 'Differentiable Augmentation for Data-Efficient GAN
Training', NeurIPS 2020 (https://arxiv.org/abs/2006.10738). ViTGAN augments all
that its discriminator sees, each kind with a probability (Lee et al., ICLR
2022, https://arxiv.org/abs/2107.04589).

| kind | what is drawn for a row |
|---|---|
| 'colour' | brightness + U(-.5, .5), saturation U(0, 2), contrast U(.5, 1.5) |
| 'scale' | zoom around the middle by 2^N(0, .2^2), bilinear, zeros outside |
| 'translation' | shift by up to 1/8 of each side, in pixels, zeros outside |
| 'cutout' | a square of half of the sides is 0, its centre anywhere |

They are applied in this order. Zeros are in the images' own units: values go
from -1 to 1. Grey images have no saturation.
"""

from collections.abc import Sequence
from typing import Literal
from typing import get_args

import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_range

Kind = Literal['colour', 'scale', 'translation', 'cutout']

# Spread of log2 of a zoom, as in Karras et al., 'Training Generative
# Adversarial Networks with Limited Data', NeurIPS 2020.
_ZOOM = 0.2


def check(kinds: Sequence[str], probability: float) -> None:
  """Raises InputError for an unknown kind, or a probability that is none."""
  unknown = [x for x in kinds if x not in get_args(Kind)]
  if unknown:
    raise InputError(
      f'augmentations are {", ".join(get_args(Kind))}; got {unknown}'
    )
  check_range('[0, 1]', probability=probability)


def augment(
  image: jax.Array,
  rngs: jax.Array,
  *,
  kinds: Sequence[Kind] = get_args(Kind),
  probability: float = 1.0,
  ratio: float = 0.125,
  cutout: float = 0.5,
) -> jax.Array:
  """One view of each row.

  Args:
    image: [B, H, W, C], in [-1, 1].
    rngs: One key a row, [B]: a row's view depends on nothing else.
    kinds: Which kinds; () changes nothing.
    probability: Of each kind, for a row. DiffAugment's is 1, that of ViTGAN's
      code 0.8, and 0.3 for cutout.
    ratio: Largest shift over the side.
    cutout: Side of the square over that of the image.

  Returns:
    [B, H, W, C].

  Raises:
    InputError: If a kind is unknown or a number out of range.
  """
  check(kinds, probability)
  check_range('[0, 1]', ratio=ratio, cutout=cutout)

  def one(image, rng):
    for place, kind in enumerate(get_args(Kind)):
      if kind not in kinds:
        continue
      key = jax.random.fold_in(rng, place)
      key_whether, key = jax.random.split(key)
      if kind == 'colour':
        made = _coloured(image, key)
      elif kind == 'scale':
        made = _zoomed(image, key)
      elif kind == 'translation':
        made = _shifted(image, key, ratio)
      else:
        made = _cut(image, key, cutout)
      whether = jax.random.bernoulli(key_whether, probability)
      image = jnp.where(whether, made, image)
    return image

  return jax.vmap(one)(image, rngs) if kinds else image


def _coloured(image, key):
  keys = jax.random.split(key, 3)
  brightness, saturation, contrast = (
    jax.random.uniform(key, (), image.dtype, low, high)
    for key, low, high in zip(
      keys, (-0.5, 0.0, 0.5), (0.5, 2.0, 1.5), strict=True
    )
  )
  image = image + brightness
  if image.shape[-1] > 1:
    grey = image.mean(-1, keepdims=True)
    image = (image - grey) * saturation + grey
  middle = image.mean()
  return (image - middle) * contrast + middle


def _zoomed(image, key):
  """Bilinear, as one matrix for rows and one for columns."""
  zoom = 2.0 ** (_ZOOM * jax.random.normal(key, (), image.dtype))

  def weights(size):
    middle = (size - 1) / 2
    places = jnp.arange(size, dtype=image.dtype)
    seen = (places - middle) / zoom + middle
    return jax.nn.relu(1 - abs(seen[:, None] - places[None]))

  return _resampled(image, weights)


def _shifted(image, key, ratio):
  keys = iter(jax.random.split(key))

  def weights(size):
    most = int(size * ratio + 0.5)
    shift = jax.random.randint(next(keys), (), -most, most + 1)
    places = jnp.arange(size)
    # The one at place i comes from i - shift.
    return (places[None] == places[:, None] - shift).astype(image.dtype)

  return _resampled(image, weights)


def _resampled(image, weights):
  rows, columns = (weights(size) for size in image.shape[:2])
  return jnp.einsum('ia,jb,abc->ijc', rows, columns, image, precision='highest')


def _cut(image, key, ratio):
  inside = None
  for axis, key_axis in enumerate(jax.random.split(key)):
    size = image.shape[axis]
    side = int(size * ratio + 0.5)
    centre = jax.random.randint(key_axis, (), 0, size + 1 - side % 2)
    first = centre - side // 2
    places = jnp.arange(size)
    within = (places >= first) & (places < first + side)
    within = jnp.expand_dims(within, tuple({0, 1, 2} - {axis}))
    inside = within if inside is None else inside & within
  return jnp.where(inside, jnp.zeros((), image.dtype), image)
