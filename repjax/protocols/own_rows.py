"""Protocol: one model a seed, trained and tested on rows of that seed's own.

`side_by_side` shares the test rows; here seeds differ in them, too, as where a
seed decides how a set is made. Seeds go one after the other.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
import jax
import numpy as np

from repjax import types
from repjax.metrics import averages
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]


def fit(
  name: str,
  method: types.Method,
  states: types.TrainState,
  columns: Columns,
  order: np.ndarray,
  *,
  seeds: Sequence[int],
  points: int,
  test: Columns | None = None,
) -> tuple[types.TrainState, tuple[np.ndarray, np.ndarray]]:
  """Trains from states, and follows the accuracy.

  Args:
    name: For the progress lines.
    method: What is trained; `predict` gives 'logits'.
    states: With a leading seed axis.
    columns: Training rows a seed, name -> [S, N, ...].
    order: Rows of each step, [S, T, B].
    seeds: S seeds.
    points: How often a line is written, at least.
    test: Rows that are followed, name -> [S, M, ...]; None for none.

  Returns:
    (states, (steps [P], accuracy [P, S])).
  """
  steps = order.shape[1]
  at, scores = [], []
  for step, current, means in seed_loop.fit(
    method,
    states,
    columns,
    order,
    seeds=seeds,
    every=max(1, steps // points),
    vectorize=False,
  ):
    line = averages.summary({k: float(x.mean()) for k, x in means.items()})
    if test is not None:
      outputs = predict(method.predict, current, test)
      at.append(step)
      scores.append(side_by_side.accuracy(outputs, test))
      line += f'  test/accuracy {scores[-1].mean():.4f}'
    logging.info('%s: step %d/%d  %s', name, step, steps, line)
  return current, (np.asarray(at), np.asarray(scores))


def predict(
  predict_fn: Callable[[types.TrainState, types.Batch], Mapping[str, Any]],
  states: types.TrainState,
  rows: Columns,
) -> dict[str, np.ndarray]:
  """What each seed's model says of its own rows, name -> [S, M, ...].

  Args:
    predict_fn: As that of a `types.Method`.
    states: With a leading seed axis.
    rows: Name -> [S, M, ...].

  Raises:
    InputError: If there are not as many states as seeds have rows.
  """
  one, found = jax.jit(predict_fn), []
  first, count = next(iter(rows.values())), len(jax.tree.leaves(states)[0])
  if count != len(first):  # JAX takes the last one where one is missing.
    raise types.InputError(
      f'{count} states need rows of as many seeds; got {len(first)}.'
    )
  for seed in range(len(first)):
    state, batch = jax.tree.map(lambda x, at=seed: x[at], (states, rows))
    mask = np.ones(first.shape[1], np.float32)
    found.append(jax.device_get(one(state, {**batch, 'mask': mask})))
  return {name: np.stack([x[name] for x in found]) for name in found[0]}
