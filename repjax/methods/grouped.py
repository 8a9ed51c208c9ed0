"""Device code: objectives over groups of rows: domains, environments, cells.

What compares groups (a variance of their losses, a distance of their features)
is no sum over rows. So every device sees the rows of all (`Rows`), an objective
is a plain function of them, and the result is the same on one device and on
many: gradients go back through the collective.

'group' [B] holds integers in [0, num_groups). A row outside belongs to no group
and a group without rows in a batch counts for nothing in it.
"""

from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import parallel
from repjax import types
from repjax.methods import classifier
from repjax.methods import model_inputs
from repjax.types import InputError

# The collection in which an objective keeps what it remembers.
_MEMORY = 'groups'


class Rows(NamedTuple):
  """The rows of a step over all devices, as an objective sees them.

  Attributes:
    features: What the head saw, [N, D].
    logits: [N, C].
    nll: Cross-entropies times the column 'weight', [N]; 0 without a label.
    label: [N]; 0 without a label.
    group: [N].
    labelled: 1 for real rows with a label, [N].
    mask: 1 for real rows, [N].
    aligned: Logits again, whose gradient reaches the features but not the
      head, [N, C].
  """

  features: jax.Array
  logits: jax.Array
  nll: jax.Array
  label: jax.Array
  group: jax.Array
  labelled: jax.Array
  mask: jax.Array
  aligned: jax.Array


class Terms(NamedTuple):
  """What an objective makes of `Rows`.

  Attributes:
    group_weights: What the mean loss of each group counts, [G].
    penalty: A scalar that is added, times the method's weight.
    memory: What the objective remembers until the next step, {} for nothing.
  """

  group_weights: jax.Array
  penalty: jax.Array
  memory: types.PyTree


Objective = Callable[[Rows, types.PyTree], Terms]

# What rows weigh is picked by products with 0 and 1, which must round nothing.
_HIGHEST = jax.lax.Precision.HIGHEST

# Rows -> scalar.
Penalty = Callable[[Rows], jax.Array]


def means(
  values: jax.Array, group: jax.Array, mask: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
  """Means of the rows of each group, 0 for one without rows, and their counts.

  Args:
    values: [N, ...].
    group: [N].
    mask: 1 for rows that count, [N].
    num_groups: G.

  Returns:
    ([G, ...], float32 [G]).
  """
  member = members(group, mask, num_groups)
  counts = member.sum(0)
  flat = values.astype(jnp.float32).reshape((len(values), -1))
  sums = jnp.matmul(member.T, flat, precision=_HIGHEST)
  mean = sums / jnp.maximum(counts, 1.0)[:, None]
  return mean.reshape((num_groups, *values.shape[1:])), counts


def members(group: jax.Array, mask: jax.Array, num_groups: int) -> jax.Array:
  """1 where a row belongs to a group and counts, [N, G], float32."""
  inside = (mask > 0)[:, None] & (
    group[:, None] == jnp.arange(num_groups)[None]
  )
  return inside.astype(jnp.float32)


def row_weights(
  group: jax.Array, mask: jax.Array, num_groups: int
) -> jax.Array:
  """Weights [B], 1 on average, by which groups count alike over all devices."""
  member = members(group, mask, num_groups)
  counts, total = parallel.psum((member.sum(0), mask.sum()))
  number = jnp.maximum((counts > 0).sum(), 1)
  each = total / number / jnp.maximum(counts, 1.0)
  return jnp.matmul(member, each, precision=_HIGHEST)


def mean_of_present(values: jax.Array, counts: jax.Array) -> jax.Array:
  """Mean of the values [G] of those groups that have rows."""
  present = (counts > 0).astype(jnp.float32)
  return (values * present).sum() / jnp.maximum(present.sum(), 1.0)


def alike(rows: Rows, num_groups: int) -> jax.Array:
  """Equal weights [G] of the groups that have labelled rows."""
  counts = members(rows.group, rows.labelled, num_groups).sum(0)
  present = (counts > 0).astype(jnp.float32)
  return present / jnp.maximum(present.sum(), 1.0)


def by_rows(rows: Rows, num_groups: int) -> jax.Array:
  """Weights [G] of groups by which their rows count alike."""
  counts = members(rows.group, rows.labelled, num_groups).sum(0)
  return counts / jnp.maximum(counts.sum(), 1.0)


def penalized(
  penalty: Penalty,
  num_groups: int,
  *,
  balance: Literal['rows', 'groups'] = 'groups',
) -> Objective:
  """Groups, or rows, that count alike, and a penalty."""
  types.check_choice('balance', balance, ('rows', 'groups'))
  weigh = alike if balance == 'groups' else by_rows

  def objective(rows, memory):
    return Terms(weigh(rows, num_groups), penalty(rows), memory)

  return objective


def annealed(
  weight: float, at: int, *, before: float = 1.0
) -> Callable[[Any], Any]:
  """A weight that jumps at a step, as those of IRM and VREx do."""
  return optax.join_schedules(
    [optax.constant_schedule(x) for x in (before, weight)], [at]
  )


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  objective: Objective,
  *,
  num_groups: int,
  weight: optax.ScalarOrSchedule = 1.0,
  rescale: bool = False,
  memory: types.PyTree = None,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes a weighted mean of groups' mean losses plus a penalty.

  Args:
    model: Any linen classifier.
    tx: Optax chain. It must not clip single rows, whose gradients depend on
      each other.
    objective: What weights and penalty are made by.
    num_groups: G.
    weight: Of the penalty, >= 0, or a schedule over steps.
    rescale: Whether the sum is divided by the weight where that is above 1, so
      that its gradient stays as large, as in the authors' code of IRM. Weight
      decay is a part of it there: divide that of `tx` by `optim.divided`.
    memory: What the objective starts with, a dict of arrays; None for nothing.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: compute_dtype, ema_decay, transform, finish; see `steps.make`.

  Returns:
    A `types.Method` as `classifier.make` gives it, over batches with a column
    'group', too. Its sums have 'penalty' (unweighted) and 'objective'.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      the batch has no groups, or is a single row.
  """
  types.check_range('[1, inf)', num_groups=num_groups)
  check_whole(settings)

  def loss_fn(params, model_state, batch, rng):
    check_rows(batch)
    memory_now = model_state[_MEMORY] if memory else {}
    model_state = {k: x for k, x in model_state.items() if k != _MEMORY}
    out = classifier.forward(
      model, inputs, {'params': params, **model_state}, batch, rng, head=head
    )
    loss, metrics = classifier.supervised(out.logits, batch)
    labelled = classifier.is_labelled(batch)
    nll = labelled * classifier.cross_entropy(out.logits, batch)
    if 'weight' in batch:
      nll = nll * batch['weight'].astype(jnp.float32)
    rows = Rows(
      features=out.features,
      logits=out.logits,
      nll=nll,
      label=jnp.where(labelled > 0, batch['label'], 0),
      group=batch['group'],
      labelled=labelled,
      mask=(batch['mask'] > 0).astype(jnp.float32),
      aligned=out.frozen_head(out.features),
    )
    terms = objective(parallel.all_gather(rows), memory_now)
    # Over devices, groups' means are sums of rows' losses: each row counts
    # w_g * N / n_g, so that their mean over N rows is that of the groups.
    counts, total = parallel.psum(
      (members(rows.group, labelled, num_groups).sum(0), rows.mask.sum())
    )
    per_row = terms.group_weights * total / jnp.maximum(counts, 1.0)
    member = members(rows.group, labelled, num_groups)
    loss = jnp.matmul(member, per_row, precision=_HIGHEST) * nll
    # Equal on all rows: the mean over rows of all devices is the penalty.
    strength = batch[classifier.WEIGHT]
    loss += strength * terms.penalty
    if rescale:
      loss /= jnp.maximum(strength, 1.0)
    model_state = out.model_state
    if memory:
      model_state = {**model_state, _MEMORY: terms.memory}
    penalty = jnp.broadcast_to(terms.penalty, loss.shape)
    return types.Losses(
      loss, model_state, {**metrics, 'penalty': penalty, 'objective': loss}
    )

  def begin(rng, batch, variables):
    del rng, batch  # What is remembered begins alike.
    return {**variables, _MEMORY: memory} if memory else variables

  def of_model(variables):
    return {k: x for k, x in variables.items() if k != _MEMORY}

  return classifier.make(
    loss_fn,
    model,
    tx,
    inputs=inputs,
    weight=weight,
    begin=begin,
    of_model=of_model,
    whole='A loss over groups',
    **settings,
  )


def check_whole(settings: dict[str, Any]) -> None:
  """Refuses microbatches, whose rows would be compared among themselves."""
  if 'microbatches' in settings and settings['microbatches'] != 1:
    raise InputError(
      'Rows are compared with all others of the step: set '
      f'config.step.microbatches=1; got {settings["microbatches"]}.'
    )


def check_groups(batch: types.Batch) -> None:
  """Refuses, when a step is traced, batches without groups."""
  if 'group' not in batch or not jnp.issubdtype(
    batch['group'].dtype, jnp.integer
  ):
    raise InputError(
      "The method needs integers [B] in a column 'group'; the batch has "
      f'{sorted(batch)}.'
    )


def check_rows(batch: types.Batch) -> None:
  """Refuses, when a step is traced, batches that cannot be compared."""
  check_groups(batch)
  if batch['mask'].shape[0] == 1:
    raise InputError(
      'One row cannot be compared with others: give each device two rows and '
      'more, and clip no single rows (dp_sgd).'
    )


def check(
  label: np.ndarray,
  group: np.ndarray,
  *,
  num_classes: int,
  num_groups: int,
) -> None:
  """Refuses, on the host, sets of rows from which groups cannot be learnt.

  Args:
    label: Of labelled rows, [N].
    group: [N].
    num_classes: C.
    num_groups: G.

  Raises:
    InputError: If an id is out of range, a group has no rows, or all rows have
      one label.
  """
  for name, ids, count in (
    ('label', label, num_classes),
    ('group', group, num_groups),
  ):
    ids = np.asarray(ids)
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
      raise InputError(
        f'The column {name!r} holds {wrong[0]}, which is not in [0, {count}).'
      )
  empty = np.flatnonzero(np.bincount(group, minlength=num_groups) == 0)
  if len(empty):
    raise InputError(
      f'Group {empty[0]} of {num_groups} has no training row: lower '
      'num_groups, or take other rows.'
    )
  if len(np.unique(label)) < 2:
    raise InputError(
      f'All {len(label)} training rows have the label {label[0]}: there is '
      'nothing to tell apart.'
    )
