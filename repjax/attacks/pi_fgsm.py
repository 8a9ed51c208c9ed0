"""Device code: steps beyond the ball, whose excess moves the pixels around.

Gao et al., 'Patch-wise Attack for Fooling Deep Neural Network', ECCV 2020
(https://arxiv.org/abs/2007.06765).
"""

import functools

import jax
import jax.numpy as jnp

from repjax.attacks import ascent
from repjax.types import InputError
from repjax.types import check_range


def pi_fgsm(
  loss_fn: ascent.ImageLossFn,
  image: jax.Array,
  *,
  epsilon: float | jax.Array,
  num_steps: int = 10,
  amplification: float = 10.0,
  size: int = 3,
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Long steps; what a pixel has beyond epsilon is passed on to its patch.

  Algorithm 1 of the paper. A step is amplification * epsilon / num_steps, and
  steps are added up, before they are clipped. Where that sum exceeds epsilon,
  the signs of the excess around a pixel (not of its own), added over the
  patch, move the pixel by a step more, which joins the sum.

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, H, W, C], float, within [low, high].
    epsilon: Radius of the l-infinity ball, in the units of the image.
    num_steps: Number of steps, >= 1.
    amplification: beta in the paper, > 0; up to 1 no sum exceeds epsilon, and
      these are the steps of PGD.
    size: Side of a patch in pixels, odd.
    low: Smallest allowed value; broadcasts against the image.
    high: Largest allowed value; broadcasts against the image.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].

  Raises:
    InputError: A setting is out of range, or images are not within [low, high].
  """
  check_range('[1, inf)', num_steps=num_steps, size=size)
  check_range('(0, inf)', amplification=amplification)
  if size % 2 == 0:
    raise InputError(f'a patch has an odd number of pixels; got {size=}')
  return ascent.ascend(
    loss_fn,
    image,
    None,
    epsilon=epsilon,
    step_size=epsilon * (amplification / num_steps),
    num_steps=num_steps,
    # In steps, epsilon is this.
    pass_on=functools.partial(
      _around, limit=num_steps / amplification, size=size
    ),
    low=low,
    high=high,
  )


def _around(total, *, limit, size):
  """Signs of what pixels around one have beyond the limit, [B, H, W, C]."""
  sign = jnp.sign(total) * (abs(total) > limit)

  def around(x):
    patches = jax.lax.reduce_window(
      x, 0.0, jax.lax.add, (1, size, size, 1), (1, 1, 1, 1), 'SAME'
    )
    return patches - x

  # Sums of whole steps, and of signs, are exact; of what is beyond the limit
  # they are not, and a rest of rounding would be a whole step.
  steps = around(abs(total) * sign)
  excess = steps - limit * around(sign)
  exact = abs(excess) > 1e-5 * jnp.maximum(abs(steps), 1)
  return jnp.sign(excess) * exact
