"""Host side: corruptions by name, of arrays and of sets."""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import get_args
import zlib

import numpy as np

from repjax import trees
from repjax import types
from repjax.data.images.corruptions import blur
from repjax.data.images.corruptions import digital
from repjax.data.images.corruptions import kind
from repjax.data.images.corruptions import noise
from repjax.data.images.corruptions import spatter
from repjax.data.images.corruptions import weather
from repjax.data.reading import source as sources

# The 15 of the benchmark, in the order of its tables.
COMMON = (
  'gaussian_noise',
  'shot_noise',
  'impulse_noise',
  'defocus_blur',
  'glass_blur',
  'motion_blur',
  'zoom_blur',
  'snow',
  'frost',
  'fog',
  'brightness',
  'contrast',
  'elastic_transform',
  'pixelate',
  'jpeg_compression',
)
# What settings are chosen on.
HELD_OUT = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')

KINDS: Mapping[str, kind.Kind] = {
  **noise.KINDS,
  **blur.KINDS,
  **weather.KINDS,
  **digital.KINDS,
  **spatter.KINDS,
}
_AT_ONCE = 4 << 20  # Values that are worked on at once, in float64.


def corrupt(
  images: np.ndarray,
  name: str,
  *,
  severity: int,
  scale: kind.Scale = 'cifar',
  seed: int = 0,
  rows: np.ndarray | None = None,
) -> np.ndarray:
  """Corrupts images; each row by random numbers of its own.

  >>> grey = np.full((1, 8, 8, 1), 100, np.uint8)
  >>> int(corrupt(grey, 'brightness', severity=5).mean())
  176

  Args:
    images: [N, H, W, C], C = 1 or 3, uint8, or floating point in [0, 1], which
      is rounded to 256 levels first.
    name: One of `COMMON` or `HELD_OUT`.
    severity: 1 to 5.
    scale: 'cifar' or 'imagenet': the constants of CIFAR-10-C, for images of
      about 32 pixels, or those of ImageNet-C, for 224.
    seed: >= 0. With the row and the name, it decides all random numbers; the
      severities of a corruption share them.
    rows: Numbers of the rows, [N]; 0 to N - 1 if None.

  Returns:
    Images of the same shape and type.

  Raises:
    InputError: A name, severity or scale that there is not, images of another
      kind, or rows that are not one an image.
  """
  constants = _constants(name, severity, scale)
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise types.InputError(
      f'Images to corrupt are [N, H, W, 1] or [N, H, W, 3], got {images.shape}.'
    )
  is_float = np.issubdtype(images.dtype, np.floating)
  if not is_float and images.dtype != np.uint8:
    raise types.InputError(
      f'Images to corrupt are uint8 or in [0, 1], got {images.dtype}.'
    )
  if is_float and images.size and not (0 <= images.min() <= images.max() <= 1):
    raise types.InputError(
      'Images of floating point must be in [0, 1] to be corrupted, got '
      f'{images.min()} to {images.max()}: corrupt before normalising.'
    )
  levels = np.rint(images * 255).astype(np.uint8) if is_float else images
  rows = np.arange(len(images)) if rows is None else np.asarray(rows)
  if rows.shape != images.shape[:1]:
    raise types.InputError(
      f'rows are one number an image, [{len(images)}]; got {rows.shape}.'
    )
  key = zlib.crc32(name.encode())
  step = max(1, _AT_ONCE // max(1, images[:1].size))
  parts = [levels[:0]]
  for start in range(0, len(images), step):
    part = slice(start, start + step)
    rngs = [np.random.default_rng((seed, key, int(row))) for row in rows[part]]
    changed = KINDS[name].apply(levels[part] / 255, rngs, **constants)
    parts.append(blur.to_levels(changed))
  changed = np.concatenate(parts)
  return (changed / 255).astype(images.dtype) if is_float else changed


def corrupted(
  source: sources.Source,
  name: str,
  *,
  severity: int,
  scale: kind.Scale = 'cifar',
  seed: int = 0,
) -> sources.Source:
  """The set with its images corrupted whenever they are read.

  Whatever reads a set can read this one: batches, evaluation, `columns`. What a
  row looks like depends on the seed and on its number in `source` alone.

  Args:
    source: uint8 images of 1 or 3 channels; they may differ in size.
    name: One of `COMMON` or `HELD_OUT`.
    severity: 1 to 5.
    scale: Constants, 'cifar' or 'imagenet'.
    seed: Of all random numbers, >= 0.

  Raises:
    InputError: A name, severity or scale that there is not, or a set without
      such images.
  """
  _constants(name, severity, scale)
  source.check_images()
  if source.num_channels not in (1, 3):
    raise types.InputError(
      f'{source.name} has images of {source.num_channels} channels; only those '
      'of 1 or 3 can be corrupted.'
    )
  settings = dict(name=name, severity=severity, scale=scale, seed=seed)
  return dataclasses.replace(source, reader=_Corruption(source, settings))


# A callable class, so that workers can unpickle it.
@dataclasses.dataclass(frozen=True)
class _Corruption:
  source: sources.Source
  settings: Mapping[str, Any]

  def __call__(self, indices):
    columns = self.source.read(indices)
    images, indices = columns['image'], np.asarray(indices)
    if images.dtype != object:
      return {
        **columns,
        'image': corrupt(images, rows=indices, **self.settings),
      }
    changed = np.empty(len(images), object)
    for i, image in enumerate(images):
      changed[i] = corrupt(
        image[None], rows=indices[i : i + 1], **self.settings
      )[0]
    return {**columns, 'image': changed}


def _constants(name, severity, scale):
  if name not in KINDS:
    raise types.InputError(
      f'There is no corruption {name!r}.{trees.nearest(name, KINDS)} The '
      f'common ones are {", ".join(COMMON)}; held out are '
      f'{", ".join(HELD_OUT)}.'
    )
  types.check_choice('severity', severity, (1, 2, 3, 4, 5))
  types.check_choice('scale', scale, get_args(kind.Scale))
  return KINDS[name].constants[scale][severity - 1]
