"""Device code: PiCO, contrastive learning from sets of candidate labels.

Wang, Xiao, Li, Feng, Niu, Chen and Zhao, 'PiCO: Contrastive Label
Disambiguation for Partial Label Learning', ICLR 2022.
https://arxiv.org/abs/2201.08984

A network's embeddings are contrasted with those of rows that it takes for the
same class, by its own guesses within their sets; prototypes, moving averages of
the embeddings of each class, say in turn which candidate a row's target moves
to. A step goes in the order of the authors' code:

  1. query network on the first view: logits and embeddings; a row's guess is
     its likeliest candidate.
  2. prototypes AS THEY ARE tell each row's class (its scores).
  3. prototypes move to the embeddings, by the guesses.
  4. the key network moves towards the query network, then embeds the second
     view.
  5. rows are compared with all queries and keys of the step and the queue,
     which then takes in the keys with their guesses.
  6. after the warm-up, targets move by the scores; this is before the loss.
     Positives are what has the row's guess; during the warm-up, the row's own
     key among those of the queue (MoCo).
  7. loss = cross-entropy with the targets + weight * contrastive loss.

Where this differs: the queue begins empty (theirs with random rows whose labels
match none), rows are compared with those of all devices, and batch statistics
are those of all devices' rows, so that nothing needs to be shuffled.
"""

import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import classifier
from repjax.methods import contrastive
from repjax.methods import disambiguation
from repjax.methods import grouped
from repjax.methods import key_queue
from repjax.methods import model_inputs
from repjax.methods import partial_labels
from repjax.methods import step as steps
from repjax.methods import two_views
from repjax.models import mlp
from repjax.types import InputError

# Columns that a step adds to a batch: [B, C], [B], and [B, D].
_TARGET, _GUESS, _KEY = 'pseudo_target', 'guess', 'key'


class PicoState(NamedTuple):
  """What PiCO keeps beside the query network; saved with it.

  Attributes:
    key_params: Of the key network, like the parameters of the query network.
    queue: The latest keys.
    prototypes: One unit row a class, [C, D]; zero before a class was guessed.
    targets: Of each training row, [N, C]: a distribution, over its candidates
      as soon as it was seen. All else is replicated.
  """

  key_params: types.PyTree
  queue: key_queue.Queue
  prototypes: jax.Array
  targets: trees.PerRow


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_rows: int,
  num_classes: int,
  views: two_views.TwoViews,
  warmup_steps: int,
  target_momentum: optax.ScalarOrSchedule,
  dim: int = 128,
  hidden: int = 0,
  queue_size: int = 8192,
  momentum: float = 0.999,
  prototype_momentum: float = 0.99,
  temperature: float = 0.07,
  weight: float = 0.5,
  compute_dtype: str = 'float32',
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """PiCO around any classifier.

  Args:
    model: Any linen classifier; both networks are of its kind.
    tx: Optax chain; links that take `grad_fn` get it.
    num_rows: N training rows, by which 'index' counts.
    num_classes: C.
    views: What the query network and the key network see.
    warmup_steps: Steps in which targets stay and the contrast is MoCo's.
    target_momentum: phi, in [0, 1], or a schedule of it over steps
      (`disambiguation.falling_momentum`).
    dim: D, of the embeddings.
    hidden: Width of the layer between features and embeddings; 0 for that of
      the features.
    queue_size: K keys, a multiple of the rows of a step over all devices.
    momentum: Of the key network, in [0, 1].
    prototype_momentum: gamma, in [0, 1].
    temperature: tau > 0.
    weight: lambda >= 0 of the contrastive loss.
    compute_dtype: 'float32' or 'bfloat16', of both networks.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: microbatches and ema_decay, which must be 1 and 0.

  Returns:
    A `types.Method` over batches of the model's input, 'candidates' [B, C] and
    'index' [B]. 'label', where it is there, is for what is reported alone.
    `predict` gives 'logits' [B, C], of rows with both of them (those of
    training) their 'pseudo_target' [B, C], too, and that alone of a batch
    without any input. Sums: 'loss' and its parts 'classification' and
    'contrastive', 'confidence' (the largest pseudo-target of a row), and with
    labels 'accuracy' and 'disambiguation', how often that is the right one.

  Raises:
    InputError: If a setting is out of range, or, when a step is traced, a
      column is missing, the queue does not hold whole batches, or a link of
      the chain looks at parts of the rows.
  """
  types.check_range('[1, inf)', num_rows=num_rows, num_classes=num_classes)
  types.check_range('[1, inf)', dim=dim, queue_size=queue_size)
  types.check_range('[0, inf)', hidden=hidden, warmup_steps=warmup_steps)
  types.check_range(
    '[0, 1]', momentum=momentum, prototype_momentum=prototype_momentum
  )
  types.check_range('(0, inf)', temperature=temperature)
  types.check_choice('compute_dtype', compute_dtype, ('float32', 'bfloat16'))
  types.check_range('[0, inf)', weight=weight)
  if not callable(target_momentum):
    types.check_range('[0, 1]', target_momentum=target_momentum)
  grouped.check_whole(settings)
  partial_labels.refuse_average(settings)
  settings.pop('microbatches', None)
  if settings:
    raise InputError(f'PiCO has no settings {sorted(settings)}.')
  phi = target_momentum if callable(target_momentum) else None

  def embed(params, features):
    width = hidden or features.shape[-1]
    projection = mlp.Mlp(dim, features=(width,))
    return projection.apply({'params': params}, features, train=True)

  def forward(params, model_state, batch, rng):
    """(logits [B, C], unit embeddings [B, D], new collections)."""
    out = classifier.forward(
      model,
      inputs,
      {'params': params['model'], **model_state},
      batch,
      rng,
      head=head,
    )
    embedding = contrastive.unit(embed(params['projection'], out.features))
    return out.logits, embedding, out.model_state

  def loss_fn(params, model_state, batch, rng, *, queue, warm):
    logits, query, model_state = forward(params, model_state, batch, rng)
    contrast = contrastive_loss(
      query,
      batch[_KEY],
      batch[_GUESS],
      batch['mask'],
      queue,
      warm=warm,
      temperature=temperature,
    )
    target = batch[_TARGET]
    classification = optax.softmax_cross_entropy(logits, target)
    metrics = {
      'classification': classification,
      'contrastive': contrast,
      'confidence': target.max(-1),
      **partial_labels.hits(logits, batch),
    }
    if 'label' in batch:
      metrics['disambiguation'] = target.argmax(-1) == batch['label']
    loss = classification + weight * contrast
    return types.Losses(loss, model_state, metrics)

  def init(rng, batch):
    rng_model, rng_projection = jax.random.split(rng)
    variables = model_inputs.init(model, inputs, rng_model, batch)
    model_state, params = steps.pop_params(variables)
    features = jax.eval_shape(
      lambda: (
        classifier.forward(
          model, inputs, variables, batch, rng_model, head=head
        ).features
      )
    )
    projection = mlp.Mlp(dim, features=(hidden or features.shape[-1],))
    params = {
      'model': params,
      'projection': projection.init(
        rng_projection, jnp.zeros(features.shape), train=False
      )['params'],
    }
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      model_state=model_state,
      extra=PicoState(
        key_params=params,
        queue=key_queue.empty(queue_size, dim),
        prototypes=jnp.zeros((num_classes, dim), jnp.float32),
        targets=partial_labels.fresh_table(num_rows, num_classes),
      ),
    )

  def update(state, batch, rng):
    partial_labels.check_columns(batch, num_classes)
    memory = state.extra
    rng_views, rng_model = jax.random.split(rng)
    first, second = views(batch, rng_views)
    seen = functools.partial(steps.seen, compute_dtype=compute_dtype)
    params, rows, rng_device = seen(state.params, first, rng_model)
    logits, query, _ = jax.lax.stop_gradient(
      forward(params, state.model_state, rows, rng_device)
    )
    inside = rows['candidates'] > 0
    guess = partial_labels.probabilities(logits, inside).argmax(-1)
    scores = jnp.matmul(query, memory.prototypes.T, precision='highest')
    prototypes = disambiguation.moved_prototypes(
      memory.prototypes,
      *parallel.all_gather((query, guess, rows['mask'])),
      momentum=prototype_momentum,
    )
    key_params = optax.incremental_update(
      state.params, memory.key_params, 1 - momentum
    )
    # A network of its own: other dropout, and its statistics are not kept.
    params, other, rng_device = seen(
      key_params, second, jax.random.fold_in(rng_model, 1)
    )
    _, key, _ = forward(params, state.model_state, other, rng_device)
    warm = state.step >= warmup_steps
    targets = partial_labels.within(
      partial_labels.looked_up(memory.targets, rows['index']), inside
    )
    moved = disambiguation.moved_targets(
      targets, scores, inside, phi(state.step) if phi else target_momentum
    )
    targets = jnp.where(warm, moved, targets)
    grad_fn = steps.WholeGradFn(
      'PiCO',
      functools.partial(loss_fn, queue=memory.queue, warm=warm),
      steps.cast_inputs(
        {**first, _TARGET: targets, _GUESS: guess, _KEY: key}, compute_dtype
      ),
      parallel.device_rng(rng_model),
      state.model_state,
      compute_dtype=jnp.dtype(compute_dtype),
    )
    params, opt_state, aux = steps.descend(
      tx, grad_fn, state.params, state.opt_state
    )
    return types.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      model_state=aux.model_state,
      extra=PicoState(
        key_params=key_params,
        queue=key_queue.enqueued(
          memory.queue, *parallel.all_gather((key, guess, rows['mask']))
        ),
        prototypes=prototypes,
        targets=partial_labels.stored(memory.targets, batch, targets),
      ),
    ), aux.sums

  def predict(state, batch):
    outputs = {}
    if any(x in batch for x in types.INPUTS):
      variables = {'params': state.params['model'], **state.model_state}
      logits = model_inputs.evaluate(model, inputs, variables, batch)
      outputs['logits'] = logits.astype(jnp.float32)
    if {'candidates', 'index'} <= set(batch):
      outputs[_TARGET] = partial_labels.within(
        partial_labels.looked_up(state.extra.targets, batch['index']),
        batch['candidates'] > 0,
      )
    return outputs

  return types.Method(init, update, predict)


def contrastive_loss(
  query: jax.Array,
  key: jax.Array,
  guess: jax.Array,
  mask: jax.Array,
  queue: key_queue.Queue,
  *,
  warm: jax.typing.ArrayLike,
  temperature: float,
) -> jax.Array:
  """PiCO's contrastive loss (eq. 4), MoCo's during the warm-up.

  Gradients go through all queries, of other devices too, and through no key.

  Args:
    query: Unit embeddings of this device's rows, [B, D].
    key: Those of the key network, [B, D].
    guess: Classes, [B].
    mask: 1 for a real row, [B].
    queue: Earlier keys.
    warm: Whether the warm-up is over.
    temperature: Similarities are divided by it.

  Returns:
    [B].
  """
  queries, keys, guesses, real = parallel.all_gather((query, key, guess, mask))
  pool = jnp.concatenate(
    [queries, jax.lax.stop_gradient(jnp.concatenate([keys, queue.keys]))]
  )
  labels = jnp.concatenate([guesses, guesses, queue.labels])
  there = jnp.concatenate([real > 0, real > 0, queue.labels >= 0])
  number = len(queries)
  column = jnp.arange(len(pool))[None]
  row = parallel.places(len(query))[:, None]
  own_key = column == number + row
  in_queue = column >= 2 * number
  alike = guess[:, None] == labels[None]
  counted = jnp.where(warm, column != row, own_key | in_queue)
  return contrastive.info_nce(
    query,
    pool,
    positive=jnp.where(warm, alike, own_key),
    counted=counted & there[None],
    temperature=temperature,
  )
