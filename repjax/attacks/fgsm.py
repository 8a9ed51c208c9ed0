"""Device code: adversarial examples in an l-infinity ball.

Goodfellow, Shlens and Szegedy, 'Explaining and Harnessing Adversarial
Examples', ICLR 2015 (`fgsm`, https://arxiv.org/abs/1412.6572); Madry et al.,
'Towards Deep Learning Models Resistant to Adversarial Attacks', ICLR 2018
(`pgd`, https://arxiv.org/abs/1706.06083).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from repjax.types import InputError

# Images [B, ...] -> one loss a row, [B]; a row's depends on its image alone.
ImageLossFn = Callable[[jax.Array], jax.Array]


def fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  *,
  epsilon: float | jax.Array,
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """The fast gradient sign method: x + epsilon sign(grad), then clipped.

  Args:
    loss_fn: What the attacker makes large. A network must be in evaluation:
      batch statistics would tie rows together.
    image: [B, ...], float, within [low, high].
    epsilon: Radius of the l-infinity ball, >= 0, in the units of the image;
      broadcasts against it (one for each channel of a standardised image).
    low: Smallest allowed value; broadcasts like `epsilon`.
    high: Largest allowed value; broadcasts like `epsilon`.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high]. Where
    the gradient is zero the image stays as it is.
  """
  epsilon, low, high = (_beside(image, x) for x in (epsilon, low, high))
  gradient = jax.grad(lambda x: loss_fn(x).sum())(image)
  return jnp.clip(image + epsilon * jnp.sign(gradient), low, high)


def pgd(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array | None,
  *,
  epsilon: float | jax.Array,
  step_size: float | jax.Array,
  num_steps: int,
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Projected gradient ascent: FGSM in small steps.

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, ...], float, within [low, high].
    rng: Key of a uniform start in the ball; None starts at the image.
    epsilon: Radius of the l-infinity ball, >= 0, in the units of the image;
      broadcasts against it.
    step_size: Length of a step in every coordinate; 2.5 epsilon / num_steps is
      the authors' rule of thumb.
    num_steps: Number of steps, >= 1.
    low: Smallest allowed value; broadcasts like `epsilon`.
    high: Largest allowed value; broadcasts like `epsilon`.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].
  """
  if num_steps < 1:
    raise InputError(f'Need num_steps >= 1; got {num_steps=}')
  epsilon, step_size, low, high = (
    _beside(image, x) for x in (epsilon, step_size, low, high)
  )
  lowest = jnp.maximum(image - epsilon, low)
  highest = jnp.minimum(image + epsilon, high)
  start = image
  if rng is not None:
    start = image + epsilon * jax.random.uniform(
      rng, image.shape, image.dtype, -1.0, 1.0
    )
  return jax.lax.fori_loop(
    0,
    num_steps,
    lambda _, x: fgsm(loss_fn, x, epsilon=step_size, low=lowest, high=highest),
    jnp.clip(start, lowest, highest),
  )


def _beside(image, x):
  """A number as it is, an array with as many axes as the image."""
  missing = image.ndim - jnp.ndim(x)
  return jnp.expand_dims(x, tuple(range(missing))) if jnp.ndim(x) else x
