"""Device code: images resized at random and put somewhere on a larger canvas.

Xie et al., 'Improving Transferability of Adversarial Examples with Input
Diversity', CVPR 2019, section 3.2 (https://arxiv.org/abs/1803.06978).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from repjax.attacks import smoothing
from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputDiversity:
  """(key, images) -> images of the same shape; one draw for a whole batch.

  Attributes:
    smallest: Least side that an image gets, over its own.
    largest: Largest one.
    canvas: Side of what it is put on, over its own, >= `largest`; the place is
      random and the rest is 0. The whole is then scaled back.
    probability: That a batch is resized at all.
    interpolation: 'linear', or 'nearest' as in the code of Naseer et al.
      (ICLR 2022, https://arxiv.org/abs/2106.04169).
  """

  smallest: float = 1.0
  largest: float = 256 / 224
  canvas: float = 256 / 224
  probability: float = 1.0
  interpolation: Literal['linear', 'nearest'] = 'linear'

  def __post_init__(self):
    check_range('[0, 1]', probability=self.probability)
    check_choice('interpolation', self.interpolation, ('linear', 'nearest'))
    if not 0 < self.smallest <= self.largest <= self.canvas:
      raise InputError(
        'Need 0 < smallest <= largest <= canvas; got '
        f'smallest={self.smallest}, largest={self.largest}, '
        f'canvas={self.canvas}'
      )

  def check(self, shape: tuple[int, ...]) -> None:
    """Raises InputError if there is nothing to resize.

    Args:
      shape: Of images.
    """
    if len(shape) != 4 or shape[1] != shape[2]:
      raise InputError(
        f'input diversity needs square images [B, H, H, C]; got {list(shape)}'
      )
    if round(self.smallest * shape[1]) < 1:
      raise InputError(
        f'smallest={self.smallest} leaves nothing of {shape[1]} pixels'
      )

  def __call__(self, rng: jax.Array, image: jax.Array) -> jax.Array:
    """[B, H, H, C] -> [B, H, H, C]."""
    side = image.shape[1]
    key_size, key_y, key_x, key_whether = jax.random.split(rng, 4)
    canvas = round(self.canvas * side)
    size = jax.random.randint(
      key_size, (), round(self.smallest * side), round(self.largest * side) + 1
    )
    rows, columns = (
      _placed(
        side,
        size,
        canvas,
        jax.random.randint(key, (), 0, canvas - size + 1),
        self.interpolation,
      )
      for key in (key_y, key_x)
    )
    seen = smoothing.both_sides(image, rows, columns)
    if canvas != side:
      back = _placed(canvas, side, side, 0, self.interpolation)
      seen = smoothing.both_sides(seen, back, back)
    resized = jax.random.uniform(key_whether) < self.probability
    return jnp.where(resized, seen, image)


def _placed(side, size, canvas, offset, interpolation):
  """[canvas, side]: weights of old pixels in new ones.

  `side` pixels become `size` of them, which begin at `offset` of the canvas.
  """
  at = jnp.arange(canvas) - offset
  inside = (at >= 0) & (at < size)
  if interpolation == 'nearest':
    first = at * side // size
    part = jnp.zeros(canvas)
  else:  # Centres of pixels fall on centres, as in PyTorch and TensorFlow 2.
    place = (at + 0.5) * side / size - 0.5
    first = jnp.floor(place).astype(jnp.int32)
    part = place - first
  first, last = (jnp.clip(x, 0, side - 1) for x in (first, first + 1))
  weights = (1 - part)[:, None] * jax.nn.one_hot(first, side)
  weights += part[:, None] * jax.nn.one_hot(last, side)
  return weights * inside[:, None]
