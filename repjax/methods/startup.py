"""Device code: a student of two domains, taught by one that knows the other.

STARTUP: Phoo and Hariharan, 'Self-training for Few-shot Transfer Across Extreme
Task Differences', ICLR 2021 (https://arxiv.org/abs/2010.07734), section 3. A
teacher of base classes says of unlabelled rows of another domain which of its
classes they look like; these labels are wrong, and yet they group what is
alike. The student learns three things at once:

    cross-entropy of base rows + KL(teacher's label || student) of target rows
    + NT-Xent of two views of target rows

1. `soft_labels.of_teacher`, once; `soft_labels.report` says what they tell.
2. `protocols.self_training.begin` from the teacher's backbone, with a new head.
3. `make`, trained on rows of both domains beside each other
   (`data.batches.beside`).
4. Its features, what the head sees, are judged by episodes of target classes.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import types
from repjax.data.images import views as image_views
from repjax.layers import layer_inputs
from repjax.layers import projector as projectors
from repjax.methods import classifier
from repjax.methods import contrastive
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

# Columns of a batch: target rows as they are, and what the teacher says of them
# [B, C], beside the base rows' input and 'label'.
UNLABELLED, TAUGHT = 'unlabelled', 'pseudo_target'

# Collections of a model's batch statistics: those that it predicts with, and,
# where they are kept apart, those of base rows.
_STATISTICS, _OF_BASE = 'batch_stats', 'base_batch_stats'


class Objective(NamedTuple):
  """What a student learns; a weight of 0 leaves a term out, and its passes.

  Attributes:
    supervised: Weight of the base rows' cross-entropy.
    distillation: Weight of the divergence from the teacher's labels.
    self_supervision: Weight of the contrast of two views.
    temperature: Of that contrast, > 0.
  """

  supervised: float = 1.0
  distillation: float = 1.0
  self_supervision: float = 1.0
  temperature: float = 1.0

  def check(self) -> None:
    """Raises InputError if a weight is negative, or all are 0."""
    types.check_range(
      '[0, inf)',
      supervised=self.supervised,
      distillation=self.distillation,
      self_supervision=self.self_supervision,
    )
    types.check_range('(0, inf)', temperature=self.temperature)
    if not self.supervised + self.distillation + self.self_supervision:
      raise InputError(
        'A student needs something to learn: give a weight above 0 to '
        'supervised, distillation or self_supervision.'
      )


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  views: image_views.Views,
  objective: Objective = Objective(),
  projection_dim: int = 128,
  statistics: Literal['mixed', 'separate'] = 'mixed',
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """The student of STARTUP, and its parts.

  Base rows and each view of target rows go through the network by themselves:
  batch statistics are those of one domain. Without self-supervision there is
  one view, as in the authors' code. The contrast is with all rows of all
  devices, but with those of one microbatch alone.

  Args:
    model: Any linen classifier of the base classes.
    tx: Optax chain.
    views: Draws a view of each target row.
    objective: Which terms there are.
    projection_dim: Width of what is contrasted.
    statistics: Running averages of batch statistics, which the student predicts
      with: 'mixed' sees all passes, as in the authors' code; 'separate' sees
      target rows alone, and base rows have one of their own.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: Other arguments of `steps.make` than `transform`.

  Returns:
    A `types.Method` over batches of base rows (the model's input, 'label' [B])
    beside target rows (`UNLABELLED`, shaped like the input, and `TAUGHT`
    [B, C]). `predict` gives 'logits' [B, C] of the input as a target row.
    Parameters are {'model': ..., 'projector': ...}.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      the teacher's classes are not the model's.
  """
  objective.check()
  types.check_range('[1, inf)', projection_dim=projection_dim)
  types.check_choice('statistics', statistics, ('mixed', 'separate'))
  projector = projectors.Projector(projection_dim)
  separate = statistics == 'separate'
  num_views = (
    2 if objective.self_supervision else int(objective.distillation > 0)
  )

  def transform(batch, rng):
    rngs = [jax.random.fold_in(rng, i) for i in range(num_views)]
    return {**batch, **_drawn(views, batch, rngs)}

  def loss_fn(params, model_state, batch, rng):
    own = {k: x for k, x in model_state.items() if k != _OF_BASE}
    base_stats = model_state[_OF_BASE] if separate else None

    def look(batch, model_state, number):
      return classifier.forward(
        model,
        inputs,
        {'params': params['model'], **model_state},
        batch,
        jax.random.fold_in(rng, number),
        head=head,
      )

    base, seen = None, []
    if objective.supervised:
      started = own if base_stats is None else {**own, _STATISTICS: base_stats}
      base = look(batch, started, 0)
      if base_stats is None:
        own = base.model_state
      else:
        base_stats = base.model_state[_STATISTICS]
    for number in range(num_views):
      view = look(classifier.view(batch, f'view_{number}'), own, 1 + number)
      own = view.model_state
      seen.append(view)
    loss, metrics = _terms(
      objective, batch, base, seen, seen, projector, params['projector']
    )
    if separate:
      own = {**own, _OF_BASE: base_stats}
    return types.Losses(loss, own, metrics)

  whole = 'STARTUP' if objective.self_supervision else ''
  settings |= dict(whole=whole, refuses='rows')
  step = steps.make(loss_fn, tx, transform=transform, **settings)

  def init(rng, batch):
    variables = model_inputs.init(model, inputs, rng, batch)
    width = jax.eval_shape(
      lambda: (
        classifier.forward(
          model, inputs, variables, batch, rng, head=head
        ).features
      )
    ).shape[-1]
    drawn = projector.init(jax.random.fold_in(rng, 1), jnp.zeros((1, width)))
    if separate and _STATISTICS in variables:
      kept = jax.tree.map(jnp.copy, variables[_STATISTICS])
      variables = {**variables, _OF_BASE: kept}
    elif separate:
      raise InputError(
        "statistics='separate' is for models with batch statistics; this one "
        "has none: leave it at 'mixed'."
      )
    params = {'model': variables['params'], 'projector': drawn['params']}
    return step.init({**variables, 'params': params})

  def predict(state, batch):
    logits = model_inputs.evaluate(
      model, inputs, of_model(steps.variables(state)), batch
    )
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, step.update, predict)


def of_model(variables: types.PyTree) -> types.PyTree:
  """The classifier's variables, as it predicts for target rows.

  Args:
    variables: Of a student: `steps.variables(state)`.
  """
  rest = {k: x for k, x in variables.items() if k != _OF_BASE}
  return {**rest, 'params': variables['params']['model']}


def held_out(
  model: nn.Module,
  *,
  views: image_views.Views,
  objective: Objective = Objective(),
  projection_dim: int = 128,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
) -> Callable[[types.TrainState, types.Batch, jax.Array], jax.Array]:
  """The loss of rows that a student does not learn from.

  In evaluation mode, as in the authors' code: of the two views the first is the
  row as it is, which alone is compared with the teacher's label. Rows are
  contrasted with all that are given.

  Args:
    model: The classifier that `make` was given, like all settings here.
    views: Draws the second view.
    objective: Which terms there are.
    projection_dim: Width of what is contrasted.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer.

  Returns:
    (state, batch, rng) -> sum of the terms' means over real rows.
  """
  projector = projectors.Projector(projection_dim)

  def loss(state, batch, rng):
    variables = steps.variables(state)
    own = of_model(variables)
    of_base = own
    if _OF_BASE in variables:
      of_base = {**own, _STATISTICS: variables[_OF_BASE]}

    def look(batch, variables):
      logits, features = layer_inputs.with_input_of(
        lambda: model_inputs.evaluate(model, inputs, variables, batch), head
      )
      return classifier.Forward(
        logits.astype(jnp.float32), features, {}, lambda x: x
      )

    batch = gradients.blank_padding(batch)
    batch |= _drawn(views, batch, [rng], first=1)
    batch['view_0'] = batch[UNLABELLED]
    base = look(batch, of_base) if objective.supervised else None
    count = 2 if objective.self_supervision else int(objective.distillation > 0)
    seen = [
      look(classifier.view(batch, f'view_{i}'), own) for i in range(count)
    ]
    losses, _ = _terms(
      objective,
      batch,
      base,
      seen[:1],
      seen,
      projector,
      variables['params']['projector'],
    )
    mask = batch['mask'].astype(jnp.float32)
    total, weight = parallel.psum(((losses * mask).sum(), mask.sum()))
    return total / jnp.maximum(weight, 1)

  return loss


def divergence(taught: jax.Array, logits: jax.Array) -> jax.Array:
  """KL(label || student) of each row, labels as they are (section 3.2).

  Args:
    taught: [B, C], >= 0.
    logits: [B, C].

  Returns:
    [B].

  Raises:
    InputError: If the two differ in their classes.
  """
  if taught.shape != logits.shape:
    raise InputError(
      f'The teacher tells {taught.shape[-1]} classes apart, and the student '
      f'{logits.shape[-1]}: give a teacher of the base classes.'
    )
  taught = taught.astype(jnp.float32)
  known = jax.scipy.special.xlogy(taught, taught).sum(-1)
  return known - (taught * jax.nn.log_softmax(logits)).sum(-1)


def _drawn(views, batch, rngs, first=0):
  """A view of each target row for each key, equal on all devices."""
  if UNLABELLED not in batch:
    raise InputError(
      f'A student needs rows of the target, a column {UNLABELLED!r}, beside '
      f'those of the base set; the batch has {sorted(batch)}.'
    )
  rows = batch[UNLABELLED]
  return {
    f'view_{first + i}': views(rows, parallel.row_rngs(rng, len(rows)))
    for i, rng in enumerate(rngs)
  }


def _terms(objective, batch, base, taught, seen, projector, params):
  """(weighted sum of the terms [B], metrics) of passes that were made."""
  total, metrics = jnp.zeros(batch['mask'].shape), {}
  if objective.supervised:
    nll = optax.softmax_cross_entropy_with_integer_labels(
      base.logits, batch['label']
    )
    hits = base.logits.argmax(-1) == batch['label']
    metrics |= {'base_loss': nll, 'base_accuracy': hits.astype(jnp.float32)}
    total += objective.supervised * nll
  if objective.distillation:
    if TAUGHT not in batch:
      raise InputError(
        f"A student needs the teacher's labels, a column {TAUGHT!r} "
        f'(soft_labels.of_teacher); the batch has {sorted(batch)}.'
      )
    apart = [divergence(batch[TAUGHT], x.logits) for x in taught]
    term = functools.reduce(jnp.add, apart) / len(apart)
    agrees = taught[0].logits.argmax(-1) == batch[TAUGHT].argmax(-1)
    metrics |= {'distillation': term, 'agreement': agrees.astype(jnp.float32)}
    total += objective.distillation * term
  if objective.self_supervision:
    first, second = (
      contrastive.unit(projector.apply({'params': params}, x.features))
      for x in seen
    )
    term = contrastive.nt_xent(
      first, second, batch['mask'], temperature=objective.temperature
    )
    metrics |= {'self_supervision': term}
    total += objective.self_supervision * term
  return total, metrics
