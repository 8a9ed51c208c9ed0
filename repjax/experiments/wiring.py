"""Host side: what the experiments of all kinds of data are made with."""

from collections.abc import Callable
import functools
from typing import Any

from repjax import parallel
from repjax import types
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import source


def num_steps(num_rows: int, *, batch_size: int, epochs: float, min_steps: int):
  """Steps of `epochs` passes over the rows, but at least `min_steps`.

  >>> num_steps(60_000, batch_size=64, epochs=6, min_steps=2_000)
  5625
  >>> num_steps(1_442, batch_size=64, epochs=6, min_steps=2_000)
  2000
  """
  types.check_range('[1, inf)', **{'config.batch_size': batch_size})
  types.check_range(
    '[0, inf)', **{'config.epochs': epochs, 'config.min_steps': min_steps}
  )
  steps = max(min_steps, round(epochs * num_rows / batch_size))
  if steps < 1:
    raise types.InputError(
      f'config.epochs={epochs} of {num_rows} rows in batches of {batch_size} '
      'are no step: raise it, or config.min_steps.'
    )
  return steps


def steps_of(config: Any, num_rows: int, *, batch_size: int = 0) -> int:
  """`num_steps` of a config's batch_size (or another), epochs and min_steps."""
  return num_steps(
    num_rows,
    batch_size=batch_size or config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )


def reading(
  config: Any, recipe: transforms.Recipe = transforms.AS_IT_IS
) -> dict[str, Any]:
  """How training batches of any kind are read: arguments of all that make them.

  Args:
    config: With data.num_workers.
    recipe: What rows go through.
  """
  return dict(
    transform=recipe.train,
    decode=recipe.decode_train,
    num_workers=config.data.num_workers,
  )


def shuffled(
  config: Any,
  train: source.Source,
  recipe: transforms.Recipe = transforms.AS_IT_IS,
  *,
  multiple: int = 1,
) -> in_order.TrainBatches:
  """Training batches of shuffled epochs.

  Args:
    config: With batch_size (rows over all devices), seed (of the order),
      step.microbatches and data.num_workers.
    train: The training rows.
    recipe: What they go through.
    multiple: Rows that the method mixes with each other.

  Raises:
    InputError: If the batch does not divide over the devices.
  """
  parallel.check_batch_size(
    config.batch_size, microbatches=config.step.microbatches, multiple=multiple
  )
  return in_order.train_batches(
    train,
    batch_size=config.batch_size,
    seed=config.seed,
    **reading(config, recipe),
  )


def of_sources(
  config: Any,
  method: types.Method,
  *,
  batches: types.Batches,
  sources: Callable[[str], source.Source],
  steps: int,
  measure: Callable[..., dict[str, float]],
  figures: Callable[..., dict[str, Any]],
  recipe: transforms.Recipe = transforms.AS_IT_IS,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment on rows of sources; what all others here are made with.

  Args:
    config: With eval_batch_size (rows over all devices, rounded up to fit
      them) and data.eval_splits.
    method: What is trained.
    batches: What it is trained on: `shuffled`, or of another kind.
    sources: Split -> its rows; called once for each.
    steps: Number of updates.
    measure: (outputs, columns) -> name -> number.
    figures: (split, outputs, columns) -> name -> matplotlib figure.
    recipe: What the rows of `sources` go through.
    warm_start: Fresh state -> the state to train from.
  """
  sources = functools.cache(sources)
  for split in config.data.eval_splits:
    sources(split)  # A missing split is found before any compute.

  def evals(split):
    rows = sources(split)
    return in_order.eval_batches(
      rows,
      num_workers=config.data.num_workers if rows.encoded else 0,
      batch_size=parallel.round_up(config.eval_batch_size),
      transform=recipe.evaluate,
      decode=recipe.decode_evaluate,
    )

  return types.Experiment(
    method=method,
    train=batches,
    evals=evals,
    eval_splits=tuple(config.data.eval_splits),
    steps=steps,
    warm_start=warm_start,
    measure=measure,
    figures=lambda split, outputs, columns: figures(
      sources(split), outputs, columns
    ),
  )
