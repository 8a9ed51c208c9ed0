"""Protocol: how good features are, while they are still being learned.

Any method whose `predict` gives 'features' can be judged so at every evaluation
of its run: `measures` is for `types.Companion`. The network is frozen; labels
reach nothing but what is printed. k-NN is weighted as in Wu, Xiong, Yu and Lin,
'Unsupervised Feature Learning via Non-Parametric Instance Discrimination', CVPR
2018, section 3.4 (https://arxiv.org/abs/1805.01978); the linear probe is
`linear_probe`, its strength chosen on training rows that it has not seen.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from repjax import loop
from repjax import types
from repjax.protocols import linear_probe
from repjax.types import InputError
from repjax.types import check_range

# Inverse regularization of probes.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)

# Queries whose neighbours are looked for at once.
_CHUNK = 512

Passes = Callable[[], Iterable[types.HostBatch]]


def measures(
  method: types.Method | types.Predictor,
  train: Passes,
  judged: Mapping[str, Passes],
  *,
  num_classes: int,
  neighbours: int = 20,
  temperature: float = 0.07,
  strengths: Sequence[float] = STRENGTHS,
) -> dict[str, Callable[[types.TrainState], float]]:
  """Accuracies of a state's features, for the evaluations of a run.

  Args:
    method: Its `predict` gives 'features' [B, D].
    train: Gives one pass over the rows that neighbours are looked for in and
      probes are fitted on.
    judged: Split -> one pass over it.
    num_classes: C.
    neighbours: k; the rows of training if there are fewer.
    temperature: Of the votes, > 0.
    strengths: Of probes, rising, inverse; one of them is chosen on a fifth of
      the training rows. () for no probe.

  Returns:
    '<split>/knn' and '<split>/linear' -> (state) -> accuracy. What is computed
    for a state is computed once, at the first of them.
  """
  check_range('[1, inf)', neighbours=neighbours)
  check_range('(0, inf)', temperature=temperature)
  for strength in strengths:
    check_range('(0, inf)', strengths=strength)
  evaluator = loop.Evaluator(method)
  names = [
    f'{split}/{kind}'
    for split in judged
    for kind in ('knn', 'linear')[: 2 if strengths else 1]
  ]
  # With the state that was measured last; a step donates its arrays.
  last: dict[str, object] = {'state': None}

  def measure_all(state):
    rows, labels = _seen(evaluator, state, train, 'the training rows')
    probe = None
    if strengths:
      probe = fit_probe(
        rows, labels, num_classes=num_classes, strengths=strengths
      )
    found: dict[str, object] = {'state': state}
    for split, passes in judged.items():
      queries, expected = _seen(evaluator, state, passes, split)
      votes = nearest(
        rows,
        labels,
        queries,
        num_classes=num_classes,
        neighbours=neighbours,
        temperature=temperature,
      )
      found[f'{split}/knn'] = (votes.argmax(-1) == expected).mean()
      if probe is not None:
        logits = queries @ probe.kernel + probe.bias
        found[f'{split}/linear'] = (logits.argmax(-1) == expected).mean()
    return found

  def measure(name):
    def of(state):
      if last['state'] is not state:
        found = measure_all(state)
        last.clear()
        last.update(found)
      return float(last[name])

    return of

  return {name: measure(name) for name in names}


def _seen(evaluator, state, passes, split):
  outputs, columns = evaluator(state, passes(), split=split)
  if 'features' not in outputs or 'label' not in columns:
    raise InputError(
      f'Probes need features and labels; of {split} there are '
      f'{sorted(outputs)} and {sorted(columns)}.'
    )
  return outputs['features'], columns['label']


def fit_probe(
  features: np.ndarray,
  labels: np.ndarray,
  *,
  num_classes: int,
  strengths: Sequence[float] = STRENGTHS,
  seed: int = 0,
) -> linear_probe.Head:
  """A linear classifier whose strength is chosen on a fifth of the rows.

  Args:
    features: [N, D].
    labels: Integers in [0, num_classes), [N].
    num_classes: C.
    strengths: Inverse regularization, rising.
    seed: Of which rows choose.

  Returns:
    The head that was fitted on the other four fifths.

  Raises:
    InputError: There are fewer than ten rows, or those that the probe refuses.
  """
  if len(features) < 10:
    raise InputError(
      f'A probe needs ten rows or more, to fit and to choose; got '
      f'{len(features)}.'
    )
  order = np.random.default_rng(seed).permutation(len(features))
  choose, fit = np.split(order, [len(order) // 5])
  return linear_probe.fit(
    features[fit],
    labels[fit],
    val_features=features[choose],
    val_labels=labels[choose],
    num_classes=num_classes,
    grid=np.asarray(strengths),
    solver='jax',
  ).head


def nearest(
  features: np.ndarray,
  labels: np.ndarray,
  queries: np.ndarray,
  *,
  num_classes: int,
  neighbours: int = 20,
  temperature: float = 0.07,
) -> np.ndarray:
  """Votes of the nearest rows by cosine, each with exp(cosine / temperature).

  Args:
    features: [N, D].
    labels: [N].
    queries: [M, D].
    num_classes: C.
    neighbours: k; N if there are fewer rows.
    temperature: > 0.

  Returns:
    [M, C].
  """
  count = min(neighbours, len(features))
  rows, targets = jnp.asarray(_unit(features)), jnp.asarray(labels)
  found = []
  for start in range(0, len(queries), _CHUNK):
    part = _unit(queries[start : start + _CHUNK])
    # Chunks of one shape share a compiled program.
    whole = np.zeros((min(_CHUNK, len(queries)), part.shape[1]), part.dtype)
    whole[: len(part)] = part
    votes = _votes(rows, targets, whole, count, num_classes, temperature)
    found.append(np.asarray(votes)[: len(part)])
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _votes(rows, labels, queries, count, num_classes, temperature):
  cosines = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
  near, places = jax.lax.top_k(cosines, count)
  # A common factor changes no winner, and keeps exponentials finite.
  weight = jnp.exp((near - 1) / temperature)
  chosen = jax.nn.one_hot(labels[places], num_classes)
  return (weight[..., None] * chosen).sum(1)


def _unit(x):
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def spread(
  outputs: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What tells of a collapse, without labels; a `measure` of an experiment.

  Args:
    outputs: With 'features' [N, D].
    columns: Not read.

  Returns:
    'spread', the features' standard deviation over their root mean square norm,
    and 'dimensions', in how many of them that is: the square of the
    covariance's trace over the trace of its square, 1 for a line.
  """
  del columns  # No label tells of a collapse.
  features = np.asarray(outputs['features'], np.float64)
  centred = features - features.mean(0)
  covariance = centred.T @ centred / len(features)
  total = np.trace(covariance)
  norm = np.square(features).sum(-1).mean()
  return {
    'spread': float(np.sqrt(total / max(norm, 1e-24))),
    'dimensions': float(total**2 / max(np.square(covariance).sum(), 1e-48)),
  }
