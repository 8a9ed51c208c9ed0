"""What a network sees in a part of an image: its features, averaged there.

The encoder of MILAN (Hernandez et al., ICLR 2022,
https://arxiv.org/abs/2201.11114, section 3): images go through a frozen network
whole, and a mask weighs the places of its maps. Features of several layers
stand side by side.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.layers import layer_outputs

# (variables or state, images [B, H, W, C]) -> anything.
Apply = Callable[[Any, jax.Array], Any]


def pooled(maps: jax.Array, mask: jax.Array) -> jax.Array:
  """Device code: weighted means over places; 0 where a mask is empty.

  Args:
    maps: [B, h, w, C].
    mask: [B, H, W], at least as large; it shrinks to the maps' places. (The
      authors' code picks single pixels of it there, and loses small masks.)

  Returns:
    [B, C].
  """
  weight = jax.image.resize(
    mask.astype(jnp.float32), maps.shape[:3], 'linear', antialias=True
  )
  weight = jnp.maximum(weight, 0)
  total = weight.sum((1, 2), keepdims=True)
  weight = weight / jnp.where(total > 0, total, 1)
  return jnp.einsum('bhwc,bhw->bc', maps, weight)


def of_images(
  apply_fn: Apply,
  variables: Any,
  image: np.ndarray,
  mask: np.ndarray,
  layers: Sequence[str],
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """Features of masked images, [N, D].

  Args:
    apply_fn: Applies the encoder to images as it wants them, once. Calls with
      the same one are compiled once.
    variables: Of the encoder.
    image: [N, H, W, C].
    mask: [N, H, W], bool.
    layers: Modules whose outputs [B, h, w, C] are averaged, one after the
      other; '' is the image itself.
    batch_size: Of one call.

  Raises:
    InputError: There is no layer, one is missing or has no maps, or masks are
      none of these images'.
  """
  if not layers:
    raise types.InputError('masked features need at least one layer.')
  if mask.shape != image.shape[:3]:
    raise types.InputError(
      f'masks of images {image.shape} are {image.shape[:3]}; got {mask.shape}'
    )
  program = _program(apply_fn, tuple(layers))
  found = []
  for start in range(0, len(image), batch_size):
    rows = slice(start, start + batch_size)
    lacking = batch_size - len(image[rows])
    pad = ((0, lacking), (0, 0), (0, 0))
    features = program(
      variables, np.pad(image[rows], (*pad, (0, 0))), np.pad(mask[rows], pad)
    )
    found.append(np.asarray(features)[: batch_size - lacking])
  return np.concatenate(found)


def of_exemplars(
  apply_fn: Apply,
  variables: Any,
  images: Callable[[np.ndarray], np.ndarray],
  rows: np.ndarray,
  masks: np.ndarray,
  layers: Sequence[str],
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """Features of the exemplars of units, [U, k, D].

  Args:
    apply_fn: Applies the encoder, as of `of_images`.
    variables: Of the encoder.
    images: Rows [n] -> the images [n, H, W, C].
    rows: Of the exemplars, [U, k].
    masks: [U, k, H, W].
    layers: Modules, as of `of_images`.
    batch_size: Of one call.
  """
  features = of_images(
    apply_fn,
    variables,
    images(rows.reshape(-1)),
    masks.reshape(-1, *masks.shape[2:]),
    layers,
    batch_size=batch_size,
  )
  return features.reshape(*rows.shape, -1)


@functools.lru_cache(maxsize=16)
def _program(apply_fn: Apply, layers: tuple[str, ...]):
  inner = [name for name in layers if name]

  @jax.jit
  def run(variables: Any, image: jax.Array, mask: jax.Array) -> jax.Array:
    _, outputs = layer_outputs.with_outputs_of(
      lambda: apply_fn(variables, image), inner
    )
    maps: Mapping[str, jax.Array] = {'': image.astype(jnp.float32), **outputs}
    flat = [name for name in layers if maps[name].ndim != 4]
    if flat:
      raise types.InputError(
        f'The layer {flat[0]!r} gives arrays of shape {maps[flat[0]].shape}: '
        'masked are maps [B, h, w, C].'
      )
    return jnp.concatenate([pooled(maps[name], mask) for name in layers], -1)

  return run
