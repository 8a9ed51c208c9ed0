"""Attacks by the names and numbers that a flag gives."""

from collections.abc import Callable
from typing import Any

import jax

from repjax.attacks import ascent
from repjax.attacks import fgsm
from repjax.attacks import input_diversity
from repjax.attacks import pi_fgsm


def attack(
  name: str,
  *,
  epsilon: float,
  num_steps: int,
  step_size: float,
  norm: ascent.Norm,
  decay: float,
  random_start: bool,
) -> Callable[[ascent.ImageLossFn, jax.Array, jax.Array], jax.Array]:
  """(loss, pixels in [0, 1], key) -> changed pixels.

  Args:
    name: Of a function of `attacks.fgsm`, or 'pi_fgsm'.
    epsilon: Radius of the ball.
    num_steps: Of those that take several.
    step_size: 0 for the usual one of each; 'pi_fgsm' makes it ten times as
      long.
    norm: Of all but 'r_fgsm' and 'pi_fgsm', which are of signs.
    decay: Of the momentum of those that have one.
    random_start: Of 'pgd'.
  """
  some: dict[str, Any] = dict(epsilon=epsilon, num_steps=num_steps)
  momentum = dict(**some, step_size=step_size or None, decay=decay, norm=norm)

  def larger(loss_fn, pixels, rng):
    # A canvas of a seventh more, as the paper's 256 of 224 pixels.
    side = 1 + max(1, round(pixels.shape[1] / 7)) / pixels.shape[1]
    diversity = input_diversity.InputDiversity(largest=side, canvas=side)
    return fgsm.di_fgsm(loss_fn, pixels, rng, diversity=diversity, **momentum)

  def smoothed(loss_fn, pixels, rng):
    del rng  # Nothing is random.
    # The paper's kernel of 15 pixels is for images of 299.
    size = min(15, pixels.shape[1] // 8 * 2 + 1)
    return fgsm.ti_fgsm(loss_fn, pixels, size=size, **momentum)

  def patch_wise(loss_fn, pixels, rng):
    del rng  # Nothing is random.
    longer = step_size * num_steps / epsilon if step_size and epsilon else 1.0
    return pi_fgsm.pi_fgsm(loss_fn, pixels, amplification=10 * longer, **some)

  known = dict(
    fgsm=lambda loss_fn, pixels, rng: fgsm.fgsm(
      loss_fn, pixels, epsilon=epsilon, norm=norm
    ),
    r_fgsm=lambda loss_fn, pixels, rng: fgsm.r_fgsm(
      loss_fn, pixels, rng, epsilon=epsilon, random_step=epsilon / 4
    ),
    pgd=lambda loss_fn, pixels, rng: fgsm.pgd(
      loss_fn,
      pixels,
      rng if random_start else None,
      step_size=step_size or 2.5 * epsilon / num_steps,
      norm=norm,
      **some,
    ),
    mi_fgsm=lambda loss_fn, pixels, rng: fgsm.mi_fgsm(
      loss_fn, pixels, **momentum
    ),
    di_fgsm=larger,
    ti_fgsm=smoothed,
    pi_fgsm=patch_wise,
  )
  return known[name]
