"""Device code: views of an image that tell each other's cluster (SwAV).

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, 'Unsupervised Learning of
Visual Features by Contrasting Cluster Assignments', NeurIPS 2020
(https://arxiv.org/abs/2006.09882). WILDS 2.0 pretrains so on images of the
target domain, and trains on labels from there
(https://arxiv.org/abs/2112.05090).

    pretrained = swav.make(network, optax.adam(1e-3), num_prototypes=20)
    ...
    params = swav.network_params(state)
    state = start.with_params(state, params, keep=lambda p: p[0] == 'head')
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.layers import norms
from repjax.methods import classifier
from repjax.methods import grouped
from repjax.methods import model_inputs
from repjax.methods import step as steps

# Of the projection's batch statistics in the method's state, and a column that
# tells whether prototypes are trained yet.
_STATE, _MOVES = 'swav', 'prototypes_move'


class Projection(nn.Module):
  """Features [B, D] -> unit vectors [B, dim]: dense, batch norm, relu, dense.

  Attributes:
    hidden_dim: Width of the hidden layer; 2048 in the paper.
    dim: Of the sphere on which prototypes lie; 128 in the paper.
  """

  hidden_dim: int = 2048
  dim: int = 128

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, D] -> [B, dim], float32; `mask` tells which rows are real."""
    types.check_range('[1, inf)', hidden_dim=self.hidden_dim, dim=self.dim)
    x = nn.Dense(self.hidden_dim, name='hidden')(x)
    x = nn.relu(norms.BatchNorm(name='norm')(x, train=train, mask=mask))
    return unit(nn.Dense(self.dim, name='out')(x).astype(jnp.float32))


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_prototypes: int,
  temperature: float = 0.1,
  epsilon: float = 0.05,
  iterations: int = 3,
  frozen_steps: int = 0,
  views: Sequence[str] = ('strong',),
  small_views: Sequence[str] = (),
  num_assigned: int = 2,
  projection: nn.Module | None = None,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes the swapped prediction of clusters (eq. 1 and 2, sec. 3.3).

  Labels are not read. The queue of past embeddings, which the paper has for
  small batches, is not here: a batch should have many times more rows than
  there are prototypes.

  Args:
    model: Any linen classifier; its last layer is not used, and not trained.
    tx: Optax chain, over {'model', 'projection', 'prototypes'}.
    num_prototypes: K; 3000 in the paper, and 20 for Camelyon17 in WILDS.
    temperature: Of predictions, > 0.
    epsilon: Weight of the entropy of assignments, in [0.02, inf): the smaller,
      the harder they are. The authors have 0.05, WILDS 0.03.
    iterations: Of Sinkhorn and Knopp, >= 1.
    frozen_steps: First updates that leave the prototypes as they are; 313 in
      the authors' code for ImageNet.
    views: Columns with further views, in the shape of the input, which is the
      first one. Of texts they share its 'token_mask'.
    small_views: Columns with smaller ones (multi-crop, sec. 3.3), which
      predict, and have no cluster of their own. The model must take both sizes.
    num_assigned: How many of the views, the first ones, are given clusters.
    projection: Called as `Projection` is; by default one of these.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: compute_dtype, ema_decay, transform, finish; see `steps.make`.

  Returns:
    A `types.Method` over batches with the columns of `views`. Its sums have
    'loss' and 'agreement', how often all views predict the cluster of the
    first one. `predict` gives 'features' [B, D] and 'scores' [B, K], the
    cosines with the prototypes, of the input.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if a
      column is missing.
  """
  types.check_range('[2, inf)', num_prototypes=num_prototypes)
  types.check_range('(0, inf)', temperature=temperature)
  types.check_range('[0, inf)', frozen_steps=frozen_steps)
  types.check_range('[1, inf)', num_views=len(views))
  types.check_range(f'[1, {len(views) + 1}]', num_assigned=num_assigned)
  _check_assignment(epsilon, iterations)
  grouped.check_whole(settings)
  projection = projection or Projection()

  def embed(params, model_state, parts, rng):
    """Unit vectors of views of one shape, [V, B, dim], and new collections."""
    # Whatever else a row has, such as a text's 'token_mask', its views share.
    joined = {
      name: jnp.concatenate([x[name] for x in parts]) for name in parts[0]
    }
    own = {k: x for k, x in model_state.items() if k != _STATE}
    out = classifier.forward(
      model,
      inputs,
      {'params': params['model'], **own},
      joined,
      rng,
      head=head,
    )
    state = model_state[_STATE]
    vectors, new = projection.apply(
      {'params': params['projection'], **state},
      out.features,
      train=True,
      mask=joined['mask'],
      mutable=list(state),
    )
    shape = (len(parts), -1, vectors.shape[-1])
    return vectors.reshape(shape), {**out.model_state, _STATE: new}

  def loss_fn(params, model_state, batch, rng):
    rngs = jax.random.split(rng)
    whole = [batch, *(classifier.view(batch, x) for x in views)]
    vectors, model_state = embed(params, model_state, whole, rngs[0])
    if small_views:
      parts = [classifier.view(batch, x) for x in small_views]
      more, model_state = embed(params, model_state, parts, rngs[1])
      vectors = jnp.concatenate([vectors, more])
    prototypes = params['prototypes']
    prototypes = jnp.where(
      batch[_MOVES].max() > 0, prototypes, jax.lax.stop_gradient(prototypes)
    )
    scores = vectors @ prototypes  # [V, B, K]
    loss = swapped(
      scores,
      batch['mask'],
      num_assigned=num_assigned,
      temperature=temperature,
      epsilon=epsilon,
      iterations=iterations,
    )
    guess = scores.argmax(-1)
    agree = (guess == guess[:1]).all(0).astype(jnp.float32)
    return types.Losses(loss, model_state, {'loss': loss, 'agreement': agree})

  step = steps.make(loss_fn, tx, whole='SwAV', **settings)

  def init(rng, batch):
    rng_model, rng_projection, rng_prototypes = jax.random.split(rng, 3)
    variables = model_inputs.init(model, inputs, rng_model, batch)
    rest, of_model = steps.pop_params(variables)
    # Whatever is drawn, only the shape of the features counts.
    shape = jax.eval_shape(
      lambda x: (
        classifier.forward(
          model, inputs, x, batch, jax.random.key(0), head=head
        ).features
      ),
      variables,
    ).shape
    own = projection.init(rng_projection, jnp.zeros(shape), train=False)
    state, of_projection = steps.pop_params(own)
    dim = jax.eval_shape(
      lambda x: projection.apply(own, x, train=False), jnp.zeros(shape)
    ).shape[-1]
    prototypes = jax.random.normal(rng_prototypes, (dim, num_prototypes))
    params = {
      'model': of_model,
      'projection': of_projection,
      'prototypes': unit(prototypes, axis=0),
    }
    return step.init({'params': params, **rest, _STATE: state})

  def update(state, batch, rng):
    # As in the authors' code they are put back on the sphere ahead of a step,
    # whose gradient does not see that.
    before = unit(state.params['prototypes'], axis=0)
    state = state.replace(params={**state.params, 'prototypes': before})
    moves = state.step >= frozen_steps
    column = jnp.broadcast_to(moves, batch['mask'].shape).astype(jnp.float32)
    new, sums = step.update(state, {**batch, _MOVES: column}, rng)
    after = jnp.where(moves, new.params['prototypes'], before)
    return new.replace(params={**new.params, 'prototypes': after}), sums

  def predict(state, batch):
    variables = steps.variables(state)
    rest, params = steps.pop_params(variables)
    found = []

    def seen(next_fn, args, kwargs, context):
      if '/'.join(context.module.path) == head:
        found.append(args[0])
      return next_fn(*args, **kwargs)

    with nn.intercept_methods(seen):
      model_inputs.evaluate(
        model,
        inputs,
        {
          'params': params['model'],
          **{k: x for k, x in rest.items() if k != _STATE},
        },
        batch,
      )
    features = found[0].reshape((found[0].shape[0], -1)).astype(jnp.float32)
    vectors = projection.apply(
      {'params': params['projection'], **rest[_STATE]}, features, train=False
    )
    scores = vectors @ unit(params['prototypes'], axis=0)
    return {'features': features, 'scores': scores}

  return types.Method(init, update, predict)


def network_params(state: types.TrainState) -> types.PyTree:
  """Parameters of the network alone, to start another method from.

  Its last layer is as it was drawn. Batch statistics of the network are
  collections of `state.model_state`, as they are of any method.
  """
  return steps.variables(state)['params']['model']


def swapped(
  scores: jax.Array,
  mask: jax.Array,
  *,
  num_assigned: int = 2,
  temperature: float = 0.1,
  epsilon: float = 0.05,
  iterations: int = 3,
) -> jax.Array:
  """What each row loses when views predict each other's cluster, [B].

  The mean, over the assigned views and over all others, of the cross-entropy
  of softmax(scores / temperature) of the other with the assignment.

  Args:
    scores: Cosines with the prototypes, [V, B, K].
    mask: 1 for real rows, [B].
    num_assigned: How many views, the first ones, are given clusters.
    temperature: Of predictions.
    epsilon: Weight of the entropy of assignments.
    iterations: Of Sinkhorn and Knopp.
  """
  logs = jax.nn.log_softmax(scores / temperature)
  total = jnp.zeros(scores.shape[1])
  for i in range(num_assigned):
    target = assignments(
      scores[i], mask, epsilon=epsilon, iterations=iterations
    )
    others = logs.sum(0) - logs[i]
    total -= (target * others).sum(-1)
  return total / num_assigned / (len(scores) - 1)


def assignments(
  scores: jax.Array,
  mask: jax.Array,
  *,
  epsilon: float = 0.05,
  iterations: int = 3,
) -> jax.Array:
  """Soft clusters of rows, such that clusters are about equally large (eq. 3).

  Iterations of Sinkhorn and Knopp over the real rows of all devices: clusters
  are scaled to be equally large, then rows to be one each.

  Args:
    scores: Cosines with the prototypes, [B, K]; no gradient reaches them.
    mask: 1 for real rows, [B].
    epsilon: Weight of the entropy, in [0.02, inf).
    iterations: How many, >= 1.

  Returns:
    [B, K], rows sum to one; of padding 0.
  """
  _check_assignment(epsilon, iterations)
  real = (mask > 0).astype(jnp.float32)[:, None]
  scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
  # Cosines are at most 1: so no exponential is above 1, and none vanishes.
  made = real * jnp.exp((jnp.where(real > 0, scores, 0) - 1) / epsilon)
  number = jnp.maximum(parallel.psum(real.sum()), 1.0)
  num_clusters = scores.shape[1]
  for _ in range(iterations):
    sizes = parallel.psum(made.sum(0, keepdims=True))
    made = made / jnp.where(sizes > 0, sizes, 1.0) / num_clusters
    rows = made.sum(1, keepdims=True)
    made = made / jnp.where(rows > 0, rows, 1.0) / number
  return made * number


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Vectors of length one, or shorter than 1e-12 (PyTorch's `normalize`)."""
  square = jnp.square(x).sum(axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _check_assignment(epsilon, iterations):
  types.check_range('[0.02, inf)', epsilon=epsilon)
  types.check_range('[1, inf)', iterations=iterations)
