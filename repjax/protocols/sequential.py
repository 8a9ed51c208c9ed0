"""Fits tiny models to one task after the other, with remembered rows.

The steps of a task are one call on one device, all seeds side by side, as in
`loop.fit_seeds`; states go on from task to task, and all tasks share one
compiled program.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.batches import in_order


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
      vectorize: See `loop.fit_seeds`.
    """
    self._method, self._tasks, self._seeds = method, tasks, tuple(seeds)
    self._shape = (steps, batch_size)
    self._per_class, self._memory_batch = memory_per_class, memory_batch
    self._base = jax.vmap(jax.random.key)(jnp.asarray(self._seeds))
    self._num_rows = max(len(x['label']) for x in tasks)
    self._memory = [
      {name: x[:0] for name, x in tasks[0].items()} for _ in seeds
    ]
    # Of one size for all tasks, so that they share one compiled program.
    classes = [len(np.unique(x['label'])) for x in tasks]
    self._room = max(1, memory_per_class * sum(classes[:-1]))
    one = self._fit_one

    def one_by_one(states, base, columns, memory, order, past):
      return jax.lax.map(
        lambda x: one(x[0], x[1], columns, *x[2:]),
        (states, base, memory, order, past),
      )

    side_by_side = jax.vmap(one, (0, 0, None, 0, 0, 0))
    self._run = jax.jit(
      side_by_side if vectorize else one_by_one, donate_argnums=0
    )

  def init(self) -> types.TrainState:
    """States before the first task, with a leading seed axis."""
    first = {name: x[:1] for name, x in self._tasks[0].items()}
    first['mask'] = np.ones(1, np.float32)
    rngs = jax.vmap(lambda key: jax.random.fold_in(key, 0))(self._base)
    return jax.jit(jax.vmap(self._method.init, (0, None)))(rngs, first)

  def fit(self, states: types.TrainState, number: int) -> types.TrainState:
    """Trains on one task, and then remembers its last rows.

    Args:
      states: With a leading seed axis; donated.
      number: Of the task. Tasks come in order.

    Raises:
      NonFiniteError: If the mean loss is not finite; names the seed.
    """
    train = self._tasks[number]
    count = len(train['label'])
    steps, batch_size = self._shape
    order = np.stack(
      [
        in_order.rows_at(
          0, steps * batch_size, count, seed * len(self._tasks) + number
        ).reshape(self._shape)
        for seed in self._seeds
      ]
    )
    columns = {name: _pad(x, self._num_rows) for name, x in train.items()}
    memory = {
      name: np.stack([_pad(m[name], self._room) for m in self._memory])
      for name in train
    }
    filled = len(self._memory[0]['label'])
    # -1 stands for no row: there is nothing to remember in the first task.
    past = np.stack(
      [
        np.random.default_rng([seed, number]).integers(
          0, filled, (steps, self._memory_batch)
        )
        if filled
        else np.full((steps, self._memory_batch), -1)
        for seed in self._seeds
      ]
    )
    states, sums = self._run(states, self._base, columns, memory, order, past)
    total, weight = sums['loss']
    for seed, value in zip(
      self._seeds, np.asarray(total / weight), strict=True
    ):
      if not np.isfinite(value):
        raise types.NonFiniteError(f'loss is {value} in task {number}, {seed=}')
    if self._per_class:
      for place, seen in enumerate(order.reshape(len(self._seeds), -1)):
        kept = ring_buffer(seen, train['label'], self._per_class)
        self._memory[place] = {
          name: np.concatenate([x, train[name][kept]])
          for name, x in self._memory[place].items()
        }
    return states

  def _fit_one(self, state, base, columns, memory, order, past):
    rng = jax.random.fold_in(base, 1)  # As in `loop`: 0 is for `init`.

    def step(state, places):
      now, old = places
      batch = {
        name: jnp.concatenate([x[now], memory[name][old]])
        if old.size
        else x[now]
        for name, x in columns.items()
      }
      batch['mask'] = jnp.concatenate(
        [jnp.ones(now.shape), (old >= 0).astype(jnp.float32)]
      )
      batch['memory'] = jnp.concatenate(
        [jnp.zeros_like(now), jnp.ones_like(old)]
      )
      return self._method.update(
        state, batch, jax.random.fold_in(rng, state.step)
      )

    state, sums = jax.lax.scan(step, state, (order, past))
    return state, jax.tree.map(lambda x: x.sum(0), sums)


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
