"""Device code: empirical risk minimization over rows of groups.

What the methods for shifts are compared with. `supervised` is the plain form
with more settings; this one reads the columns of `repjax.methods.classifier`:
rows without a label, weights of rows, groups.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import classifier
from repjax.methods import grouped
from repjax.methods import model_inputs


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  balance: Literal['rows', 'groups'] = 'rows',
  num_groups: int = 0,
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean cross-entropy of labelled rows.

  Args:
    model: Any linen classifier.
    tx: Optax chain; links that take `grad_fn` get it.
    balance: 'rows' count alike, or the 'groups' of a batch, whose mean losses
      are averaged, as in DomainBed, which draws them equally often.
    num_groups: G of 'groups', which must be given there.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      there is no column 'group' where groups count.
  """
  types.check_choice('balance', balance, ('rows', 'groups'))
  if balance == 'groups':
    types.check_range('[1, inf)', num_groups=num_groups)

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    loss, metrics = classifier.supervised(logits.astype(jnp.float32), batch)
    return types.Losses(loss, model_state, metrics)

  if balance == 'groups':
    settings = {'whole': "balance='groups'", 'refuses': 'rows', **settings}
  made = classifier.make(loss_fn, model, tx, inputs=inputs, **settings)
  if balance == 'rows':
    return made

  def update(state, batch, rng):
    grouped.check_groups(batch)
    labelled = classifier.is_labelled(batch)
    weight = grouped.row_weights(batch['group'], labelled, num_groups)
    if 'weight' in batch:
      weight = weight * batch['weight']
    return made.update(state, {**batch, 'weight': weight}, rng)

  return made._replace(update=update)
