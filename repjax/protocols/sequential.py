"""Fits tiny models to one task after the other, with remembered rows.

States go on from task to task, and all tasks share one compiled program of
`seed_loop`: the task's rows are shared by the seeds, and behind them come those
that each seed remembers.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Trainer:
  """Fits all seeds' models to a task in one call, task after task."""

  def __init__(
    self,
    method: types.Method,
    tasks: Sequence[Mapping[str, np.ndarray]],
    *,
    seeds: Sequence[int],
    batch_size: int,
    steps: int,
    memory_per_class: int,
    memory_batch: int,
    vectorize: bool = True,
  ):
    """Prepares all tasks; compiles with the first call.

    Args:
      method: Its batches have 'memory', 1 for a remembered row and else 0.
      tasks: Training rows of each, name -> [N, ...], with 'label'.
      seeds: S seeds of initialization, data order, memory and the method.
      batch_size: Current rows of a step.
      steps: Steps of each task.
      memory_per_class: Last rows of each class and task that are remembered.
      memory_batch: Remembered rows of a step; there are none in the first task,
        where their mask is 0.
      vectorize: Whether seeds go side by side, or one after the other.
    """
    self._method, self._tasks, self._seeds = method, tasks, tuple(seeds)
    self._vectorize = vectorize
    self._shape = dict(steps=steps, batch_size=batch_size)
    self._per_class, self._memory_batch = memory_per_class, memory_batch
    # Of one size for all tasks, so that they share one compiled program.
    self._num_rows = max(len(x['label']) for x in tasks)
    classes = [len(np.unique(x['label'])) for x in tasks]
    self._room = memory_per_class * sum(classes[:-1])
    self._memory = [
      {name: x[:0] for name, x in tasks[0].items()} for _ in seeds
    ]

  def init(self) -> types.TrainState:
    """States before the first task, with a leading seed axis."""
    return side_by_side.begin(
      self._method, {}, self._seeds, shared=self._tasks[0]
    )

  def fit(self, states: types.TrainState, number: int) -> types.TrainState:
    """Trains on one task, and then remembers its last rows.

    Args:
      states: With a leading seed axis.
      number: Of the task. Tasks come in order.

    Raises:
      NonFiniteError: If the mean loss is not finite; names the seed.
    """
    train = self._tasks[number]
    order = seed_loop.epochs(
      len(train['label']),
      [seed * len(self._tasks) + number for seed in self._seeds],
      **self._shape,
    )
    own = {}
    if self._room:
      own = {
        name: np.stack([_pad(x[name], self._room) for x in self._memory])
        for name in self._memory[0]
      }
      own['memory'] = np.ones(own['label'].shape, np.int32)
    shared = {name: _pad(x, self._num_rows) for name, x in train.items()}
    shared['memory'] = np.zeros(self._num_rows, np.int32)
    try:
      ((_, states, _),) = seed_loop.fit(
        self._method,
        states,
        own,
        np.concatenate([order, self._remembered(number)], axis=2),
        seeds=self._seeds,
        every=order.shape[1],
        shared=shared,
        num_full=self._shape['batch_size'],
        vectorize=self._vectorize,
      )
    except types.NonFiniteError as error:
      raise types.NonFiniteError(f'task {number}: {error}') from error
    if self._per_class:
      for place, seen in enumerate(order.reshape(len(self._seeds), -1)):
        kept = ring_buffer(seen, train['label'], self._per_class)
        self._memory[place] = {
          name: np.concatenate([x, train[name][kept]])
          for name, x in self._memory[place].items()
        }
    return states

  def _remembered(self, number):
    """Remembered rows of each step; -1, which is none, in the first task."""
    shape = self._shape['steps'], self._memory_batch
    filled = len(self._memory[0]['label'])
    if not filled:
      return np.full((len(self._seeds), *shape), -1)
    drawn = [
      np.random.default_rng([seed, number]).integers(0, filled, shape)
      for seed in self._seeds
    ]
    return self._num_rows + np.stack(drawn)


def ring_buffer(
  seen: np.ndarray, labels: np.ndarray, per_class: int
) -> np.ndarray:
  """Rows that buffers of `per_class` places, one a class, hold in the end.

  Args:
    seen: Rows in the order in which training saw them.
    labels: Of all rows.
    per_class: Places of each buffer; the oldest row makes room for a new one.

  Returns:
    Rows, [per_class * number of classes]; repeats rows where a class was seen
    less often.

  >>> ring_buffer(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 0]), 2).tolist()
  [1, 3, 2, 2]
  """
  kept = []
  for label in np.unique(labels):
    own = seen[labels[seen] == label][-per_class:]
    if not own.size:  # A short stretch may miss a class.
      own = np.flatnonzero(labels == label)[:1]
    kept.append(np.resize(own, per_class))
  return np.concatenate(kept)


def _pad(x, num_rows):
  return np.pad(x, [(0, num_rows - len(x))] + [(0, 0)] * (x.ndim - 1))
