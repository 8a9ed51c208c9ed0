"""Compares variants of a method over seeds, trained side by side.

What the papers' claims at `small` are measured with: tiny models, whole sets
in memory, one row of results a seed.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import loop
from repjax import metrics
from repjax import types
from repjax.data import batches
from repjax.data import source as sources
from repjax.data import transforms


class Trained(NamedTuple):
  """S models of one method.

  Attributes:
    states: Their states, with a leading seed axis.
    logits: Of the test rows after the last step, [S, N, C].
    accuracy: Final test accuracy, [S].
    curve: (steps [T], test accuracy [T, S]) along the way.
  """

  states: types.TrainState
  logits: np.ndarray
  accuracy: np.ndarray
  curve: tuple[np.ndarray, np.ndarray]


def rows(
  source: sources.Source, transform: transforms.Transform
) -> dict[str, np.ndarray]:
  """All rows of a small source, in order, as the network sees them.

  Args:
    source: The set.
    transform: Of the whole set at once; draws nothing.

  Returns:
    Name -> [N, ...].
  """
  everything = batches.eval_batches(
    source,
    batch_size=len(source),
    transform=transform,
    process_index=0,
    process_count=1,
  ).batch(0)
  return {k: x for k, x in everything.items() if k not in ('mask', 'index')}


def per_seed(
  columns: Mapping[str, np.ndarray],
  seeds: Sequence[int],
  *,
  num_rows: int | None = None,
) -> dict[str, np.ndarray]:
  """One copy of the rows a seed, or a random subset of them of its own.

  Args:
    columns: Name -> [N, ...].
    seeds: S seeds.
    num_rows: Size n of the subsets; all rows if None.

  Returns:
    Name -> [S, n, ...].
  """
  total = len(next(iter(columns.values())))
  rows = np.stack(
    [
      np.arange(total)
      if num_rows is None
      else np.random.default_rng([seed, total]).permutation(total)[:num_rows]
      for seed in seeds
    ]
  )
  return {name: x[rows] for name, x in columns.items()}


def train(
  name: str,
  method: types.Method,
  columns: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  points: int = 20,
  vectorize: bool = True,
) -> Trained:
  """Trains one model a seed and follows its test accuracy.

  Args:
    name: For the progress lines.
    method: `predict` gives 'logits'.
    columns: Training rows a seed, [S, N, ...], as `per_seed` makes them.
    test: Test rows, 'image' and 'label', shared by the seeds.
    seeds: S seeds of initialization, data order and the method's own draws.
    batch_size: Rows of a step.
    steps: Number of updates.
    points: How often test accuracy is measured.
    vectorize: See `loop.fit_seeds`.
  """
  num_rows = columns['label'].shape[1]
  order = np.stack(
    [batches.rows_at(0, steps * batch_size, num_rows, seed) for seed in seeds]
  ).reshape((len(seeds), steps, batch_size))
  predict = predict_fn(method)
  at, accuracies = [], []
  for step, states, means in loop.fit_seeds(
    method,
    columns,
    order,
    seeds=seeds,
    every=max(1, steps // points),
    vectorize=vectorize,
  ):
    logits = predict(states, test)
    accuracies.append((logits.argmax(-1) == test['label']).mean(-1))
    at.append(step)
    logging.info(
      '%s: step %s/%s  %s  test/accuracy %.4f',
      name,
      f'{step:,}',
      f'{steps:,}',
      metrics.summary({k: float(v.mean()) for k, v in means.items()}),
      accuracies[-1].mean(),
    )
  return Trained(
    states, logits, accuracies[-1], (np.asarray(at), np.stack(accuracies))
  )


def predict_fn(method: types.Method):
  """(states with a seed axis, columns) -> logits [S, N, C] on the host.

  Columns without a seed axis are shared by all seeds.
  """

  @jax.jit
  def predict(states, batch):
    return jax.vmap(method.predict, in_axes=(0, None))(states, batch)['logits']

  def call(states, columns):
    mask = jnp.ones(len(columns['image']))
    return np.asarray(predict(states, {**columns, 'mask': mask}))

  return call
