"""Device code: what methods share that classify rows, some without a label.

Batches have the model's input, 'label' [B] and 'mask' [B], and may have:

  'labelled' [B]: 1 for a row with a label, 0 for one without; all have one if
    there is no such column. What stands in 'label' of the latter is not read.
  'weight' [B]: what a row's cross-entropy counts, 1 on average.
  'strong' [B, ...]: a strongly augmented view, in the shape of the input.
  'group' [B]: see `repjax.methods.grouped`.

A supervised loss is the mean over the labelled rows of all devices. With a
column 'labelled' a row counts by what others there are: no link may clip single
rows.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

# Columns that `make` adds to a batch: what a row counts in a mean over labelled
# rows (0 without a label, 1 on average over real rows) and over unlabelled
# ones; and the weight of the method's further term in this step.
SHARE, UNLABELLED = 'labelled_share', 'unlabelled_share'
WEIGHT = 'term_weight'


# Of `steps.make`, where rows lack a label: without one row of them all others
# count differently.
COUPLED: dict[str, Any] = dict(
  whole="A mean over those rows that are 'labelled'", refuses='rows'
)


class Forward(NamedTuple):
  """A forward pass in training.

  Attributes:
    logits: [B, C], float32.
    features: Input of the head, flattened, [B, D], float32.
    model_state: Other collections of the model after the pass.
    frozen_head: (what the head sees) -> logits, of parameters without gradient:
      what is made of them reaches the features alone.
  """

  logits: jax.Array
  features: jax.Array
  model_state: types.PyTree
  frozen_head: Callable[[jax.Array], jax.Array]


def forward(
  model: nn.Module,
  inputs: model_inputs.Inputs,
  variables: types.PyTree,
  batch: types.Batch,
  rng: jax.Array,
  *,
  head: str = 'head',
  change: Callable[[jax.Array], jax.Array] | None = None,
) -> Forward:
  """A forward pass that tells what the head saw.

  Args:
    model: Any linen classifier.
    inputs: What it is called with.
    variables: Of the model.
    batch: Rows.
    rng: This device's own key.
    head: Module names of the last layer, joined by '/'.
    change: What is made of the features before the head sees them.

  Raises:
    InputError: If the model has no such layer or applies it more than once.
  """
  seen: set[str] = set()
  found: list[tuple[jax.Array, Callable[[jax.Array], jax.Array]]] = []

  def interceptor(next_fn, args, kwargs, context):
    name = '/'.join(context.module.path)
    if context.method_name != '__call__' or not name:
      return next_fn(*args, **kwargs)
    seen.add(name)
    if name != head:
      return next_fn(*args, **kwargs)
    x, *rest = args
    if change is not None:
      x = change(x)
    layer, own = context.module.unbind()
    own = jax.lax.stop_gradient(own)
    found.append(
      (x, lambda y: layer.apply(own, y, *rest, **kwargs).astype(jnp.float32))
    )
    return next_fn(x, *rest, **kwargs)

  with nn.intercept_methods(interceptor):
    logits, model_state = model_inputs.forward(
      model, inputs, variables, batch, rng
    )
  if len(found) != 1:
    raise InputError(
      f'The model applies the layer head={head!r} {len(found)} times, not once.'
      f'{trees.nearest(head, seen)} It has: {", ".join(sorted(seen))}'
    )
  features, frozen_head = found[0]
  return Forward(
    logits.astype(jnp.float32),
    features.reshape((len(features), -1)).astype(jnp.float32),
    model_state,
    lambda rows: frozen_head(
      rows.reshape(features.shape).astype(features.dtype)
    ),
  )


def supervised(
  logits: jax.Array, batch: types.Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropies of rows, 0 without a label, and what is reported.

  Args:
    logits: [B, C], float32.
    batch: With 'label', or 'target' [B, C] in its place, as `make` hands it to
      a loss.

  Returns:
    (what the mean over all real rows is the mean over labelled ones of, [B];
    'loss' and 'accuracy' of the labelled rows).
  """
  share = batch[SHARE]
  label = jnp.where(share > 0, batch['label'], 0)
  nll = cross_entropy(logits, batch)
  hits = (logits.argmax(-1) == label).astype(jnp.float32)
  loss = share * nll
  metrics = {'loss': loss, 'accuracy': share * hits}
  if 'weight' in batch:
    loss = loss * batch['weight'].astype(jnp.float32)
  return loss, metrics


def cross_entropy(logits: jax.Array, batch: types.Batch) -> jax.Array:
  """Cross-entropy of each row, [B]; of one without a label any number."""
  if 'target' in batch:
    return optax.softmax_cross_entropy(logits, batch['target'])
  label = jnp.where(batch[SHARE] > 0, batch['label'], 0)
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def is_labelled(batch: types.Batch) -> jax.Array:
  """1 for real rows with a label, [B], float32."""
  mask = (batch['mask'] > 0).astype(jnp.float32)
  if 'labelled' not in batch:
    return mask
  return jnp.where(mask > 0, batch['labelled'].astype(jnp.float32), 0.0)


def columns(
  batch: types.Batch, weight: jax.typing.ArrayLike
) -> dict[str, jax.Array]:
  """`SHARE`, `UNLABELLED` and `WEIGHT` of a step's rows."""
  mask = batch['mask'].astype(jnp.float32)
  labelled = is_labelled(batch)
  return {
    SHARE: share_of(labelled, mask),
    UNLABELLED: share_of(mask - labelled, mask),
    WEIGHT: jnp.full(mask.shape, weight, jnp.float32),
  }


def share_of(chosen: jax.Array, mask: jax.Array) -> jax.Array:
  """What makes a mean over all devices' real rows one over chosen ones.

  Args:
    chosen: 1 for chosen rows, 0 for others, [B].
    mask: 1 for real rows, [B].

  Returns:
    [B], number of real rows / number of chosen ones, or 0; all 0 if no row is
    chosen.
  """
  total, count = parallel.psum((mask.sum(), chosen.sum()))
  return chosen * total / jnp.maximum(count, 1.0)


def view(batch: types.Batch, column: str = 'strong') -> types.Batch:
  """The batch with another view of its rows in place of the input.

  Raises:
    InputError: If there is no such column, or no input.
  """
  names = [x for x in types.INPUTS if x in batch]
  if column not in batch or not names:
    raise InputError(
      f'The method needs a column {column!r}, a view of its rows, beside one '
      f'of {types.INPUTS}; the batch has {sorted(batch)}.'
    )
  name = names[0]
  return {**batch, name: batch[column].astype(batch[name].dtype)}


def make(
  loss_fn: types.LossFn,
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  inputs: model_inputs.Inputs = model_inputs.image,
  weight: optax.ScalarOrSchedule = 0.0,
  begin: Callable[..., types.PyTree] | None = None,
  of_model: Callable[[types.PyTree], types.PyTree] = lambda variables: (
    variables
  ),
  **settings: Any,
) -> types.Method:
  """The method of a classifier's loss.

  Args:
    loss_fn: Sees the columns `SHARE`, `UNLABELLED` and `WEIGHT`, too.
    model: Any linen classifier.
    tx: Optax chain.
    inputs: What the model is called with, in place of images.
    weight: What `WEIGHT` holds, >= 0, or a schedule of it over steps.
    begin: (rng, batch, the model's variables) -> variables, where a method
      trains more than the model.
    of_model: The method's variables -> the model's.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of the model's input and 'label' [B], and
    further columns that the method names. `predict` gives 'logits' [B, C].

  Raises:
    InputError: If a setting is out of range; a schedule's values are not seen.
  """
  if not callable(weight):
    types.check_range('[0, inf)', weight=weight)
  schedule = weight if callable(weight) else lambda step: weight
  step = steps.make(loss_fn, tx, **settings)
  coupled = {} if settings.get('whole') else COUPLED
  step_of_some = steps.make(loss_fn, tx, **{**settings, **coupled})

  def init(rng, batch):
    variables = model_inputs.init(model, inputs, rng, batch)
    if begin is not None:
      variables = begin(jax.random.fold_in(rng, 1), batch, variables)
    return step.init(variables)

  def update(state, batch, rng):
    added = columns(batch, schedule(state.step))
    chosen = step_of_some if 'labelled' in batch else step
    return chosen.update(state, {**batch, **added}, rng)

  def predict(state, batch):
    variables = of_model(steps.variables(state))
    logits = model_inputs.evaluate(model, inputs, variables, batch)
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, update, predict)
