"""Device code: correlation alignment of the features of groups (CORAL).

Sun and Saenko, 'Deep CORAL', ECCV Workshops 2016
(https://arxiv.org/abs/1607.01719), eq. 1. DomainBed and WILDS compare means,
too, and divide otherwise: both forms have a name here.
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

Form = Literal['mean_and_covariance', 'covariance']


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  weight: optax.ScalarOrSchedule,
  form: Form = 'mean_and_covariance',
  balance: Literal['rows', 'groups'] = 'rows',
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy plus `weight` times the groups' distance.

  Rows without a label are compared, too: unsupervised adaptation.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    num_groups: G.
    weight: >= 0, or a schedule over steps.
    form: As that of `penalty`.
    balance: Whether 'rows' count alike in the cross-entropy, as in WILDS, or
      'groups', as in DomainBed.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`.
  """
  types.check_choice('form', form, get_args(Form))

  def of_rows(rows):
    return penalty(
      rows.features, rows.group, rows.mask, num_groups=num_groups, form=form
    )

  return grouped.make(
    model,
    tx,
    grouped.penalized(of_rows, num_groups, balance=balance),
    num_groups=num_groups,
    weight=weight,
    **settings,
  )


@jax.default_matmul_precision('highest')
def penalty(
  features: jax.Array,
  group: jax.Array,
  mask: jax.Array,
  *,
  num_groups: int,
  form: Form = 'mean_and_covariance',
) -> jax.Array:
  """Mean over pairs of groups of the distance of their features.

  Covariances are never made: |S - S'|^2 consists of traces of products, which
  are sums of squared inner products of centred rows. So the cost is that of
  N^2 D, whatever the number of groups and however wide the features.

  Args:
    features: [N, D].
    group: [N].
    mask: 1 for rows that count, [N].
    num_groups: G.
    form: 'mean_and_covariance': the mean squared difference of the means plus
      that of the covariances, over coordinates (DomainBed, WILDS);
      'covariance': |S - S'|_F^2 / (4 D^2) (Deep CORAL). Covariances S are
      divided by n - 1.

  Returns:
    A scalar; 0 if there are no two groups of two rows and more, which alone
    are compared.

  Raises:
    InputError: If there is no such form.
  """
  types.check_choice('form', form, get_args(Form))
  features = features.astype(jnp.float32)
  dim = features.shape[1]
  member = grouped.members(group, mask, num_groups)
  mean, counts = grouped.means(features, group, mask, num_groups)
  centred = (features - member @ mean) * member.sum(1, keepdims=True)
  high = jax.lax.Precision.HIGHEST
  inner = jnp.square(jnp.matmul(centred, centred.T, precision=high))
  scaled = member / jnp.maximum(counts - 1, 1.0)[None]
  traces = jnp.matmul(
    scaled.T, jnp.matmul(inner, scaled, precision=high), precision=high
  )  # [G, G], tr(S S').
  own = jnp.diagonal(traces)
  distance = (own[:, None] + own[None] - 2 * traces) / dim**2
  if form == 'covariance':
    distance = distance / 4
  else:
    difference = mean[:, None] - mean[None]
    distance += jnp.square(difference).mean(-1)
  compared = (counts > 1).astype(jnp.float32)
  pairs = compared[:, None] * compared[None]
  pairs = jnp.triu(pairs, 1)
  return (distance * pairs).sum() / jnp.maximum(pairs.sum(), 1.0)
