"""Device code: test-time adaptation by entropy minimization.

Wang, Shelhamer, Liu, Olshausen and Darrell, 'Tent: Fully Test-Time Adaptation
by Entropy Minimization', ICLR 2021 (https://arxiv.org/abs/2006.10726). The
scales and biases of norms learn from batches without labels, whose own
statistics normalise them; all else stays.

    layers = norm_layers.find(method.predict, state, batch)
    paths = norm_layers.affine(variables, layers)
    adapter = tent.make(method.predict, optax.adam(1e-3), paths, prior=0.0)
    adapted = adapter.init(state)
    for batch in stream:
      adapted, outputs = adapter.step(state, adapted, batch)

`state` is that of the trained run, and never changes: what is adapted lies
beside it, so that a reset is bit for bit.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple
from typing import get_args

import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.adapt import norm_layers

When = Literal['before', 'after']

# Of the moving average of entropies that tells when to reset: the weight of the
# old value (Niu et al., ICLR 2023, algorithm 1).
_AVERAGE = 0.9


class Adapted(NamedTuple):
  """What adaptation changes.

  Attributes:
    leaves: Path, joined by '/', -> scale or bias.
    opt_state: Of the optax chain.
    batches: Batches since the last reset, int32 scalar.
    entropy: Moving average over batches of the mean entropy, in shares of the
      largest; 1 at the start.
  """

  leaves: Mapping[str, jax.Array]
  opt_state: types.PyTree
  batches: jax.Array
  entropy: jax.Array


class Adapter(NamedTuple):
  """Adaptation of one trained state to a stream of batches.

  Attributes:
    init: (trained state) -> Adapted, as it is before the stream.
    step: (trained state, Adapted, batch) -> (Adapted, outputs). Outputs are
      'logits' [B, C], 'entropy' [B] in nats, of the same forward pass, and
      'weight' [B], with which each row counted in the last gradient.
    install: (trained state, Adapted) -> the state with adapted leaves.
  """

  init: Callable[[types.TrainState], Adapted]
  step: Callable[
    [types.TrainState, Adapted, types.Batch],
    tuple[Adapted, dict[str, jax.Array]],
  ]
  install: Callable[[types.TrainState, Adapted], types.TrainState]


def make(
  predict: norm_layers.Predict,
  tx: optax.GradientTransformation,
  paths: Sequence[trees.Path],
  *,
  prior: float | None = 0.0,
  steps: int = 1,
  when: When = 'before',
  confidence: float = 1.0,
  reset_every: int = 0,
  reset_below: float = 0.0,
) -> Adapter:
  """Minimizes the mean entropy of predictions, batch by batch.

  Args:
    predict: Of the method that was trained; gives 'logits' [B, C].
    tx: Optax chain; sees the leaves of `paths` alone. The authors: Adam at
      1e-3.
    paths: What adapts, as `norm_layers.affine` gives it.
    prior: Rows that the running statistics of batch norms count as beside those
      of the batch; 0 is the paper's: a batch with a single real row, padded,
      is then predicted with the running ones by norms on [B, D], and updates
      nothing if there are such norms. None keeps the running ones alone, as
      for networks without batch norms.
    steps: Updates a batch, >= 1.
    when: Whether outputs are of the forward pass 'before' the last update, as
      in the authors' code, at no further cost, or of one more 'after' it.
    confidence: Rows count in the gradient only if their entropy is below this
      share of the largest, log C, and each by exp(limit - entropy) (Niu et al.,
      'Efficient Test-Time Model Adaptation without Forgetting', ICML 2022, eq.
      3, https://arxiv.org/abs/2204.02610; there 0.4). 1 lets all count alike.
    reset_every: Batches between two resets; 1 is the paper's 'episodic', and 0
      never resets.
    reset_below: Resets when the moving average of the mean entropy falls below
      this share of log C (as Niu et al., 'Towards Stable Test-Time Adaptation
      in Dynamic Wild World', ICLR 2023, https://arxiv.org/abs/2302.12400); 0
      never does.

  Raises:
    InputError: If a setting is out of range, or, at `init`, if the state keeps
      averages of its parameters (`start.as_predicted` puts them in place).
  """
  types.check_range('[1, inf)', steps=steps)
  types.check_range('[0, inf)', reset_every=reset_every)
  types.check_range('(0, 1]', confidence=confidence)
  types.check_range('[0, 1)', reset_below=reset_below)
  types.check_choice('when', when, get_args(When))
  trained = predict
  if prior is not None:
    predict = norm_layers.with_statistics(predict, prior)

  def init(source):
    if hasattr(source.extra, 'statistics'):  # `methods.step.EmaState`.
      raise types.InputError(
        'The state predicts with averages of its parameters, which would stay '
        'as they are: adapt repjax.start.as_predicted(state).'
      )
    leaves = {'/'.join(path): _variables(source)[path] for path in paths}
    return Adapted(
      leaves, tx.init(leaves), jnp.zeros((), jnp.int32), jnp.ones(())
    )

  def install(source, adapted):
    return _with_leaves(source, adapted.leaves)

  def forward(source, leaves, batch):
    logits = predict(_with_leaves(source, leaves), batch)['logits']
    return logits.astype(jnp.float32)

  def update(source, adapted, batch, *, counts):
    least = 1
    if prior == 0:
      least = norm_layers.least_rows(trained, source, batch)
    real = batch['mask'] > 0

    def total(leaves):
      logits = forward(source, leaves, batch)
      entropies = entropy(logits)
      weights = real * _weights(entropies, logits.shape[-1], confidence)
      return (weights * entropies).sum(), (logits, entropies, weights)

    grads, outputs = jax.grad(total, has_aux=True)(adapted.leaves)
    logits, entropies, weights = outputs
    grads, used, rows, entropies_sum = parallel.psum(
      (grads, (weights > 0).sum(), real.sum(), (real * entropies).sum())
    )
    enough = rows >= least
    used, weights = enough * used, enough * weights
    grads = jax.tree.map(lambda x: x / jnp.maximum(used, 1), grads)
    updates, opt_state = tx.update(grads, adapted.opt_state, adapted.leaves)
    moved = optax.apply_updates(adapted.leaves, updates)
    # Momentum would move on by itself where no row says anything.
    leaves, opt_state = _choose(
      used > 0, (moved, opt_state), (adapted.leaves, adapted.opt_state)
    )
    mean = entropies_sum / jnp.maximum(rows, 1) / jnp.log(logits.shape[-1])
    average = _AVERAGE * adapted.entropy + (1 - _AVERAGE) * mean
    adapted = adapted._replace(
      leaves=leaves,
      opt_state=opt_state,
      entropy=jnp.where(enough & counts, average, adapted.entropy),
    )
    return adapted, (logits, entropies, weights)

  def step(source, adapted, batch):
    batch = gradients.blank_padding(batch)
    due = adapted.entropy < reset_below
    if reset_every:
      due |= adapted.batches >= reset_every
    if reset_every or reset_below:
      adapted = _choose(due, init(source), adapted)
    for i in range(steps):
      adapted, outputs = update(source, adapted, batch, counts=i == 0)
    logits, entropies, weights = outputs
    if when == 'after':
      logits = forward(source, adapted.leaves, batch)
      entropies = entropy(logits)
    adapted = adapted._replace(batches=adapted.batches + 1)
    return adapted, {
      'logits': logits,
      'entropy': entropies,
      'weight': weights,
    }

  return Adapter(init, step, install)


def over(
  adapter: Adapter, source: types.TrainState, stream: types.Batch
) -> tuple[Adapted, dict[str, jax.Array]]:
  """Adapts to a whole stream that lies on the device, in one program.

  Args:
    adapter: From `make`.
    source: The trained state.
    stream: T batches, name -> [T, B, ...].

  Returns:
    What has become of it, and the outputs of all batches, [T, B, ...].
  """

  def step(adapted, batch):
    return adapter.step(source, adapted, batch)

  return jax.lax.scan(step, adapter.init(source), stream)


def entropy(logits: jax.Array) -> jax.Array:
  """Entropy of the predicted classes in nats, [B, C] -> [B] (eq. 1)."""
  log_probs = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_probs) * log_probs).sum(-1)


def _weights(entropies, num_classes, confidence):
  if confidence == 1:
    return jnp.ones_like(entropies)
  limit = confidence * jnp.log(num_classes)
  entropies = jax.lax.stop_gradient(entropies)
  return jnp.where(entropies < limit, jnp.exp(limit - entropies), 0)


def _choose(condition, one, other):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _variables(state):
  """Leaves by path, which begins with the collection."""
  return trees.flatten({**state.model_state, 'params': state.params})


def _with_leaves(state, leaves):
  """The state with some leaves replaced, path -> leaf."""
  variables = trees.map_with_path(
    lambda path, x: leaves.get('/'.join(path), x),
    {**state.model_state, 'params': state.params},
  )
  params = variables.pop('params')
  return state.replace(params=params, model_state=variables)
