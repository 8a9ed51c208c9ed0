"""The contracts of repjax: read this first.

A *batch* goes through a *method*, which asks a *gradient function* for
gradients and hands them to an optax chain. Everything else in the package
either makes one of these or consumes one.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from types import MappingProxyType
from typing import Any
from typing import NamedTuple
from typing import Protocol

import flax.struct
import jax
import numpy as np
import optax

PyTree = Any

# The collection of a model's parameters that nothing trains. They come with the
# model's other collections, and are the same after every step.
FROZEN = 'base'

# Arrays with equal leading dimension. `mask` is always there: 1.0 for a real
# row, 0.0 for padding. Rows of padding may hold anything.
Batch = Mapping[str, jax.Array]

# A batch, or this process's part of one, before it is on a device.
HostBatch = Mapping[str, np.ndarray]

# What a row is, by kind: 'image' [B, H, W, C], 'tokens' [B, L] (and 'source'
# [B, L'], another text that they are made from), 'series' [B, L, C], 'features'
# [B, D]. Others are labels, masks, ids, and what some models read beside a row
# or in its place ('covariates', 'observed'; 'inputs', tokens with some hidden).
INPUTS = ('image', 'tokens', 'source', 'series', 'features')

# Name -> (weighted sum, weight). Sums add up over microbatches, devices and
# steps; whoever prints them divides once.
Sums = Mapping[str, tuple[jax.Array, jax.Array]]


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes: arrays only, all of it required.

  Attributes:
    step: Number of updates made so far, int32 scalar.
    params: Trained parameters.
    opt_state: State of the optax chain.
    model_state: Other collections of the model ('batch_stats', ...), or {}.
    extra: A NamedTuple that the method defines, or ().
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  model_state: PyTree
  extra: PyTree


class Losses(NamedTuple):
  """What a loss function returns for one batch.

  Attributes:
    loss: One loss a row, [B]. Never reduced: the caller weighs by the mask.
    model_state: The model's other collections after this forward pass.
    metrics: Name -> one value a row, [B], averaged with the mask.
  """

  loss: jax.Array
  model_state: PyTree
  metrics: Mapping[str, jax.Array]


# (params, model_state, batch, rng) -> Losses. `rng` is this device's own.
LossFn = Callable[[PyTree, PyTree, Batch, jax.Array], Losses]


class Aux(NamedTuple):
  """What comes with a gradient.

  Attributes:
    model_state: The model's other collections, equal on all devices.
    sums: 'loss' and the loss function's metrics, summed over all devices.
  """

  model_state: PyTree
  sums: Sums


@dataclasses.dataclass
class Asked:
  """What the links of a chain have done with a `grad_fn` (`optim.link`).

  Attributes:
    plain: Leaves of the gradient that the chain gets, or None if unknown.
    seen_by: The last link that asked and left the gradient alone.
    made_by: The link that put a gradient of its own in its place.
    closed_by: The link behind which nothing may ask.
  """

  plain: list[jax.Array] | None = None
  seen_by: str = ''
  made_by: str = ''
  closed_by: str = ''

  def check_open(self) -> None:
    """Raises InputError where nothing may ask any more."""
    if self.closed_by:
      raise InputError(
        f'A link behind {self.closed_by} asks grad_fn for data again, and what '
        'it gets is neither clipped nor noised: take it out of the chain.'
      )


class GradFn(Protocol):
  """The gradient as a function of the parameters, bound to one batch.

  The step hands it to the optax chain as the extra argument `grad_fn`, so
  that a link (SAM, DP-SGD, ...) can ask for what the plain gradient does not
  tell. All gradients are means over real rows.
  """

  def __call__(
    self, params: PyTree, *, sync: bool = True
  ) -> tuple[PyTree, Aux]:
    """Mean gradient over all devices' rows; this device's own if not `sync`."""

  def over_groups(
    self, num_groups: int, fn: Callable[['GradFn'], PyTree]
  ) -> PyTree:
    """Mean over all groups of `fn(grad_fn of one group of rows)`.

    A group is one of `num_groups` consecutive parts of a device's rows, and
    counts by its number of real rows; its gradients are its own.
    """

  def clipped(
    self,
    params: PyTree,
    clip_norm: float | jax.Array,
    *,
    method: str = 'auto',
    style: str = 'flat',
    rows_per_user: int = 1,
    rng: jax.Array | None = None,
  ) -> tuple[PyTree, Aux]:
    """SUM over all devices of per-example gradients clipped to `clip_norm`.

    `method` and `style` are those of `privacy.clipping.clipped_gradient`. With
    `rows_per_user`, each so many consecutive rows count as one example
    (`data.batches.users`). The loss draws by `rng`, if given, equal on all
    devices. The sums also have 'gradient_norm', 'median_norm' (of a step),
    'unclipped' (norm at most `clip_norm`), 'nonfinite' (gradients that are 0).
    """

  def per_task(
    self, params: PyTree, num_tasks: int, *, column: str = 'task'
  ) -> tuple[PyTree, jax.Array, Aux]:
    """One mean gradient a task, stacked, and the tasks' numbers of rows [T].

    `column` of the batch holds the tasks' ids, integers [B]. A row with an id
    outside [0, T) belongs to no task; the gradient of one without rows is 0.
    """


class Method(NamedTuple):
  """A way of learning: three pure functions.

  Attributes:
    init: (rng, batch) -> TrainState.
    update: (state, batch, rng) -> (TrainState, Sums). Runs on each device with
      its own rows of the batch and with an `rng` that is EQUAL on all devices;
      what it returns is equal on all devices, too.
    predict: (state, batch) -> name -> one row an example. Deterministic.
  """

  init: Callable[[jax.Array, Batch], TrainState]
  update: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]
  predict: Callable[[TrainState, Batch], Mapping[str, jax.Array]]


class Predictor(NamedTuple):
  """A `Method` that is only evaluated: its `predict`."""

  predict: Callable[[TrainState, Batch], Mapping[str, jax.Array]]


# What a recipe's `build` takes as the last link of its optax chain: a function
# with the arguments of `optax.adamw` or `optax.sgd`.
Optimizer = Callable[..., optax.GradientTransformation]


class Batches(Protocol):
  """What a run is trained on: the batch of a step is a function of the step.

  All kinds of `repjax.data.batches` are of this one: shuffled epochs, Poisson
  samples of rows or users, mixtures of tasks, one pass over a stream.
  """

  @property
  def expected_rows(self) -> float:
    """Rows of a step over all devices, on average."""

  def fingerprint(self) -> str:
    """Tells sets of rows apart; equal on all processes of a job."""

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """This process's rows of one step, which counts from 0."""

  def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """batch(start_step), batch(start_step + 1), ..., read ahead."""


class Guard(NamedTuple):
  """What a run must pass, and says beside its results; by default nothing.

  Attributes:
    begin: (experiment, work directory or None, what the run is) -> the
      experiment as this run has it: with batches and keys of its own, which a
      work directory keeps, so that it can be resumed.
    keyed: Fresh state -> the same with the keys of this run.
    check: (experiment, fresh state, metric that chooses a checkpoint or '') ->
      None, or raises `InputError`. Called before any compute.
    resumed: (fresh state, a restored or started one, whether both have one
      config) -> None, or raises `InputError`.
    watch: Means of an interval of steps -> None; it may warn.
    line: Step -> more numbers for its progress line.
    statement: Number of updates -> what a report of a run of that length says
      in addition: name -> something with `to_dict`.
  """

  begin: Callable[
    ['Experiment', 'pathlib.Path | None', Mapping[str, Any]], 'Experiment'
  ] = lambda experiment, workdir, identity: experiment
  keyed: Callable[[TrainState], TrainState] = lambda state: state
  check: Callable[['Experiment', TrainState, str], None] = (
    lambda experiment, state, best: None
  )
  resumed: Callable[[TrainState, TrainState, bool], None] = (
    lambda fresh, restored, same_config: None
  )
  watch: Callable[[Mapping[str, float]], None] = lambda means: None
  line: Callable[[int], Mapping[str, float]] = lambda step: {}
  statement: Callable[[int], Mapping[str, Any]] = lambda steps: {}


class Companion(NamedTuple):
  """What goes on beside the updates of a run, on the host; by default nothing.

  Attributes:
    begin: (work directory or None, step) -> None, before the next update.
    follow: (step, state) -> None, after each one; the next batch waits.
    save: Step -> None: what `begin` needs beside the checkpoint of that step.
    measures: Name -> (state -> number), at each evaluation.
  """

  begin: Callable[['pathlib.Path | None', int], None] = lambda *args: None
  follow: Callable[[int, TrainState], None] = lambda *args: None
  save: Callable[[int], None] = lambda *args: None
  measures: Mapping[str, Callable[[TrainState], float]] = MappingProxyType({})


class Experiment(NamedTuple):
  """What a recipe's `build` wires together for `run`.

  Attributes:
    method: What is trained.
    train: What it is trained on.
    evals: Split -> host batches of one pass over it (`EvalBatches`).
    eval_splits: Evaluated during training; config.run.best says what chooses.
    steps: Number of updates.
    warm_start: Fresh state -> the state to train from (see `repjax.start`).
    measure: (outputs, columns) -> name -> number; see `loop.Evaluator`.
    figures: (split, outputs, columns) -> name -> matplotlib figure.
    guard: What the run must pass; a private plan fills it in.
    companion: Acts beside the updates.
    tables: (split, outputs, columns) -> name -> (header, lines), for CSV files.
  """

  method: Method
  train: Batches
  evals: Callable[[str], Any]
  eval_splits: tuple[str, ...]
  steps: int
  warm_start: Callable[[TrainState], TrainState]
  measure: Callable[..., dict[str, float]]
  figures: Callable[..., dict[str, Any]]
  guard: Guard = Guard()
  companion: Companion = Companion()
  tables: Callable[..., dict[str, Any]] = lambda split, outputs, columns: {}


class Report(NamedTuple):
  """What a study returns.

  Attributes:
    scalars: Name -> one value a seed, or none. Claims of the study refer to it.
    arrays: Name -> array behind a plot or a table.
    figures: Name -> matplotlib figure.
  """

  scalars: Mapping[str, list[float]]
  arrays: Mapping[str, np.ndarray]
  figures: Mapping[str, Any]


class InputError(ValueError):
  """The user can mend it: names the flag, field or file and the remedy.

  Launchers print its message as one line and exit with code 1.
  """


def check_choice(field: str, value: Any, choices: Sequence[Any]) -> None:
  """Raises InputError unless the value of a field is one of `choices`."""
  if value not in choices:
    raise InputError(f'{field} must be one of {choices}, got {value!r}')


def check_range(interval: str, **values: Any) -> None:
  """Raises InputError unless all values lie in an interval.

  Args:
    interval: As it is written in papers: '[' and ']' belong to it, '(' and ')'
      do not.
    **values: Name -> number; what is NaN or no number lies nowhere.
  """
  low, high = (float(x) for x in interval[1:-1].split(','))
  for name, value in values.items():
    inside = isinstance(value, int | float | np.number) and (
      low <= value <= high
      and (interval[0] == '[' or value != low)
      and (interval[-1] == ']' or value != high)
    )
    if not inside:
      raise InputError(f'{name} must be in {interval}; got {value!r}')


class NonFiniteError(ArithmeticError):
  """A metric is NaN or infinite; the run stops (exit code 3)."""


class PreemptedError(RuntimeError):
  """The run was asked to stop, and its state was saved (exit code 75)."""
