"""Device code: batch statistics of the domain that a batch is of (BN-Adapt).

Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, 'Improving robustness
against common image corruptions by covariate shift adaptation', NeurIPS 2020
(https://arxiv.org/abs/2006.16971), eq. 3: statistics are a blend of those of
training, which count as `prior` rows, and of the batch. As in the benchmark of
Wiles et al., ICLR 2022 (https://arxiv.org/abs/2110.11328), each value of the
nuisance is a domain with statistics of its own.
"""

import jax
import jax.numpy as jnp

from repjax import types
from repjax.adapt import norm_layers
from repjax.types import InputError


def predictor(
  method: types.Method, *, num_groups: int, prior: float
) -> types.Method:
  """The method, predicting with batch norms that are adapted to each domain.

  Training is as it was. A prediction depends on the other rows of its batch:
  the larger the batch, the less so. A row of no domain, whose group is not in
  [0, G), is predicted with the statistics of training.

  Args:
    method: Of a network with `layers.norms.BatchNorm`; its `predict` gives
      'logits' [B, C].
    num_groups: G, domains, of which each costs a forward pass, and so do the
      rows of none.
    prior: Rows that the statistics of training count as, > 0.

  Returns:
    A method whose `predict` reads 'group' [B], too.

  Raises:
    InputError: If a setting is out of range, or, when it predicts, if the
      network has no batch norm, or the batch no groups.
  """
  types.check_range('[1, inf)', num_groups=num_groups)
  types.check_range('(0, inf)', prior=prior)
  adapted = norm_layers.with_statistics(method.predict, prior)

  def predict(state, batch):
    if 'group' not in batch:
      raise InputError(
        "BN-Adapt needs the domain of each row, a column 'group'; the batch "
        f'has {sorted(batch)}.'
      )

    def of(group):
      own = batch['group'] == group
      # Rows of other domains are padding to this one's statistics.
      logits = adapted(state, {**batch, 'mask': own * batch['mask']})['logits']
      return jnp.where(own[:, None], logits, 0)

    plain = method.predict(state, batch)['logits']
    group = batch['group']
    inside = (group >= 0) & (group < num_groups)
    found = jax.lax.map(of, jnp.arange(num_groups)).sum(0)
    return {'logits': jnp.where(inside[:, None], found, plain)}

  return method._replace(predict=predict)
