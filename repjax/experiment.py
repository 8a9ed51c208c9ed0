"""Wires a classifier and a TFDS set into what the launchers run."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

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


class Images(NamedTuple):
  """What a config of a classifier says about its data, read.

  Attributes:
    train: The training rows.
    recipe: How images become what the model sees.
    steps: Number of updates.
  """

  train: source.Source
  recipe: recipes.Recipe
  steps: int


def images(config: Any) -> Images:
  """Reads the training set that a config names.

  Args:
    config: With the groups `data` (name, dir, train_split) and `augment` (the
      arguments of `recipes.images`), and with batch_size, epochs, min_steps.
  """
  train = source.load(
    config.data.name, config.data.train_split, data_dir=config.data.dir
  )
  return Images(
    train=train,
    recipe=recipes.images(train, **config.augment),
    steps=num_steps(
      len(train),
      batch_size=config.batch_size,
      epochs=config.epochs,
      min_steps=config.min_steps,
    ),
  )


def classifier(
  config: Any,
  data: Images,
  method: types.Method,
  *,
  multiple: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment that classifies the images of one TFDS set.

  Args:
    config: With what `images` reads, and data.eval_splits, data.num_workers,
      eval_batch_size (rounded up to fit the devices), seed (of the data
      order) and step.microbatches.
    data: `images(config)`, or made from it.
    method: What is trained; `predict` gives 'logits'.
    multiple: Rows that the method mixes with each other.
    warm_start: See `types.Experiment`.

  Raises:
    InputError: If the batch does not divide over the devices.
  """
  parallel.check_batch_size(
    config.batch_size,
    microbatches=config.step.microbatches,
    multiple=multiple,
  )
  train = batches.train_batches(
    data.train,
    batch_size=config.batch_size,
    seed=config.seed,
    transform=data.recipe.train,
    decode=data.recipe.decode_train,
    num_workers=config.data.num_workers,
  )

  @functools.cache
  def split_source(split):
    return source.load(config.data.name, split, data_dir=config.data.dir)

  def evals(split):
    return batches.eval_batches(
      split_source(split),
      batch_size=parallel.round_up(config.eval_batch_size),
      transform=data.recipe.evaluate,
      decode=data.recipe.decode_evaluate,
    )

  for split in config.data.eval_splits:
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
    eval_splits=tuple(config.data.eval_splits),
    steps=data.steps,
    batch_size=config.batch_size,
    warm_start=warm_start,
    measure=lambda outputs, columns: metrics.classification(
      outputs['logits'], columns['label']
    ),
    figures=figures,
  )
