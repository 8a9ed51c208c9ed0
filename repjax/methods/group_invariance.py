"""Device code: predictions that do not depend on the group, class by class.

Ahmed, Bengio, van Seijen and Courville, 'Systematic generalisation with group
invariant predictions' (PGI), ICLR 2021
(https://openreview.net/forum?id=b9PoimzZFJ). In each class there is a majority
(group 0), whose bias is easy to learn, and a minority (group 1), of harder
rows. Mean predictions of the two are made equal. The groups may be known, or
inferred from a model after its first epoch (`group_inference`).

Two things that the formula does not tell, from the authors' code
(https://github.com/Faruk-Ahmed/predictive_group_invariance): the groups' mean
losses count alike, which alone is a strong baseline (`erm.make`,
balance='groups'); and the penalty trains the features, but not the head.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import grouped

MAJORITY, MINORITY = 0, 1


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  weight: optax.ScalarOrSchedule,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean of both groups' losses plus `weight` times the penalty.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    num_classes: C.
    weight: >= 0, or a schedule such as `ramp`. The penalty is divided by C, as
      in the authors' code: 50 there is 50 here.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`. Rows of group 0 are the majority,
    those of group 1 the minority; rows of another group count for nothing.
  """
  types.check_range('[1, inf)', num_classes=num_classes)

  def of_rows(rows):
    # What is made of `aligned` reaches no parameter of the head.
    return penalty(
      rows.aligned,
      rows.label,
      rows.group,
      rows.labelled,
      num_classes=num_classes,
    )

  return grouped.make(
    model,
    tx,
    grouped.penalized(of_rows, 2),
    num_groups=2,
    weight=weight,
    **settings,
  )


def ramp(weight: float, *, start: int, steps: int) -> Callable[[Any], Any]:
  """0 until step `start`, then linearly up to `weight` in so many steps."""
  types.check_range('[0, inf)', weight=weight, start=start, steps=steps)
  return optax.join_schedules(
    [
      optax.constant_schedule(0.0),
      optax.linear_schedule(0.0, weight, max(steps, 1)),
    ],
    [start],
  )


def penalty(
  logits: jax.Array,
  label: jax.Array,
  group: jax.Array,
  mask: jax.Array,
  *,
  num_classes: int,
) -> jax.Array:
  """Sum over classes of KL(minority || majority) of mean predictions, over C.

  A class whose rows are of one group alone counts for nothing.

  Args:
    logits: [N, C].
    label: [N].
    group: 0 or 1, [N].
    mask: 1 for rows that count, [N].
    num_classes: C.

  Returns:
    A scalar, >= 0 up to the clipping of mean probabilities to
    [1e-12, 1 - 1e-12], as in the authors' code.
  """
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  # One cell for each class and group; rows of no group have none.
  known = mask * grouped.members(group, mask, 2).sum(1)
  cell = 2 * label.astype(jnp.int32) + group  # More than labels of 8 bits hold.
  mean, counts = grouped.means(probs, cell, known, 2 * num_classes)
  mean = jnp.clip(mean, 1e-12, 1.0 - 1e-12).reshape((num_classes, 2, -1))
  both = (counts.reshape((num_classes, 2)) > 0).all(1)
  hard, easy = mean[:, MINORITY], mean[:, MAJORITY]
  apart = (hard * jnp.log(hard / easy)).mean(-1)  # [C], KL / C.
  return jnp.where(both, apart, 0.0).sum()
