"""The only training loop: `fit`, `evaluate` and hooks.

A hook is called after every step with (step, state, sums), where `sums` is
still on the devices. What a hook fetches, it waits for; so hooks fetch once an
interval. An exception in a hook ends the run.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.metrics import averages

Hook = Callable[[int, types.TrainState, types.Sums], None]

# Steps that may be queued on the devices beyond the one that has finished.
# Enough to hide the host, and bounded: several virtual CPU devices deadlock
# when hundreds of steps with collectives are queued.
RUN_AHEAD = 2

# Steps whose sums are fetched together: to fetch every number by itself costs
# more than a small step.
_TOGETHER = 16

# Streams of one seed: names for `fold_in`.
INIT, TRAIN = 0, 1


def init(
  method: types.Method,
  batch: types.HostBatch,
  seed: int,
  devices: Sequence[jax.Device] | None = None,
) -> types.TrainState:
  """The state before the first step, replicated.

  Args:
    method: What is trained.
    batch: A host batch; its shapes count, one row of it is used.
    seed: Seed of the run.
    devices: Devices of this process; all if None.
  """
  rng = jax.random.fold_in(jax.random.key(seed), INIT)
  row = {name: np.asarray(x)[:1] for name, x in batch.items()}
  return parallel.replicate(jax.jit(method.init)(rng, row), devices)


def fit(
  method: types.Method,
  batches: Callable[[int], Iterable[types.HostBatch]],
  *,
  steps: int,
  seed: int,
  state: types.TrainState | None = None,
  hooks: Sequence[Hook] = (),
  devices: Sequence[jax.Device] | None = None,
  compiled: Callable[[jax.stages.Compiled], None] | None = None,
) -> types.TrainState:
  """Trains until `steps` updates have been made in all.

  The batch of a step is a function of (seed, step) and the key of a step too:
  fitting 30 steps, then from that state to 60, equals fitting 60.

  Args:
    method: What is trained.
    batches: First step -> host batches from there on, this process's rows.
    steps: Number of the last update, counted from the very first state.
    seed: Seed of the run.
    state: State to go on from; a new one if None. It may be donated.
    hooks: Called in order after every step.
    devices: Devices of this process; all if None.
    compiled: Called with the compiled step before the first one is made.

  Returns:
    The last state, replicated; see `parallel.whole` for tables of all rows.
  """
  rng = jax.random.fold_in(jax.random.key(seed), TRAIN)
  if state is None:
    first = next(iter(batches(0)))
    state = init(method, first, seed, devices)
  else:
    state = parallel.replicate(state, devices)
  start = int(state.step)
  if start >= steps:
    return state
  step_fn: Any = parallel.train_step(method.update, devices)
  running: collections.deque[types.Sums] = collections.deque()
  with contextlib.ExitStack() as stack:
    stream = iter(batches(start))
    if hasattr(stream, 'close'):  # Threads and processes that read ahead.
      stack.callback(stream.close)
    for step in range(start + 1, steps + 1):
      try:
        batch = next(stream)
      except StopIteration:
        raise ValueError(
          f'The batches ended at step {step - 1}, before {steps=}'
        ) from None
      batch = parallel.shard(batch, devices)
      if compiled is not None:
        # The call below finds it compiled; the oldest JAX that is promised
        # compiles it again where it is mapped over several devices.
        compiled(step_fn.lower(state, batch, rng).compile())
        compiled = None
      state, sums = step_fn(state, batch, rng)
      running.append(sums)
      if len(running) > RUN_AHEAD:
        jax.block_until_ready(running.popleft())
      for hook in hooks:
        hook(step, state, sums)
  return state


class Evaluator:
  """Predicts whole sets; compiles once for all its calls."""

  def __init__(
    self,
    method: types.Method | types.Predictor,
    devices: Sequence[jax.Device] | None = None,
  ):
    self._devices = devices
    self._predict = parallel.predict_step(method.predict, devices)

  def __call__(
    self,
    state: types.TrainState,
    batches: Iterable[types.HostBatch],
    *,
    split: str = 'the evaluated set',
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Predicts every row of a set once.

    Args:
      state: The state to predict with.
      batches: Host batches of one pass over the set; padding has mask 0.
      split: What the set is, for the error.

    Returns:
      (outputs, columns) of all processes' real rows, in the set's order where
      batches carry 'index': predictions, and the one-dimensional columns of
      the batches.

    Raises:
      NonFiniteError: If what is predicted of a real row is NaN or infinite:
        NaN logits would count as class 0.
    """
    if any(isinstance(x, np.ndarray) for x in jax.tree.leaves(state)):
      # Once, and not for each batch.
      state = parallel.replicate(state, self._devices)
    parts = []
    running: collections.deque[Any] = collections.deque()
    for batch in batches:
      running.append(self._predict(state, parallel.shard(batch, self._devices)))
      if len(running) > RUN_AHEAD:
        parts.append(jax.device_get(running.popleft()))
    parts += jax.device_get(list(running))
    outputs, columns = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    rows = np.flatnonzero(columns['mask'] > 0)
    if 'index' in columns:
      rows = rows[np.argsort(columns['index'][rows], kind='stable')]
    outputs, columns = jax.tree.map(lambda x: x[rows], (outputs, columns))
    _check_finite(outputs, columns.get('index', rows), split)
    return outputs, columns


def _check_finite(outputs, names, split):
  """Raises for the first row that is not finite; padding may be anything."""
  for name, values in outputs.items():
    if jax.dtypes.issubdtype(values.dtype, np.inexact):
      finite = np.isfinite(values.reshape(len(values), -1)).all(-1)
      if not finite.all():
        raise types.NonFiniteError(
          f'{name} of row {names[finite.argmin()]} of {split} is not finite '
          f'({np.count_nonzero(~finite)} of {len(values)} rows are not)'
        )


# Hooks.


class Progress:
  """Averages the sums of an interval, prints a line and writes the numbers.

  Its line is made when the next step is queued, for the devices to have work
  meanwhile. Stops the run at the first NaN or infinity among the sums.
  """

  def __init__(
    self,
    *,
    every: int,
    steps: int,
    batch_size: int,
    write: Callable[[int, Mapping[str, float]], None],
    start: int = 0,
    sums: Mapping[str, tuple[float, float]] | None = None,
    also: Callable[[int], Mapping[str, float]] = lambda step: {},
  ):
    """Makes the hook.

    Args:
      every: Steps between two lines.
      steps: Steps of the whole run, for the remaining time.
      batch_size: Rows of a step over all devices, for the rate.
      write: Takes (step, name -> mean).
      start: Steps made before this fit.
      sums: What `sums` was after them: with it, the first average is over the
        whole interval.
      also: Step -> more numbers for its line.
    """
    self._every, self._steps, self._batch_size = every, steps, batch_size
    self._write, self._also = write, also
    # Still on the devices: sums of single steps, after those that are stacked.
    self._window: list[tuple[int, types.Sums]] = []
    self._stacks: list[tuple[tuple[int, ...], types.Sums]] = []
    self._due: int | None = None  # Step whose line is to be written.
    self._total = {name: (x, w) for name, (x, w) in (sums or {}).items()}
    self._compiling = True
    self._since = time.monotonic()
    self._since_step = start
    self._paused = 0.0
    self.train_seconds = 0.0

  def __call__(self, step, state, sums):
    if self._due is not None:
      self.check(state)
    self._window.append((step, sums))
    if len(self._window) == _TOGETHER:
      steps, several = zip(*self._window, strict=True)
      self._stacks.append((steps, _stack(several)))
      self._window = []
    if self._compiling:
      # The first step compiles: it would spoil the rate and the time left.
      jax.block_until_ready(sums)
      seconds = time.monotonic() - self._since
      logging.info('compiled and made the first step in %.1f s', seconds)
      self._compiling = False
      self._reset(step)
    if (self._every and step % self._every == 0) or step == self._steps:
      self._due = step
    if step == self._steps:
      self.check(state)

  def check(self, state: types.TrainState) -> None:
    """Fetches all sums so far and writes the line that is due.

    Raises:
      NonFiniteError: If one of the sums is not finite.
    """
    for step, sums in self._fetched():
      for name, value in _means(sums).items():
        if not np.isfinite(value):
          leaf = trees.first_nonfinite(jax.device_get(state.params))
          where = f' (and so is by now the parameter {leaf})' if leaf else ''
          raise types.NonFiniteError(f'{name} is {value} at step {step}{where}')
      self._add(sums)
    if self._due is not None:
      step, self._due = self._due, None
      self._report(step)

  def _fetched(self):
    """(step, sums) of all steps so far, which it forgets."""
    stacks, window = jax.device_get((self._stacks, self._window))
    self._stacks, self._window = [], []
    for steps, sums in stacks:
      for i, step in enumerate(steps):
        yield step, {name: (x[i], w[i]) for name, (x, w) in sums.items()}
    yield from window

  def _report(self, step):
    values, self._total = _means(self._total), {}
    seconds = time.monotonic() - self._since - self._paused
    made = step - self._since_step
    left = float('nan')
    if made:
      self.train_seconds += seconds
      values['examples_per_second'] = made * self._batch_size / seconds
      left = seconds / made * (self._steps - step)
    values.update(self._also(step))
    logging.info('%s', _line(step, self._steps, values, left))
    self._write(step, values)
    self._reset(step)

  @property
  def sums(self) -> dict[str, tuple[float, float]]:
    """Sums of the interval up to the last `check`; for the checkpoint."""
    return self._total

  @contextlib.contextmanager
  def pause(self):
    """Keeps what happens inside out of the rate."""
    start = time.monotonic()
    yield
    self._paused += time.monotonic() - start

  def _add(self, sums):
    # Python's numbers, which a JSON file keeps as they are.
    sums = {name: (float(x), float(w)) for name, (x, w) in sums.items()}
    if self._total.keys() == sums.keys():
      sums = averages.add(self._total, sums)
    self._total = sums  # Else the interval begins, or the config is another.

  def _reset(self, step):
    self._since, self._since_step, self._paused = time.monotonic(), step, 0.0


@jax.jit
def _stack(several):
  """Sums of several steps, name -> ([steps], [steps]), each in its type."""
  return jax.tree.map(lambda *x: jnp.stack(x), *several)


def _means(sums):
  """Means of the sums that have rows: a step may have drawn none."""
  return averages.means({k: x for k, x in sums.items() if float(x[1])})


def _line(step, steps, values, seconds_left):
  rate = values.get('examples_per_second')
  shown = {k: v for k, v in values.items() if k != 'examples_per_second'}
  line = f'step {step:,}/{steps:,}  {averages.summary(shown)}'
  if rate is not None:
    minutes, seconds = divmod(round(seconds_left), 60)
    line += f'  {rate:,.0f} examples/s  ETA {minutes}:{seconds:02d}'
  return line
