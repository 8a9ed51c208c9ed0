"""Device code: distributionally robust optimization over groups, online.

Sagawa, Koh, Hashimoto and Liang, 'Distributionally Robust Neural Networks for
Group Shifts', ICLR 2020 (https://arxiv.org/abs/1911.08731), algorithm 1. The
weights of groups are updated first, then they weigh this step's losses. The
authors draw all groups equally often, and regularize strongly or stop early.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.methods import grouped
from repjax.types import InputError


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  step_size: float = 0.01,
  adjustment: float = 0.0,
  group_counts: Sequence[int] | None = None,
  **settings: Any,
) -> types.Method:
  """Minimizes the groups' mean losses, weighted towards the worst.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    num_groups: G.
    step_size: eta_q of the paper, >= 0; 0 keeps all groups alike.
    adjustment: C of the paper's sec. 3.3, >= 0: C / sqrt(n_g) is added to the
      loss of a group of n_g training rows before weights are updated. (It adds
      a constant to the loss, which has no gradient, and is not reported.)
    group_counts: n_g, [G]: groups without training rows never get a weight.
      None: all have rows, and there is no adjustment.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`. The weights are 'weights' [G] in the
    collection 'groups' of its state.
  """
  types.check_range('[1, inf)', num_groups=num_groups)
  types.check_range('[0, inf)', step_size=step_size, adjustment=adjustment)
  if group_counts is None:
    if adjustment:
      raise InputError('adjustment needs group_counts, the training rows [G].')
    counts = np.ones(num_groups)
  else:
    counts = np.asarray(group_counts, np.float64)
    if counts.shape != (num_groups,) or counts.min() < 0 or not counts.any():
      raise InputError(
        f'group_counts are {num_groups} numbers of rows; got {group_counts}.'
      )
  start = (counts > 0) / (counts > 0).sum()
  extra = adjustment / np.sqrt(np.maximum(counts, 1.0))

  def objective(rows, memory):
    losses, _ = grouped.means(rows.nll, rows.group, rows.labelled, num_groups)
    weights = updated(
      memory['weights'], losses, step_size=step_size, adjustment=extra
    )
    return grouped.Terms(weights, jnp.zeros(()), {'weights': weights})

  return grouped.make(
    model,
    tx,
    objective,
    num_groups=num_groups,
    weight=0.0,
    memory={'weights': jnp.asarray(start, jnp.float32)},
    **settings,
  )


def updated(
  weights: jax.Array,
  losses: jax.Array,
  *,
  step_size: float,
  adjustment: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
  """Weights of groups after a step: q exp(eta (l + C / sqrt(n))), normalised.

  Args:
    weights: q, [G], >= 0.
    losses: Mean losses l, [G]; 0 for groups that the batch lacks.
    step_size: eta.
    adjustment: C / sqrt(n) of each group.

  Returns:
    [G] with sum 1. No gradient goes through it.
  """
  losses = jax.lax.stop_gradient(losses) + jnp.asarray(adjustment, jnp.float32)
  # In logarithms, so that no exponent overflows; a weight of 0 stays 0.
  return jax.nn.softmax(jnp.log(weights) + step_size * losses)
