"""Device code: a detector of small objects in one shot.

In the manner of Liu et al., 'SSD: Single Shot MultiBox Detector', ECCV 2016
(https://arxiv.org/abs/1512.02325), for one class: on maps of several sizes of a
residual network, each place says of a default box around it whether there is an
object, and how its box differs.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.models import resnet
from repjax.types import InputError


class Detections(NamedTuple):
  """What a detector says, of D default boxes.

  Attributes:
    logits: Of an object there, [B, D], float32.
    offsets: (y, x, h, w) of its box, relative to the default one, [B, D, 4]:
      shifts over the default side, and logarithms of ratios of sides.
    defaults: The boxes themselves, (y, x, h, w) in pixels, [D, 4].
  """

  logits: jax.Array
  offsets: jax.Array
  defaults: jax.Array


class ShotDetector(nn.Module):
  """Heads of 3 x 3 convolutions on the stages of a pre-activation ResNet.

  Layers are `stem`, `stage_0`, ..., and `head_1`, ..., one for each of `maps`.

  Attributes:
    maps: Stages whose maps have a head.
    sides: Side of the default boxes of each of these, in pixels.
    stage_sizes: Number of blocks of each stage; all but the first halve maps.
    width: Channels of the first stage; they double with each.
    norm: 'batch' or 'group', as of `resnet.PreActResNet`.
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether blocks are computed again in the backward pass.
  """

  maps: Sequence[int] = (1, 2)
  sides: Sequence[float] = (3.0, 6.0)
  stage_sizes: Sequence[int] = (1, 1, 1)
  width: int = 16
  norm: resnet.Norm = 'batch'
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> Detections:
    """[B, H, W, C] -> detections."""
    if not set(self.maps) <= set(range(len(self.stage_sizes))):
      raise InputError(
        f'maps are stages, of which there are {len(self.stage_sizes)}, from 0 '
        f'on; got maps={tuple(self.maps)}'
      )
    if len(self.sides) != len(self.maps):
      raise InputError(
        'sides has one side for each of maps; got '
        f'sides={tuple(self.sides)} of maps={tuple(self.maps)}'
      )
    x = nn.Conv(
      self.width,
      (3, 3),
      padding=1,
      use_bias=False,
      dtype=self.dtype,
      name='stem',
    )(image)
    found = []
    for stage, num_blocks in enumerate(self.stage_sizes):
      x = resnet.Stage(
        'preact',
        num_blocks,
        width=self.width * 2**stage,
        stride=1 if stage == 0 else 2,
        norm=self.norm,
        dtype=self.dtype,
        remat=self.remat,
        name=f'stage_{stage}',
      )(x, train=train, mask=mask)
      if stage in self.maps:
        head = nn.Conv(
          5, (3, 3), padding=1, dtype=self.dtype, name=f'head_{stage}'
        )
        side = self.sides[list(self.maps).index(stage)]
        found.append((head(nn.relu(x)), side))
    outputs = [
      jnp.reshape(y, (len(image), -1, 5)).astype(jnp.float32) for y, _ in found
    ]
    defaults = [_defaults(y.shape[1:3], image.shape[1:3], s) for y, s in found]
    joined = jnp.concatenate(outputs, 1)
    return Detections(
      joined[..., 0], joined[..., 1:], jnp.concatenate(defaults)
    )


def _defaults(cells, image, side):
  """One box a place, places spread evenly over the image as in the paper."""
  middles = [
    (jnp.arange(n) + 0.5) * size / n
    for n, size in zip(cells, image, strict=True)
  ]
  y, x = jnp.meshgrid(*middles, indexing='ij')
  return jnp.stack([y, x, *[jnp.full(y.shape, side)] * 2], -1).reshape((-1, 4))


def decode(found: Detections) -> jax.Array:
  """Boxes (y, x, h, w) in pixels, [B, D, 4], of detections."""
  middle, side = found.defaults[None, :, :2], found.defaults[None, :, 2:]
  shift, growth = found.offsets[..., :2], found.offsets[..., 2:]
  return jnp.concatenate(
    [middle + shift * side, side * jnp.exp(jnp.clip(growth, -4, 4))], -1
  )


def encode(boxes: jax.Array, defaults: jax.Array) -> jax.Array:
  """Offsets of boxes [B, 1 or D, 4] from default ones [D, 4]: [B, D, 4]."""
  middle, side = defaults[None, :, :2], defaults[None, :, 2:]
  return jnp.concatenate(
    [
      (boxes[..., :2] - middle) / side,
      jnp.log(jnp.maximum(boxes[..., 2:], 1e-6) / side),
    ],
    -1,
  )


def overlaps(first: jax.Array, second: jax.Array) -> jax.Array:
  """Intersection over union of boxes (y, x, h, w) that broadcast, [...]."""
  low = jnp.maximum(*(b[..., :2] - b[..., 2:] / 2 for b in (first, second)))
  high = jnp.minimum(*(b[..., :2] + b[..., 2:] / 2 for b in (first, second)))
  both = jnp.prod(jnp.maximum(high - low, 0), -1)
  areas = [jnp.prod(b[..., 2:], -1) for b in (first, second)]
  return both / jnp.maximum(areas[0] + areas[1] - both, 1e-9)
