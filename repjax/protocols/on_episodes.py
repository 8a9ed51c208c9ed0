"""Protocol: classifiers of frozen features, on the same few-shot episodes.

    sampler = episodes.sampler(labels, ways=5, shots=1, seed=0)
    accuracy = on_episodes.accuracy(features, sampler, classifiers, count=600)
    averages.interval(accuracy['cosine'] - accuracy['nearest centroid'])

Differences on the same episodes are paired: their interval is several times
narrower than that of two means.
"""

from collections.abc import Mapping

import jax
from jax import tree_util
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.batches import episodes
from repjax.layers import layer_inputs
from repjax.methods import few_shot
from repjax.protocols import side_by_side


def features(
  method: types.Method,
  states: types.TrainState,
  rows: Mapping[str, np.ndarray],
  *,
  layer: str,
  at_once: int = 2000,
) -> np.ndarray:
  """What one layer of S models sees of all rows, [S, N, D].

  Args:
    method: Whose `predict` applies the layer, once.
    states: Of the models, with a leading seed axis.
    rows: Name -> [N, ...].
    layer: Module names, joined by '/'; 'head' for features before the head.
    at_once: How many rows one call handles.

  Raises:
    InputError: If no layer is called so.
  """

  def predict(state, batch):
    _, inputs = layer_inputs.with_input_of(
      lambda: method.predict(state, batch), layer
    )
    return {'inputs': inputs}

  predict_all = side_by_side.predict_fn(types.Predictor(predict))
  total = len(next(iter(rows.values())))
  parts = [
    predict_all(
      states, {k: x[first : first + at_once] for k, x in rows.items()}
    )
    for first in range(0, total, at_once)
  ]
  return np.concatenate([x['inputs'] for x in parts], 1)


def accuracy(
  features: np.ndarray,
  sampler: episodes.Sampler,
  classifiers: Mapping[str, few_shot.Classifier],
  *,
  count: int,
  at_once: int = 250,
) -> dict[str, np.ndarray]:
  """Share of queries that each classifier gets right, name -> [count].

  Args:
    features: Of the rows that the sampler was made for, [R, D].
    sampler: Of the episodes 0 to count - 1.
    classifiers: Name -> classifier. Those that draw get a key an episode.
    count: Number of episodes.
    at_once: How many of them one call handles.

  Raises:
    InputError: If there are fewer features than rows, or not all are finite, or
      a classifier gives what is not: of features that its map has no value for.
  """
  rows = check_features(features, sampler)
  types.check_range('[1, inf)', count=count, at_once=at_once)
  # Outside of `_judge`, where a seed of 32 bits would be no number of JAX.
  key = jax.random.key(sampler.seed + 1)
  at_once = min(at_once, count)
  parts: dict[str, list[np.ndarray]] = {name: [] for name in classifiers}
  for first in range(0, count, at_once):
    # The last part is as large as the others, so that nothing compiles twice.
    drawn = sampler.draw(first, at_once)
    # One program a classifier: XLA on CPUs has hung where the solvers of
    # several ran beside each other in one.
    for name, classifier in classifiers.items():
      if not isinstance(classifier, tree_util.Partial):
        classifier = tree_util.Partial(classifier)
      right, finite = jax.device_get(
        _judge(rows, drawn, first, key, classifier)
      )
      if not finite:
        raise types.InputError(
          f'The classifier {name!r} gives logits that are not finite: features '
          f'(lowest {rows.min():.3g}) that are negative have no power or '
          'logarithm, and huge ones no square.'
        )
      parts[name].append(right)
  return {name: np.concatenate(x)[:count] for name, x in parts.items()}


def mean_accuracy(
  features: np.ndarray,
  labels: np.ndarray,
  classifier: few_shot.Classifier,
  *,
  shots: int,
  ways: int,
  queries: int,
  count: int,
  seed: int,
  at_once: int = 100,
) -> float:
  """Share of queries that one classifier gets right, over all episodes.

  Args:
    features: [R, D].
    labels: [R].
    classifier: What judges them.
    shots: Rows to learn from, of each class.
    ways: Classes of an episode.
    queries: Rows to be judged by, of each class.
    count: Number of episodes.
    seed: Of the episodes: equal ones have the same.
    at_once: How many of them one call handles.
  """
  sampler = episodes.sampler(
    labels, ways=ways, shots=shots, queries=queries, seed=seed
  )
  found = accuracy(
    features, sampler, {'it': classifier}, count=count, at_once=at_once
  )
  return float(found['it'].mean())


@jax.jit
def _judge(features, drawn, first, key, classifier):
  """Accuracy in each episode, [E], and whether all logits are finite.

  The classifier is a pytree: another base compiles nothing anew.
  """
  count, ways, queries = drawn.query.shape
  truth = jnp.repeat(jnp.arange(ways), queries)

  def one(support, query, index):
    rows = features[query].reshape(len(truth), -1)
    rng = jax.random.fold_in(key, index)
    logits = classifier(features[support], rows, rng)
    right = (logits.argmax(-1) == truth).mean()
    return right, jnp.isfinite(logits).all()

  right, finite = jax.vmap(one)(
    drawn.support, drawn.query, first + jnp.arange(count)
  )
  return right, finite.all()


def check_features(
  features: np.ndarray, sampler: episodes.Sampler
) -> jax.Array:
  """Features as device arrays.

  Raises:
    InputError: If there are fewer of them than rows, or not all are finite.
  """
  features = np.asarray(features)
  if features.ndim != 2 or len(features) <= sampler.rows.max():
    raise types.InputError(
      f'features must be [R, D] with R > {sampler.rows.max()}, the last row of '
      f'an episode; got {features.shape}.'
    )
  if not np.isfinite(features).all():
    raise types.InputError('features are not all finite: check the backbone.')
  return jnp.asarray(features, jnp.float32)
