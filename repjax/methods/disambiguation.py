"""Device code: prototypes of classes, and targets that move to the nearest.

How PiCO finds out which candidate label is right (Wang et al., 'PiCO:
Contrastive Label Disambiguation for Partial Label Learning', ICLR 2022, section
3.2). https://arxiv.org/abs/2201.08984
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from repjax import types
from repjax.methods import contrastive


def moved_prototypes(
  prototypes: jax.Array,
  query: jax.Array,
  guess: jax.Array,
  mask: jax.Array,
  *,
  momentum: float,
) -> jax.Array:
  """Prototypes after all rows of a step, one after the other (eq. 6).

  mu_c <- momentum mu_c + (1 - momentum) q for each row with the guess c, in
  order, and then every class is normalised once. Here in closed form: a row
  counts (1 - momentum) momentum^(rows of its class after it).

  Args:
    prototypes: [C, D].
    query: Embeddings of the step's rows, [B, D].
    guess: Their classes, [B].
    mask: 1 for a real row, [B].
    momentum: In [0, 1].
  """
  member = jax.nn.one_hot(guess, len(prototypes)) * (mask > 0)[:, None]
  number = member.sum(0)
  after = number[None] - jnp.cumsum(
    member, 0
  )  # [B, C], rows of a class to come.
  share = (1 - momentum) * member * jnp.power(float(momentum), after)
  moved = jnp.power(float(momentum), number)[:, None] * prototypes
  moved += jnp.matmul(share.T, query, precision=jax.lax.Precision.HIGHEST)
  return contrastive.unit(moved)


def moved_targets(
  targets: jax.Array,
  scores: jax.Array,
  inside: jax.Array,
  momentum: jax.typing.ArrayLike,
) -> jax.Array:
  """Targets a step closer to the candidate with the nearest prototype (eq. 5).

  Args:
    targets: [B, C].
    scores: Similarities to the prototypes, [B, C]. Of equal ones (zero, where
      no class was guessed yet) the first candidate is taken, as theirs.
    inside: Which classes are candidates, bool [B, C].
    momentum: phi, in [0, 1].
  """
  nearest = jnp.where(inside, scores, -jnp.inf).argmax(-1)
  one_hot = jax.nn.one_hot(nearest, targets.shape[-1])
  moved = momentum * targets + (1 - momentum) * one_hot
  return jnp.where(inside, moved, 0)


def falling_momentum(
  start: float, end: float, *, steps: int, steps_per_epoch: int
) -> Callable[[jax.Array], jax.Array]:
  """Phi of the authors' code over steps.

  It is set after each epoch, by that epoch's number: `start` in epoch 1, then
  linear towards `end`. In epoch 0 it is .99, which counts where there is no
  warm-up.

  Args:
    start: phi of epoch 1, .95 in the paper.
    end: What it would be after the last epoch, .8 in the paper.
    steps: Of the whole training.
    steps_per_epoch: Of one pass over the rows.
  """
  types.check_range('[0, 1]', start=start, end=end)
  types.check_range('[1, inf)', steps=steps, steps_per_epoch=steps_per_epoch)
  epochs = steps / steps_per_epoch

  def schedule(step):
    epoch = step // steps_per_epoch
    part = jnp.maximum(epoch - 1, 0) / epochs
    return jnp.where(epoch > 0, start + part * (end - start), 0.99)

  return schedule
