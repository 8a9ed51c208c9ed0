"""Device code: risk extrapolation by the variance of risks (V-REx).

Krueger et al., 'Out-of-Distribution Generalization via Risk Extrapolation',
ICML 2021 (https://arxiv.org/abs/2003.00688), eq. 8. The paper sums the risks;
DomainBed averages them, and so does this file.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import grouped


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  weight: optax.ScalarOrSchedule,
  rescale: bool = False,
  **settings: Any,
) -> types.Method:
  """Minimizes the groups' mean loss plus `weight` times its variance.

  Args:
    model: Any linen classifier.
    tx: Optax chain; see `irm.make`.
    num_groups: Number of environments.
    weight: beta of the paper, >= 0, or a schedule such as
      `grouped.annealed(10.0, at=500)`.
    rescale: Whether the objective is divided by the weight where that is above
      1.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`.
  """

  def of_rows(rows):
    return penalty(rows.nll, rows.group, rows.labelled, num_groups=num_groups)

  return grouped.make(
    model,
    tx,
    grouped.penalized(of_rows, num_groups),
    num_groups=num_groups,
    weight=weight,
    rescale=rescale,
    **settings,
  )


def penalty(
  nll: jax.Array, group: jax.Array, mask: jax.Array, *, num_groups: int
) -> jax.Array:
  """Variance (divided by their number) of the mean losses of groups with rows.

  Args:
    nll: Losses, [N].
    group: [N].
    mask: 1 for rows that count, [N].
    num_groups: G.
  """
  mean, counts = grouped.means(nll, group, mask, num_groups)
  centre = grouped.mean_of_present(mean, counts)
  return grouped.mean_of_present(jnp.square(mean - centre), counts)
