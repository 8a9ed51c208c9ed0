"""The contracts of repjax: read this first.

A *batch* goes through a *method*, which asks a *gradient function* for
gradients and hands them to an optax chain. Everything else in the package
either makes one of these or consumes one.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Protocol

import flax.struct
import jax
import numpy as np

PyTree = Any

# Arrays with equal leading dimension. `mask` is always there: 1.0 for a real
# row, 0.0 for padding. Rows of padding may hold anything.
Batch = Mapping[str, jax.Array]

# Name -> (weighted sum, weight). Sums add up over microbatches, devices and
# steps; whoever prints them divides once.
Sums = Mapping[str, tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class TrainState:
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
    """Mean over all groups of `fn(grad_fn of one group of rows)`."""

  def clipped(
    self,
    params: PyTree,
    clip_norm: float | jax.Array,
    *,
    method: str = 'auto',
    style: str = 'flat',
  ) -> tuple[PyTree, Aux]:
    """SUM over all devices of per-example gradients clipped to `clip_norm`.

    `method` is 'ghost', 'vmap', 'microbatch' or 'auto' and changes cost alone,
    `style` is 'flat', 'per_layer' or 'automatic': see
    `repjax.privacy.clipping.clipped_gradient`. The sums also have
    'gradient_norm' and 'unclipped' (1 where the norm is at most `clip_norm`).
    """

  def per_task(
    self, params: PyTree, num_tasks: int, *, column: str = 'task'
  ) -> tuple[PyTree, jax.Array, Aux]:
    """One mean gradient a task, stacked, and the tasks' numbers of rows [T].

    `column` of the batch holds the tasks' ids, integers [B] in [0, T).
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


class Experiment(NamedTuple):
  """What a config's `build` wires together for the launchers.

  Attributes:
    method: What is trained.
    train: `repjax.data.batches.TrainBatches`, random access by step.
    evals: Split -> host batches of one pass over it (`EvalBatches`).
    eval_splits: Splits that are evaluated during training; the first one's
      metrics choose the best checkpoint.
    steps: Number of updates.
    batch_size: Rows of a step over all devices, on average.
    warm_start: Fresh state -> the state to train from (published weights);
      the identity where nothing is loaded.
    measure: (outputs, columns) -> name -> number; see `loop.Evaluator`.
    figures: (split, outputs, columns) -> name -> matplotlib figure.
    privacy: Number of updates -> the `privacy.accounting.Statement` of a run
      of that length; None where nothing is claimed.
  """

  method: Method
  train: Any
  evals: Callable[[str], Any]
  eval_splits: tuple[str, ...]
  steps: int
  batch_size: int
  warm_start: Callable[[TrainState], TrainState]
  measure: Callable[..., dict[str, float]]
  figures: Callable[..., dict[str, Any]]
  privacy: Callable[[int], Any] | None


class Report(NamedTuple):
  """What a study returns.

  Attributes:
    scalars: Name -> one value a seed. The claims of the config refer to them.
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


class NonFiniteError(ArithmeticError):
  """A metric is NaN or infinite; the run stops (exit code 3)."""


class PreemptedError(RuntimeError):
  """The run was asked to stop, and its state was saved (exit code 75)."""
