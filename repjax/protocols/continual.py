"""Tasks one after the other: how much is learnt, kept and forgotten.

The protocol of Saha, Garg and Roy (GPM, ICLR 2021,
https://arxiv.org/abs/2103.09762), with the measures of Lopez-Paz and Ranzato,
'Gradient Episodic Memory for Continual Learning', NIPS 2017,
https://arxiv.org/abs/1706.08840. For models that fit one device with their
data: seeds go side by side, and the steps of a task are one call.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple
from typing import get_args

from absl import logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import optim
from repjax import trees
from repjax import types
from repjax.data.images import transforms
from repjax.data.sets import tasks as tasks_lib
from repjax.layers import layer_inputs
from repjax.methods import multitask
from repjax.optim import rehearsal
from repjax.protocols import sequential
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]
Learner = Literal['sgd', 'gpm', 'replay', 'ewc', 'a_gem', 'multitask']


class TaskRows(NamedTuple):
  """One task in memory, as the network sees it.

  Attributes:
    train: 'image' [N, ...], 'label' [N], 'task' [N].
    test: These columns of its test rows.
  """

  train: Columns
  test: Columns


class Outcome(NamedTuple):
  """What learning T tasks one after the other gave, for S seeds.

  Attributes:
    accuracy: Test accuracy after task i on task j, [S, T, T]; [S, 1, T] for the
      learner 'multitask', which learns all at once.
    initial: Test accuracy on each task before the first step, [S, T].
    ranks: Layer -> rank of its basis after each task, [S, T]; {} but for 'gpm'.
    states: States after the last task, with a leading seed axis.
  """

  accuracy: np.ndarray
  initial: np.ndarray
  ranks: dict[str, np.ndarray]
  states: types.TrainState


def rows(
  stream: Sequence[tasks_lib.Task], transform: transforms.Transform
) -> list[TaskRows]:
  """All rows of a stream, as the network sees them.

  Args:
    stream: Tasks of `repjax.data.sets.tasks`.
    transform: Of whole sets; draws nothing.
  """
  return [
    TaskRows(
      side_by_side.rows(task.train, transform),
      side_by_side.rows(task.test, transform),
    )
    for task in stream
  ]


def measures(result: Outcome) -> dict[str, np.ndarray]:
  """One number a seed.

  Returns:
    'acc': mean accuracy over all tasks after the last one; 'bwt': backward
    transfer, mean over all tasks but the last of what it changed since it was
    learnt; 'fwt': forward transfer, mean over all tasks but the first of its
    accuracy just before it is learnt minus that of the untrained network. The
    last two are NaN for fewer than two tasks in a row.
  """
  matrix, initial = np.asarray(result.accuracy, np.float64), result.initial
  acc = matrix[:, -1].mean(-1)
  if matrix.shape[1] < 2:
    return {'acc': acc, 'bwt': np.nan * acc, 'fwt': np.nan * acc}
  learnt = np.diagonal(matrix, axis1=1, axis2=2)
  before = np.diagonal(matrix[:, :-1, 1:], axis1=1, axis2=2)
  return {
    'acc': acc,
    'bwt': (matrix[:, -1] - learnt)[:, :-1].mean(-1),
    'fwt': (before - initial[:, 1:]).mean(-1),
  }


def run(
  learner: Learner,
  model: nn.Module,
  tasks: Sequence[TaskRows],
  tx: optax.GradientTransformation,
  *,
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  heads: Literal['each', 'one'] = 'one',
  head: str = 'head',
  thresholds: float | Mapping[str, float] = 0.97,
  growth: float = 0.0,
  first_task_strict: bool = False,
  num_samples: int = 300,
  sample_rows: Mapping[str, int] | None = None,
  memory_per_class: int = 1,
  memory_batch: int = 10,
  strength: float = 100.0,
  learning_rate: float = 0.0,
  vectorize: bool = True,
) -> Outcome:
  """Learns the tasks in order and tests on all of them after each.

  Args:
    learner: 'sgd': `tx` alone; 'gpm': gradient projection memory; 'replay':
      every batch holds remembered rows, too; 'a_gem': the gradient must not
      oppose that of remembered rows; 'ewc': parameters are held near old ones
      by their Fisher information (of the rows' own labels); 'multitask': all
      tasks at once, in as many steps as all of them, an upper bound, with the
      rows of all tasks in memory together.
    model: A classifier, as in `supervised.make`; with heads='each' it gives the
      logits of all T heads, [B, T * C], by its layer `head`.
    tasks: T tasks.
    tx: What every learner trains with. Its state goes on from task to task.
    seeds: S seeds.
    batch_size: Current rows of a step.
    steps: Steps of each task.
    heads: 'each' task has a head, or all share 'one'. Labels count from 0
      inside each task with heads='each'.
    head: First name of the heads' parameters, which GPM leaves alone with
      heads='each'.
    thresholds: Of 'gpm': part of |R|^2 to keep, in (0, 1] (`update_bases`).
    growth: Of 'gpm': added to the thresholds for every task before this one.
    first_task_strict: Of 'gpm': whether the first task takes a direction less.
    num_samples: Rows of a task that 'gpm' and 'ewc' look at when it ends; all
      of a task that has fewer.
    sample_rows: Of 'gpm': `rows` of `layer_inputs.representations`.
    memory_per_class: Of 'replay' and 'a_gem': the last rows of each class and
      task that are remembered (a ring buffer for each).
    memory_batch: Of 'replay' and 'a_gem': remembered rows of a step.
    strength: Of 'ewc'.
    learning_rate: Of 'ewc': that of `tx` if it is plain SGD, for an implicit
      step; 0 for an explicit one. See `rehearsal.ewc`.
    vectorize: Whether seeds go side by side, or one after the other.

  Returns:
    A `Outcome`.

  Raises:
    InputError: If the learner is unknown.
    NonFiniteError: If the loss of a task is not finite; names the seed.
  """
  if learner not in get_args(Learner):
    raise types.InputError(
      f'learner is one of {get_args(Learner)}; got {learner=}'
    )
  remembers = learner in ('replay', 'a_gem')
  free = None
  if heads == 'each':
    free = lambda path: path[0] == head  # noqa: E731
  if learner == 'gpm':
    tx = optax.chain(tx, optim.project_gradients(free=free))
  elif learner == 'ewc':
    tx = optax.chain(rehearsal.ewc(strength, learning_rate=learning_rate), tx)
  elif learner == 'a_gem':
    tx = optax.chain(rehearsal.a_gem(), tx)
  method = multitask.make(
    model, tx, num_tasks=len(tasks), weighting='rows', heads=heads
  )
  tests = [task.test for task in tasks]
  if learner == 'multitask':
    tasks, steps = [_joined(tasks)], steps * len(tasks)
  trainer = sequential.Trainer(
    method,
    [task.train for task in tasks],
    seeds=seeds,
    batch_size=batch_size,
    steps=steps,
    memory_per_class=memory_per_class if remembers else 0,
    memory_batch=memory_batch if remembers else 0,
    vectorize=vectorize,
  )
  predict, anchor = side_by_side.predict_fn(method), _anchor_fn(method)
  states = trainer.init()
  initial = _accuracies(predict, states, tests)
  matrix: list[np.ndarray] = []
  ranks: dict[str, list[np.ndarray]] = {}
  for number, task in enumerate(tasks):
    states = trainer.fit(states, number)
    num_seen = min(num_samples, len(task.train['label']))
    if learner == 'gpm':
      states = _extend_bases(
        model,
        states,
        side_by_side.per_seed(task.train, seeds, num_rows=num_seen),
        sample_rows,
        thresholds=thresholds,
        growth=growth,
        first_task_strict=first_task_strict,
      )
      for layer, rank in states.opt_state[-1].ranks.items():
        ranks.setdefault(layer, []).append(np.asarray(rank))
    elif learner == 'ewc':
      samples = side_by_side.per_seed(task.train, seeds, num_rows=num_seen)
      states = anchor(states, samples)
    matrix.append(_accuracies(predict, states, tests))
    logging.info(
      '%s: task %d/%d learnt, test accuracy on each %s',
      learner,
      number + 1,
      len(tasks),
      ' '.join(f'{x:.3f}' for x in matrix[-1].mean(0)),
    )
  return Outcome(
    accuracy=np.stack(matrix, 1),
    initial=initial,
    ranks={layer: np.stack(x, 1) for layer, x in ranks.items()},
    states=states,
  )


def _extend_bases(model, states, samples, sample_rows, **settings):
  """GPM's memory of each seed, on the host."""
  host = jax.device_get((states.params, states.model_state, states.opt_state))
  new = []
  for place, own in enumerate(trees.unstack(host)):
    params, model_state, opt_state = own
    batch = {
      'image': samples['image'][place],
      'mask': np.ones(len(samples['label'][place]), np.float32),
    }
    captured = layer_inputs.representations(
      model, {'params': params, **model_state}, batch, rows=sample_rows
    )
    new.append(optim.update_bases(opt_state, captured, **settings))
  return states.replace(opt_state=trees.stack(new))


def _anchor_fn(method):
  """(states, samples) -> states whose penalty of EWC has one more task."""

  def one(state, columns):
    def log_prob(params, row):
      batch = {name: x[None] for name, x in row.items()}
      batch['mask'] = jnp.ones(1)
      logits = method.predict(state.replace(params=params), batch)['logits']
      return jax.nn.log_softmax(logits)[0, row['label']]

    def add(total, row):
      grads = jax.grad(log_prob)(state.params, row)
      return jax.tree.map(lambda t, g: t + g * g, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    total, _ = jax.lax.scan(add, zeros, columns)
    count = len(columns['label'])
    fisher = jax.tree.map(lambda x: x / count, total)
    opt_state = rehearsal.consolidate(state.opt_state, state.params, fisher)
    return state.replace(opt_state=opt_state)

  return jax.jit(jax.vmap(one))


def _accuracies(predict, states, tests):
  """Of all seeds on all tasks, [S, T]."""
  return np.stack(
    [side_by_side.accuracy(predict(states, test), test) for test in tests],
    axis=1,
  )


def _joined(tasks):
  train = {
    name: np.concatenate([task.train[name] for task in tasks])
    for name in tasks[0].train
  }
  return TaskRows(train, tasks[0].test)
