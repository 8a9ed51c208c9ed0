"""Device code: invariant risk minimization, its practical form IRMv1.

Arjovsky, Bottou, Gulrajani and Lopez-Paz, 'Invariant Risk Minimization', 2019
(https://arxiv.org/abs/1907.02893), sec. 3. A scale of the logits should be best
at 1 in every environment: the penalty is the squared gradient of each
environment's mean loss with respect to that scale.

The paper sums losses and penalties over environments; DomainBed and WILDS
average them, and so does this file.
"""

from typing import Any
from typing import Literal
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import grouped

Form = Literal['unbiased', 'plain', 'vector']


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  weight: optax.ScalarOrSchedule,
  form: Form = 'unbiased',
  rescale: bool = False,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean of the groups' losses plus `weight` times the penalty.

  A column 'weight' of the batch counts in the losses, not in the penalty.

  Args:
    model: Any linen classifier.
    tx: Optax chain. DomainBed and WILDS begin their optimizer anew where the
      weight jumps: `optim.restarted(tx, at=...)`.
    num_groups: Number of environments.
    weight: >= 0, or a schedule such as `grouped.annealed(100.0, at=500)`.
    form: As that of `penalty`.
    rescale: Whether the objective is divided by the weight where that is above
      1, as in the authors' code.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`.
  """
  types.check_choice('form', form, get_args(Form))

  def of_rows(rows):
    return penalty(
      rows.logits,
      rows.label,
      rows.group,
      rows.labelled,
      num_groups=num_groups,
      form=form,
    )

  return grouped.make(
    model,
    tx,
    grouped.penalized(of_rows, num_groups),
    num_groups=num_groups,
    weight=weight,
    rescale=rescale,
    **settings,
  )


def scale_gradients(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Derivatives of rows' cross-entropies by scales of their logits, at 1.

  u_k (p_k - 1[y = k]) by a scale of class k, in closed form; the derivative by
  one scale of all classes is their sum.

  Args:
    logits: u, [N, C].
    label: y, [N].

  Returns:
    [N, C].
  """
  error = jax.nn.softmax(logits) - jax.nn.one_hot(label, logits.shape[-1])
  return logits * error


def penalty(
  logits: jax.Array,
  label: jax.Array,
  group: jax.Array,
  mask: jax.Array,
  *,
  num_groups: int,
  form: Form = 'unbiased',
) -> jax.Array:
  """Mean over groups of the squared gradient.

  Args:
    logits: [N, C].
    label: [N].
    group: [N].
    mask: 1 for rows that count, [N].
    num_groups: G.
    form: 'plain' squares the mean gradient of a group's rows, which is too
      large on average by their variance; 'unbiased' multiplies the means of its
      1st, 3rd, ... and 2nd, 4th, ... row (the paper's appendix D; DomainBed,
      WILDS), which may be negative. A group of one row has penalty 0 then.
      'vector' is 'plain' with a scale for each class, and the squared norm of
      its gradient (Ahmed et al., ICLR 2021,
      https://openreview.net/forum?id=b9PoimzZFJ; see `group_invariance`).

  Raises:
    InputError: If there is no such form.
  """
  types.check_choice('form', form, get_args(Form))
  slopes = scale_gradients(logits, label)
  if form == 'vector':
    mean, counts = grouped.means(slopes, group, mask, num_groups)
    return grouped.mean_of_present(jnp.square(mean).sum(-1), counts)
  slopes = slopes.sum(-1)
  if form == 'plain':
    mean, counts = grouped.means(slopes, group, mask, num_groups)
    return grouped.mean_of_present(jnp.square(mean), counts)
  member = grouped.members(group, mask, num_groups)
  place = ((member.cumsum(0) - 1) * member).sum(1)  # Within the own group.
  odd = (place.astype(jnp.int32) % 2).astype(jnp.float32)
  (first, counts), (second, _) = (
    grouped.means(slopes, group, mask * half, num_groups)
    for half in (1 - odd, odd)
  )
  return grouped.mean_of_present(first * second, counts)
