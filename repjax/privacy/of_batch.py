"""Device code: the clipped gradients of a batch, and what is measured of them.

What `gradients.GradFn.clipped` asks, on the rows of one device.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types
from repjax.privacy import clipping


class OfBatch(NamedTuple):
  """What clipping makes of the rows of a device.

  Attributes:
    grads: Sum of the clipped gradients.
    measured: Name -> one value a row or a user; and the weights of each.
    norms: (gradient norm, weight) of each user, or row.
  """

  grads: types.PyTree
  measured: tuple[tuple[Mapping[str, jax.Array], jax.Array], ...]
  norms: tuple[jax.Array, jax.Array]


def clipped(
  loss_fn: types.LossFn,
  params: types.PyTree,
  model_state: types.PyTree,
  batch: types.Batch,
  rng: jax.Array,
  *,
  clip_norm: float | jax.Array,
  microbatches: int,
  method: clipping.Method = 'auto',
  style: clipping.Style = 'flat',
  rows_per_user: int = 1,
) -> OfBatch:
  """Sums of single gradients; arguments as of `gradients.GradFn.clipped`."""
  _check_users(batch, rows_per_user, microbatches)

  def one(params, batch, rng):
    out = loss_fn(params, model_state, batch, rng)
    _check_unchanged(model_state, out.model_state)
    return out.loss, dict(out.metrics)

  mask = batch['mask'].astype(jnp.float32)
  result = clipping.clipped_gradient(
    one,
    clip_norm,
    method=method,
    style=style,
    rows_per_unit=rows_per_user,
    microbatches=microbatches,
    has_aux=True,
  )(params, batch, rng, mask)
  finite = jnp.isfinite(result.norms)
  units = mask.reshape((-1, rows_per_user)).max(1)
  counted = jnp.where(finite, units, 0)
  # Rows that count for nothing in the sum count for no other metric.
  rows = jnp.where(jnp.repeat(finite, rows_per_user), mask, 0)
  own = {'gradient_norm': result.norms, 'unclipped': result.norms <= clip_norm}
  return OfBatch(
    result.grads,
    (
      ({'loss': result.loss, **result.aux}, rows),
      (own, counted),
      ({'nonfinite': ~finite}, units),
    ),
    (result.norms, counted),
  )


def median(
  values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The sum of the median where weights are not 0: one a step, or none."""
  found = jnp.nanmedian(jnp.where(weights > 0, values, jnp.nan))
  some = (weights > 0).any()
  return jnp.where(some, found, 0.0), some.astype(jnp.float32)


def _check_users(batch, rows_per_user, microbatches):
  num_rows = batch['mask'].shape[0]
  if ('user' in batch) != (rows_per_user > 1):
    raise types.InputError(
      "batches with a column 'user' (repjax.data.batches.users) go with "
      'dp_sgd(rows_per_user=U), which clips the U rows of a user as a whole, '
      f'and others with rows_per_user=1; got {rows_per_user=} and a batch of '
      f'{sorted(batch)}.'
    )
  if rows_per_user < 1 or num_rows % (rows_per_user * microbatches):
    raise types.InputError(
      f'{num_rows} rows on a device are no whole users of {rows_per_user=} '
      f'in each of {microbatches} microbatch(es): choose a capacity of '
      'batches (in users) that is a multiple of devices times microbatches.'
    )


def _check_unchanged(old, new):
  for name, tree in new.items():
    before, after = jax.tree.leaves(old[name]), jax.tree.leaves(tree)
    if any(a is not b for a, b in zip(before, after, strict=True)):
      raise types.InputError(
        f'the model changes its collection {name!r} in training. Batch '
        'normalisation does so from the rows of a batch: examples see each '
        'other, and clipping each one bounds nothing. Use group or layer '
        "normalisation (norm='group' in repjax.models.resnet), and random "
        'features that are drawn once (redraw_every=0).'
      )
