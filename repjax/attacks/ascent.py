"""Device code: steps uphill on a loss, in a ball around images.

What attacks share. They differ in what the loss sees (`see`), in what becomes
of its gradient (`smooth`, `decay`), and in where and how far they step
(`pass_on`).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

# Images [B, ...] -> one loss a row, [B]; a row's depends on its image alone.
ImageLossFn = Callable[[jax.Array], jax.Array]
Norm = Literal['linf', 'l2']

# Gradients below it count as none.
_TINY = 1e-12


def ascend(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array | None,
  *,
  epsilon: float | jax.Array,
  step_size: float | jax.Array,
  num_steps: int,
  norm: Norm = 'linf',
  random_start: bool = False,
  decay: float = 0.0,
  see: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  smooth: Callable[[jax.Array], jax.Array] | None = None,
  pass_on: Callable[[jax.Array], jax.Array] | None = None,
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Projected gradient ascent.

  Args:
    loss_fn: What the attacker makes large. A network must be in evaluation:
      batch statistics would tie rows together.
    image: [B, ...], float, within [low, high]. Of half precision it is
      attacked in float32, and rounded in the end.
    rng: Key of a random start and of `see`; None where nothing is random.
    epsilon: Radius of the ball, >= 0, in the units of the image. For 'linf' it
      broadcasts against the image (one for each channel of a standardised
      image); for 'l2' it is one number.
    step_size: Length of a step in `norm`; broadcasts like `epsilon`.
    num_steps: Number of steps, >= 1.
    norm: 'linf' steps along the gradient's sign, 'l2' along the gradient, and
      each stays in its ball.
    random_start: Whether to start at a uniform point of the ball.
    decay: Of a momentum of gradients, >= 0; each is divided by the mean of its
      row's absolute values first.
    see: (key, images) -> what the loss is taken of; a new key each step.
    smooth: Gradient [B, ...] -> the gradient that is followed.
    pass_on: Sum of all steps [B, ...], the present one's among them and as if
      nothing was clipped -> what is added to this step. Both are in units of
      `step_size`.
    low: Smallest allowed value; broadcasts against the image.
    high: Largest allowed value; broadcasts against the image.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high]. A row
    whose gradient is zero stays as it is.

  Raises:
    InputError: A setting is out of range, a key is needed, or an image is not
      within [low, high]; what is traced is not checked.
  """
  check_choice('norm', norm, ('linf', 'l2'))
  check_range('[1, inf)', num_steps=num_steps)
  check_range('[0, inf)', decay=decay)
  for name, value in dict(epsilon=epsilon, step_size=step_size).items():
    # `np.asarray`: inside of a jitted function all that JAX computes is traced.
    known = not isinstance(value, jax.core.Tracer)
    if known and not np.asarray(value).min() >= 0:
      raise InputError(f'{name} must be >= 0; got {value}')
    if norm == 'l2' and jnp.ndim(value):
      raise InputError(f"{name} is one number for norm='l2'; got {value}")
  if rng is None and (random_start or see is not None):
    raise InputError('what is random in this attack needs a key: give rng')
  check_box(image, low, high)
  image, given = single(image)
  epsilon, step_size, low, high = (
    beside(image, x) for x in (epsilon, step_size, low, high)
  )
  key = jax.random.key(0) if rng is None else rng
  key_start, key_steps = jax.random.split(key)

  def project(x):
    if norm == 'l2':
      delta = x - image
      length = _row_norm(delta)
      x = image + delta * jnp.minimum(1, epsilon / jnp.maximum(length, _TINY))
      return jnp.clip(x, low, high)
    lowest = jnp.maximum(image - epsilon, low)
    highest = jnp.minimum(image + epsilon, high)
    return jnp.clip(x, lowest, highest)

  def step(carry, index):
    x, momentum, total = carry
    seen = see
    if seen is not None:
      rng = jax.random.fold_in(key_steps, index)
      sum_fn = lambda x: loss_fn(seen(rng, x)).sum()  # noqa: E731
    else:
      sum_fn = lambda x: loss_fn(x).sum()  # noqa: E731
    gradient = jax.grad(sum_fn)(x)
    if smooth is not None:
      gradient = smooth(gradient)
    if decay:
      gradient = gradient / jnp.maximum(_row_mean(abs(gradient)), _TINY)
      gradient = momentum = decay * momentum + gradient
    move = direction(gradient, norm)
    if pass_on is not None:
      move = move + pass_on(total + move)
      total = total + move
    return (project(x + step_size * move), momentum, total), None

  start = image
  if random_start:
    start = image + epsilon * _in_ball(key_start, image, norm)
  carry = (
    project(start),
    jnp.zeros_like(image) if decay else (),
    jnp.zeros_like(image) if pass_on is not None else (),
  )
  (x, _, _), _ = jax.lax.scan(step, carry, jnp.arange(num_steps))
  return x.astype(given)


def single(image: jax.Array) -> tuple[jax.Array, jnp.dtype]:
  """(images in float32 at the least, the type that they had)."""
  image = jnp.asarray(image)
  given = image.dtype
  if not jnp.issubdtype(given, jnp.floating):
    raise InputError(f'images must be floating-point numbers; got {given}')
  return image.astype(jnp.promote_types(given, jnp.float32)), given


def direction(gradient: jax.Array, norm: Norm) -> jax.Array:
  """What a step of length 1 in a norm adds; 0 for rows without a gradient.

  Raises:
    InputError: If there is no such norm.
  """
  check_choice('norm', norm, ('linf', 'l2'))
  if norm == 'linf':
    return jnp.sign(gradient)
  return gradient / jnp.maximum(_row_norm(gradient), _TINY)


def beside(image: jax.Array, x: float | jax.Array) -> float | jax.Array:
  """A number as it is, an array with as many axes as the image."""
  missing = image.ndim - jnp.ndim(x)
  return jnp.expand_dims(x, tuple(range(missing))) if jnp.ndim(x) else x


def check_box(
  image: jax.Array, low: float | jax.Array, high: float | jax.Array
) -> None:
  """Refuses images that an attack would first of all cut to its box.

  Args:
    image: [B, ...].
    low: Smallest allowed value; broadcasts against the image.
    high: Largest allowed value; broadcasts against the image.

  Raises:
    InputError: A value that is known (nothing that is traced is) lies outside
      of [low, high], by more than rounding, or no value lies in it.
  """
  known = [not isinstance(x, jax.core.Tracer) for x in (image, low, high)]
  units = "give low and high in the image's units"
  if all(known[1:]) and not np.all(np.asarray(low) <= np.asarray(high)):
    raise InputError(f'need low <= high: {units}; got {low=}, {high=}')
  if all(known):
    values, lowest, highest = (np.asarray(x) for x in (image, low, high))
    least = 1e-6
    if jnp.issubdtype(
      values.dtype, jnp.floating
    ):  # Half precision rounds more.
      least = max(least, float(jnp.finfo(values.dtype).eps))
    # No value that is no number is within, either.
    above = values >= lowest - least * np.maximum(1, abs(lowest))
    below = values <= highest + least * np.maximum(1, abs(highest))
    if not (above & below).all():
      raise InputError(
        f'images from {values.min():g} to {values.max():g} are not within '
        f'[low, high]: {units}; got {low=}, {high=}'
      )


def _in_ball(rng, image, norm):
  """Uniform points of the unit ball around 0, like `image`."""
  if norm == 'linf':
    return jax.random.uniform(rng, image.shape, image.dtype, -1.0, 1.0)
  key_direction, key_radius = jax.random.split(rng)
  normal = jax.random.normal(key_direction, image.shape, image.dtype)
  rows = (len(image),) + (1,) * (image.ndim - 1)
  radius = jax.random.uniform(key_radius, rows, image.dtype)
  return direction(normal, 'l2') * radius ** (len(image) / image.size)


def _row_mean(x):
  return x.mean(tuple(range(1, x.ndim)), keepdims=True)


def _row_norm(x):
  return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim)), keepdims=True))
