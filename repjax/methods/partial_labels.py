"""Device code: learning from sets of labels of which one is right.

Batches have 'candidates' [B, C], 1 for a class that may be the row's label.
'label' [B], where it is there, is for what is reported alone: nothing is
learned from it.

The methods here are what PiCO is compared with: losses of a row, and two that
keep weights of the classes for every training row, in the state and by the
column 'index' [B] of the batch, so that they are saved with it. Of several
devices each keeps a part of the table (`trees.PerRow`).
"""

import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import grouped
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

Kind = Literal['uniform', 'cc', 'mse', 'exp', 'proden', 'lws']
KINDS = ('uniform', 'cc', 'mse', 'exp', 'proden', 'lws')

# Column that `make` adds to a batch: weights of the classes, [B, C].
_WEIGHTS = 'class_weights'
_LOW = -1e30  # Of logits that do not count; finite, as rows of padding are.


class WeightState(NamedTuple):
  """What is kept of every training row.

  Attributes:
    weights: Of the classes, [N, C], at first 1 / C.
  """

  weights: trees.PerRow


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  kind: Kind,
  num_rows: int,
  num_classes: int,
  leverage: float = 1.0,
  compute_dtype: str = 'float32',
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes a loss of candidate sets.

  'uniform' is the cross-entropy with a target that is uniform over the set;
  'cc' minus the log of the set's probability (Feng et al., 'Provably Consistent
  Partial-Label Learning', NeurIPS 2020, https://arxiv.org/abs/2007.08929);
  'mse' and 'exp' are `bounded`; 'proden' the cross-entropy with what the model
  said of the row when it was last seen, within its set (Lv et al., ICML 2020,
  https://arxiv.org/abs/2002.08053); 'lws' is `leveraged`.

  Args:
    model: Any linen classifier.
    tx: Optax chain; links that take `grad_fn` get it.
    kind: Of the loss.
    num_rows: N training rows, by which 'index' counts.
    num_classes: C.
    leverage: Of 'lws': weight of the classes beyond the set, >= 0; 1 in the
      authors' runs on CIFAR-10.
    compute_dtype: 'float32' or 'bfloat16', of the model.
    inputs: What the model is called with, in place of images.
    **settings: transform, finish, microbatches; arguments of `steps.make`.

  Returns:
    A `types.Method` over batches of the model's input, 'candidates' and
    'index'. `predict` gives 'logits' [B, C]. Sums: 'loss', and 'accuracy' where
    there is a 'label'.

  Raises:
    InputError: If a setting is out of range, or, when a step is traced, a
      column is missing.
  """
  types.check_choice('kind', kind, KINDS)
  types.check_range('[0, inf)', leverage=leverage)
  types.check_range('[1, inf)', num_rows=num_rows, num_classes=num_classes)
  keeps = kind in ('proden', 'lws')
  if keeps:
    grouped.check_whole(settings)
    refuse_average(settings)
  transform = settings.pop('transform', None)

  def forward(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    return logits.astype(jnp.float32), model_state

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = forward(params, model_state, batch, rng)
    inside = batch['candidates'] > 0
    if kind == 'cc':
      loss = -set_log_probability(logits, inside)
    elif kind in ('mse', 'exp'):
      loss = bounded(logits, inside, kind=kind)
    elif kind == 'lws':
      loss = leveraged(logits, inside, batch[_WEIGHTS], leverage=leverage)
    else:
      target = batch[_WEIGHTS] if keeps else within(inside, inside)
      loss = optax.softmax_cross_entropy(logits, target)
    return types.Losses(loss, model_state, hits(logits, batch))

  step = steps.make(loss_fn, tx, compute_dtype=compute_dtype, **settings)

  def init(rng, batch):
    state = step.init(model_inputs.init(model, inputs, rng, batch))
    if keeps:
      state = state.replace(
        extra=WeightState(fresh_table(num_rows, num_classes))
      )
    return state

  def update(state, batch, rng):
    check_columns(batch, num_classes)
    rng_transform, rng_model = jax.random.split(rng)
    if transform is not None:
      batch = transform(batch, rng_transform)
    if not keeps:
      return step.learn(state, batch, rng_model)
    seen = steps.seen(
      state.params, batch, rng_model, compute_dtype=compute_dtype
    )
    logits, _ = forward(seen.params, state.model_state, seen.batch, seen.rng)
    inside = seen.batch['candidates'] > 0
    table = state.extra.weights
    weights = looked_up(table, seen.batch['index'])
    new = probabilities(logits, inside)
    if kind == 'lws':
      new = jnp.where(inside, new, probabilities(logits, ~inside))
    else:
      weights = within(weights, inside)
    # Theirs are of this forward pass, too, in PRODEN; the authors of LWS make
    # one more after the step.
    extra = WeightState(stored(table, batch, new))
    state, sums = step.learn(state, {**batch, _WEIGHTS: weights}, rng_model)
    return state.replace(extra=extra), sums

  def predict(state, batch):
    logits = model_inputs.evaluate(model, inputs, steps.variables(state), batch)
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, update, predict)


# Losses of a row.


def set_log_probability(logits: jax.Array, inside: jax.Array) -> jax.Array:
  """Log of the probability of a set, [B].

  Args:
    logits: [B, C], float32.
    inside: Which classes are in the set, bool [B, C].
  """
  return jax.nn.logsumexp(
    jnp.where(inside, logits, _LOW), axis=-1
  ) - jax.nn.logsumexp(logits, axis=-1)


def bounded(
  logits: jax.Array, inside: jax.Array, *, kind: Literal['mse', 'exp']
) -> jax.Array:
  """Bounded losses of the classes that are ruled out.

  Feng et al., 'Learning with Multiple Complementary Labels', ICML 2020
  (https://arxiv.org/abs/1912.12927). With s classes ruled out of C, 'exp' is
  (C - 1) / s exp(-probability of the set), and 'mse' the sum over the set minus
  (C - 1 - s) / s times that over the rest of |probabilities - one-hot|^2, whose
  mean is that with the right label where sets are drawn uniformly.

  Args:
    logits: [B, C], float32.
    inside: Which classes are in the set, bool [B, C].
    kind: Of the loss.

  Returns:
    [B]. A set of all classes says nothing: its loss is 0, for which the
    authors' code divides by 0.

  Raises:
    InputError: If there is no such kind.
  """
  types.check_choice('kind', kind, ('mse', 'exp'))
  num_classes = logits.shape[-1]
  out = (num_classes - inside.sum(-1)).astype(jnp.float32)
  safe = jnp.maximum(out, 1)
  probs = jax.nn.softmax(logits)
  if kind == 'exp':
    chance = jnp.where(inside, probs, 0).sum(-1)
    loss = (num_classes - 1) / safe * jnp.exp(-chance)
  else:
    # |p - e_j|^2 = |p|^2 - 2 p_j + 1.
    errors = jnp.square(probs).sum(-1, keepdims=True) - 2 * probs + 1
    rest = jnp.where(inside, 0, errors).sum(-1)
    loss = jnp.where(inside, errors, 0).sum(-1)
    loss -= (num_classes - 1 - out) / safe * rest
  return jnp.where(out > 0, loss, 0)


def leveraged(
  logits: jax.Array,
  inside: jax.Array,
  weights: jax.Array,
  *,
  leverage: float,
) -> jax.Array:
  """The leveraged weighted loss, with the sigmoid as loss of a class.

  Wen et al., 'Leveraged Weighted Loss for Partial Label Learning', ICML 2021
  (https://arxiv.org/abs/2106.05731): the weighted sum of sigmoid(-logit) over
  the set, plus leverage times that of sigmoid(logit) over the rest.

  Args:
    logits: [B, C], float32.
    inside: Which classes are in the set, bool [B, C].
    weights: Of the classes, [B, C].
    leverage: beta of the paper, >= 0.

  Returns:
    [B].
  """
  sign = jnp.where(inside, -1.0, 1.0)
  part = jnp.where(inside, 1.0, leverage)
  return (part * weights * jax.nn.sigmoid(sign * logits)).sum(-1)


# A table of all rows, and what methods of candidate sets share.


def fresh_table(num_rows: int, num_classes: int) -> trees.PerRow:
  """The table before any row was seen: all classes alike, [N, C]."""
  values = jnp.full((num_rows, num_classes), 1 / num_classes, jnp.float32)
  return trees.PerRow(values, num_rows)


def looked_up(table: trees.PerRow, index: jax.Array) -> jax.Array:
  """Rows of the table, [B, C], whichever devices have them.

  Args:
    table: [N, C].
    index: Rows that this device wants, [B], as many as all others.
  """
  if not table.spread:
    return table.values[index]
  place, mine = _own(table, parallel.all_gather(index))
  found = jnp.where(mine[:, None], table.values[place], 0)
  return parallel.sum_of_own(found)  # Of one row, and of zeros.


def _own(table, index):
  """(where this device has rows of the whole table, whether it has)."""
  part = len(table.values)
  place = index - parallel.places(part)[0]
  return place, (place >= 0) & (place < part)


def within(weights: jax.Array, inside: jax.Array) -> jax.Array:
  """Weights of classes as a distribution over a set; 0 for padding, [B, C]."""
  kept = jnp.where(inside, weights, 0).astype(jnp.float32)
  total = kept.sum(-1, keepdims=True)
  return kept / jnp.where(total > 0, total, 1)


def probabilities(logits: jax.Array, inside: jax.Array) -> jax.Array:
  """The model's distribution, given that the label is in a set, [B, C].

  It is finite also where the set's probability underflows.
  """
  return jax.nn.softmax(jnp.where(inside, logits, _LOW))


def stored(
  table: trees.PerRow, batch: types.Batch, rows: jax.Array
) -> trees.PerRow:
  """The table with new rows of all devices.

  Args:
    table: [N, C].
    batch: With 'index' and 'mask' [B]; rows of padding go nowhere.
    rows: What takes the place of the rows at 'index', [B, C]. Of a row that
      comes twice in a batch, where an epoch ends, the later one stays.
  """
  index, rows, mask = parallel.all_gather((batch['index'], rows, batch['mask']))
  values, real = table.values, mask > 0
  if table.spread:
    index, mine = _own(table, index)
    real &= mine
  place = jnp.where(real, index, len(values))
  later = jnp.triu(place[:, None] == place[None], k=1).any(-1)
  place = jnp.where(later, len(values), place)
  return dataclasses.replace(
    table, values=values.at[place].set(rows.astype(values.dtype), mode='drop')
  )


def hits(logits: jax.Array, batch: types.Batch) -> dict[str, jax.Array]:
  """{'accuracy': 1 where the right label is the likeliest}, if it is known."""
  if 'label' not in batch:
    return {}
  return {'accuracy': (logits.argmax(-1) == batch['label']).astype(jnp.float32)}


def check_columns(batch: types.Batch, num_classes: int) -> None:
  """Refuses, when a step is traced, batches without sets or places.

  Raises:
    InputError: Names the column.
  """
  found = batch.get('candidates')
  if found is None or found.shape[1:] != (num_classes,):
    raise InputError(
      f"Partial labels are a column 'candidates' [B, {num_classes}] "
      f'(repjax.data.candidates); the batch has '
      f'{ {name: x.shape for name, x in batch.items()} }.'
    )
  if 'index' not in batch:
    raise InputError(
      "The method keeps something of every training row: give 'index' [B], the "
      f"rows' numbers; the batch has {sorted(batch)}."
    )


def refuse_average(settings: dict[str, Any]) -> None:
  """Refuses an average of the parameters, beside what the state holds."""
  if settings.pop('ema_decay', 0.0):
    raise InputError(
      'The state of a method of partial labels has no place for an average of '
      'the parameters: set config.step.ema_decay=0.'
    )
