"""Wires a classifier and a TFDS set into what the launchers run."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from repjax import metrics
from repjax import parallel
from repjax import plots
from repjax import types
from repjax.data import batches
from repjax.data import recipes
from repjax.data import source


def num_steps(num_rows: int, *, batch_size: int, epochs: float, min_steps: int):
  """Steps of `epochs` passes over the rows, but at least `min_steps`.

  >>> num_steps(60_000, batch_size=64, epochs=6, min_steps=2_000)
  5625
  >>> num_steps(1_442, batch_size=64, epochs=6, min_steps=2_000)
  2000
  """
  return max(min_steps, round(epochs * num_rows / batch_size))


def classifier(
  method: types.Method,
  *,
  data: Mapping[str, Any],
  train_source: source.Source,
  batch_size: int,
  eval_batch_size: int,
  steps: int,
  seed: int,
  recipe: recipes.Recipe,
  multiple: int = 1,
  microbatches: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment that classifies the images of one TFDS set.

  Args:
    method: What is trained; `predict` gives 'logits'.
    data: The config's data group: name, dir, train_split, eval_splits,
      num_workers.
    train_source: The training rows, `source.load(...)` or made from it.
    batch_size: Rows of a step over all devices.
    eval_batch_size: The same for evaluation, rounded up to fit the devices.
    steps: Number of updates.
    seed: Seed of the data order.
    recipe: How images become what the model sees, `recipes.images(...)`.
    multiple: Rows that the method mixes with each other.
    microbatches: The method's microbatches.
    warm_start: See `types.Experiment`.

  Raises:
    InputError: If the batch does not divide over the devices.
  """
  parallel.check_batch_size(
    batch_size, microbatches=microbatches, multiple=multiple
  )
  train = batches.train_batches(
    train_source,
    batch_size=batch_size,
    seed=seed,
    transform=recipe.train,
    decode=recipe.decode_train,
    num_workers=data['num_workers'],
  )

  @functools.cache
  def split_source(split):
    return source.load(data['name'], split, data_dir=data['dir'])

  def evals(split):
    return batches.eval_batches(
      split_source(split),
      batch_size=parallel.round_up(eval_batch_size),
      transform=recipe.evaluate,
      decode=recipe.decode_evaluate,
    )

  for split in data['eval_splits']:
    split_source(split)  # A missing split is found before any compute.

  def figures(split, outputs, columns):
    logits, labels = outputs['logits'], columns['label']
    chosen = plots.telling(logits, labels)
    images = split_source(split).read(columns['index'][chosen])['image']
    return {
      'predictions': plots.predictions(
        images,
        logits[chosen],
        labels[chosen],
        wrong_rate=float((logits.argmax(-1) != labels).mean()),
      ),
      'confusion': plots.confusion(logits, labels),
      'reliability': plots.reliability({'model': logits}, labels),
    }

  return types.Experiment(
    method=method,
    train=train,
    evals=evals,
    eval_splits=tuple(data['eval_splits']),
    steps=steps,
    batch_size=batch_size,
    warm_start=warm_start,
    measure=lambda outputs, columns: metrics.classification(
      outputs['logits'], columns['label']
    ),
    figures=figures,
  )
