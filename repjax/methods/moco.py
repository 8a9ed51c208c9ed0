"""Device code: MoCo, a row finds its key among those of earlier steps.

He, Fan, Wu, Xie and Girshick, 'Momentum Contrast for Unsupervised Visual
Representation Learning', CVPR 2020 (https://arxiv.org/abs/1911.05722); as in
its second version (Chen, Fan, Girshick and He, 2020,
https://arxiv.org/abs/2003.04297) with an MLP behind the features. A step goes
in the order of the authors' code:

  1. the key network moves towards the query network, and embeds second views.
  2. queries are compared with their own key and with the queue AS IT IS.
  3. the query network moves; the queue takes in the keys of all devices.

The authors shuffle rows between devices for the keys, since batch statistics of
few rows would tell which key is a query's own. Here keys are made in
evaluation, with the query network's running statistics, which tell nothing; for
a network without batch statistics the two are the same. The queue begins empty
(theirs with random vectors), and places without a key count for nothing.
"""

import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import contrastive
from repjax.methods import embedder
from repjax.methods import grouped
from repjax.methods import key_queue
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.methods import two_views
from repjax.types import InputError

# The column of keys, which a step adds.
_KEY = 'key'


class MocoState(NamedTuple):
  """What is kept beside the query network; replicated, saved with it.

  Attributes:
    key_params: Like the parameters of the query network.
    queue: The latest keys; labels are 0 where there is a key.
  """

  key_params: types.PyTree
  queue: key_queue.Queue


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  views: two_views.TwoViews,
  queue_size: int = 65_536,
  momentum: float = 0.999,
  temperature: float = 0.2,
  dim: int = 128,
  hidden: int = 0,
  compute_dtype: str = 'float32',
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Momentum contrast.

  Args:
    model: Any linen classifier; its last layer is not used, and not trained.
    tx: Optax chain over {'model', 'projection'}.
    views: What the query network and the key network see.
    queue_size: K, a multiple of the rows of a step over all devices.
    momentum: Of the key network, in [0, 1].
    temperature: tau > 0; .07 in the first version, .2 in the second.
    dim: Of the embeddings.
    hidden: Width of the projection's hidden layer; 0 for that of the features.
    compute_dtype: 'float32' or 'bfloat16', of both networks.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: microbatches and ema_decay, which must be 1 and 0.

  Returns:
    A `types.Method`. Its sums have 'loss' and 'accuracy', how often a row's own
    key is the nearest. `predict` gives 'features' [B, D] of the query network.

  Raises:
    InputError: If a setting is out of range, or, when a step is traced, if the
      queue does not hold whole batches.
  """
  types.check_range('[1, inf)', queue_size=queue_size)
  types.check_range('[0, 1]', momentum=momentum)
  types.check_range('(0, inf)', temperature=temperature)
  types.check_choice('compute_dtype', compute_dtype, ('float32', 'bfloat16'))
  grouped.check_whole(settings)
  if settings.pop('ema_decay', 0):
    raise InputError(
      'ema_decay must be 0: MoCo has an average of its own, the key network.'
    )
  settings.pop('microbatches', None)
  if settings:
    raise InputError(f'MoCo has no settings {sorted(settings)}.')
  own = embedder.Embedder(
    model=model, dim=dim, hidden=hidden, inputs=inputs, head=head
  )

  def loss_fn(params, model_state, batch, rng, *, queue):
    made = own.embed(params, model_state, batch, rng)
    filled = queue.labels >= 0
    loss = contrastive.moco(
      made.vectors,
      batch[_KEY],
      queue.keys,
      temperature=temperature,
      filled=filled,
    )
    nearest = jnp.where(filled[None], made.vectors @ queue.keys.T, -2.0).max(-1)
    nearer = (made.vectors * batch[_KEY]).sum(-1) > nearest
    return types.Losses(
      loss, made.model_state, {'loss': loss, 'accuracy': nearer}
    )

  def init(rng, batch):
    model_state, params = steps.pop_params(own.init(rng, batch))
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      model_state=model_state,
      extra=MocoState(
        key_params=params, queue=key_queue.empty(queue_size, dim)
      ),
    )

  def update(state, batch, rng):
    rng_views, rng_model = jax.random.split(rng)
    first, second = views(batch, rng_views)
    key_params = optax.incremental_update(
      state.params, state.extra.key_params, 1 - momentum
    )
    seen = steps.seen(
      key_params, second, rng_model, compute_dtype=compute_dtype
    )
    key = jax.lax.stop_gradient(
      own.embed_as_it_is(seen.params, state.model_state, seen.batch)
    )
    grad_fn = steps.WholeGradFn(
      'MoCo',
      functools.partial(loss_fn, queue=state.extra.queue),
      {**steps.cast_inputs(first, compute_dtype), _KEY: key},
      parallel.device_rng(rng_model),
      state.model_state,
      compute_dtype=jnp.dtype(compute_dtype),
    )
    params, opt_state, aux = steps.descend(
      tx, grad_fn, state.params, state.opt_state
    )
    keys, real = parallel.all_gather((key, batch['mask']))
    return types.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      model_state=aux.model_state,
      extra=MocoState(
        key_params=key_params,
        queue=key_queue.enqueued(
          state.extra.queue, keys, jnp.zeros(len(keys), jnp.int32), real
        ),
      ),
    ), aux.sums

  return types.Method(init, update, own.predict)
