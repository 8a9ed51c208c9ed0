"""Device code: gradient sign attacks, of one step and of many.

| attack | what it adds to the sign of the gradient |
|---|---|
| `fgsm` | nothing: one step |
| `r_fgsm` | a random step before it |
| `pgd` | many small steps in the ball |
| `mi_fgsm` | a momentum of gradients |
| `di_fgsm` | gradients of randomly resized images |
| `ti_fgsm` | smoothed gradients |

All are for images [B, ...] and a loss of each of them, which `losses` makes of
any classifier.
"""

import jax
import jax.numpy as jnp
import numpy as np

from repjax.attacks import ascent
from repjax.attacks import input_diversity
from repjax.attacks import smoothing
from repjax.types import InputError
from repjax.types import check_range

ImageLossFn = ascent.ImageLossFn


def fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  *,
  epsilon: float | jax.Array,
  norm: ascent.Norm = 'linf',
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """The fast gradient sign method: x + epsilon sign(grad), then clipped.

  With norm='l2' it is the step of length epsilon along the gradient.

  Goodfellow, Shlens and Szegedy, 'Explaining and Harnessing Adversarial
  Examples', ICLR 2015 (https://arxiv.org/abs/1412.6572).

  Args:
    loss_fn: What the attacker makes large. A network must be in evaluation:
      batch statistics would tie rows together.
    image: [B, ...], float, within [low, high].
    epsilon: Radius of the ball, >= 0, in the units of the image; broadcasts
      against it where `norm` is 'linf' (one for each channel of a standardised
      image).
    norm: 'linf' or 'l2'.
    low: Smallest allowed value; broadcasts against the image.
    high: Largest allowed value; broadcasts against the image.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high]. Where
    the gradient is zero the image stays as it is.
  """
  return ascent.ascend(
    loss_fn,
    image,
    None,
    epsilon=epsilon,
    step_size=epsilon,
    num_steps=1,
    norm=norm,
    low=low,
    high=high,
  )


def r_fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array,
  *,
  epsilon: float | jax.Array,
  random_step: float | jax.Array,
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """A random step of signs, then the gradient's with what is left of epsilon.

  Tramer et al., 'Ensemble Adversarial Training', ICLR 2018, eq. 7
  (https://arxiv.org/abs/1705.07204).

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, ...], float, within [low, high].
    rng: Key of the random step.
    epsilon: Radius of the l-infinity ball, in the units of the image.
    random_step: Length of the random step, alpha in the paper, in
      [0, epsilon].
    low: Smallest allowed value.
    high: Largest allowed value.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].

  Raises:
    InputError: `random_step` is negative or longer than `epsilon`, or images
      are not within [low, high].
  """
  known = not any(
    isinstance(x, jax.core.Tracer) for x in (epsilon, random_step)
  )
  alpha = np.asarray(random_step) if known else np.zeros(())
  if known and not np.all((alpha >= 0) & (alpha <= np.asarray(epsilon))):
    raise InputError(
      'random_step must be at least 0 and at most epsilon; got '
      f'{random_step=}, {epsilon=}'
    )
  ascent.check_box(image, low, high)
  image, given = ascent.single(image)
  epsilon, random_step, low, high = (
    ascent.beside(image, x) for x in (epsilon, random_step, low, high)
  )
  noise = jnp.sign(jax.random.normal(rng, image.shape, image.dtype))
  start = jnp.clip(image + random_step * noise, low, high)
  found = fgsm(
    loss_fn, start, epsilon=epsilon - random_step, low=low, high=high
  )
  return found.astype(given)


def pgd(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array | None,
  *,
  epsilon: float | jax.Array,
  step_size: float | jax.Array,
  num_steps: int,
  norm: ascent.Norm = 'linf',
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Projected gradient ascent: FGSM in small steps.

  Madry et al., 'Towards Deep Learning Models Resistant to Adversarial Attacks',
  ICLR 2018 (https://arxiv.org/abs/1706.06083).

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, ...], float, within [low, high].
    rng: Key of a uniform start in the ball; None starts at the image.
    epsilon: Radius of the ball, >= 0, in the units of the image; broadcasts
      against it where `norm` is 'linf'.
    step_size: Length of a step; 2.5 epsilon / num_steps is the authors' rule of
      thumb.
    num_steps: Number of steps, >= 1.
    norm: 'linf' steps along signs, 'l2' along the gradient.
    low: Smallest allowed value; broadcasts against the image.
    high: Largest allowed value; broadcasts against the image.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].
  """
  return ascent.ascend(
    loss_fn,
    image,
    rng,
    epsilon=epsilon,
    step_size=step_size,
    num_steps=num_steps,
    norm=norm,
    random_start=rng is not None,
    low=low,
    high=high,
  )


def mi_fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  *,
  epsilon: float | jax.Array,
  num_steps: int = 10,
  step_size: float | jax.Array | None = None,
  decay: float = 1.0,
  norm: ascent.Norm = 'linf',
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Steps along a momentum of gradients, which transfers better.

  Dong et al., 'Boosting Adversarial Attacks with Momentum', CVPR 2018,
  algorithm 1 (https://arxiv.org/abs/1710.06081). Gradients are divided by the
  mean of their absolute values, as in the authors' code; the text has the sum,
  which moves no pixel elsewhere.

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, ...], float, within [low, high].
    epsilon: Radius of the ball, in the units of the image.
    num_steps: Number of steps, >= 1.
    step_size: Length of a step; None for epsilon / num_steps, as in the paper.
    decay: Of the momentum, mu in the paper; 0 is PGD without a random start.
    norm: 'linf' or 'l2'.
    low: Smallest allowed value.
    high: Largest allowed value.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].
  """
  return ascent.ascend(
    loss_fn,
    image,
    None,
    epsilon=epsilon,
    step_size=_step_size(step_size, epsilon, num_steps),
    num_steps=num_steps,
    norm=norm,
    decay=decay,
    low=low,
    high=high,
  )


def di_fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array,
  *,
  epsilon: float | jax.Array,
  num_steps: int = 10,
  step_size: float | jax.Array | None = None,
  decay: float = 1.0,
  diversity: input_diversity.InputDiversity = input_diversity.InputDiversity(),
  norm: ascent.Norm = 'linf',
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """MI-FGSM whose gradients are of images that are resized at random.

  Xie et al., 'Improving Transferability of Adversarial Examples with Input
  Diversity', CVPR 2019 (https://arxiv.org/abs/1803.06978).

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, H, W, C], float, within [low, high].
    rng: Key of the sizes and places.
    epsilon: Radius of the ball, in the units of the image.
    num_steps: Number of steps, >= 1.
    step_size: Length of a step; None for epsilon / num_steps.
    decay: Of the momentum; 0 for none.
    diversity: How images are resized.
    norm: 'linf' or 'l2'.
    low: Smallest allowed value.
    high: Largest allowed value.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].
  """
  diversity.check(image.shape)
  return ascent.ascend(
    loss_fn,
    image,
    rng,
    epsilon=epsilon,
    step_size=_step_size(step_size, epsilon, num_steps),
    num_steps=num_steps,
    decay=decay,
    see=diversity,
    norm=norm,
    low=low,
    high=high,
  )


def ti_fgsm(
  loss_fn: ImageLossFn,
  image: jax.Array,
  rng: jax.Array | None = None,
  *,
  epsilon: float | jax.Array,
  num_steps: int = 10,
  step_size: float | jax.Array | None = None,
  decay: float = 0.0,
  size: int = 15,
  sigmas: float = 3.0,
  diversity: input_diversity.InputDiversity | None = None,
  norm: ascent.Norm = 'linf',
  low: float | jax.Array = 0.0,
  high: float | jax.Array = 1.0,
) -> jax.Array:
  """Steps along smoothed gradients: those of many shifted images at once.

  Dong et al., 'Evading Defenses to Transferable Adversarial Examples by
  Translation-Invariant Attacks', CVPR 2019, eq. 7
  (https://arxiv.org/abs/1904.02884).

  Args:
    loss_fn: What the attacker makes large, of a network in evaluation.
    image: [B, H, W, C], float, within [low, high].
    rng: Key of `diversity`; None without it.
    epsilon: Radius of the ball, in the units of the image.
    num_steps: Number of steps, >= 1.
    step_size: Length of a step; None for epsilon / num_steps.
    decay: Of a momentum; 0 for none.
    size: Side of the kernel in pixels, odd.
    sigmas: Standard deviations of the Gaussian from the kernel's centre to that
      of its last pixel.
    diversity: Resizes images at random, too, as the authors' strongest attack
      does; None for no.
    norm: 'linf' or 'l2'.
    low: Smallest allowed value.
    high: Largest allowed value.

  Returns:
    Images like `image`, within `epsilon` of it and within [low, high].
  """
  if diversity is not None:
    diversity.check(image.shape)
  kernel = smoothing.gaussian(size, sigmas)
  return ascent.ascend(
    loss_fn,
    image,
    rng,
    epsilon=epsilon,
    step_size=_step_size(step_size, epsilon, num_steps),
    num_steps=num_steps,
    decay=decay,
    see=diversity,
    smooth=lambda gradient: smoothing.smooth(gradient, kernel),
    norm=norm,
    low=low,
    high=high,
  )


def _step_size(step_size, epsilon, num_steps):
  check_range('[1, inf)', num_steps=num_steps)
  return epsilon / num_steps if step_size is None else step_size
