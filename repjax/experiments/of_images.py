"""Host side: experiments that classify the images of a set."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import plots
from repjax import types
from repjax.data.images import recipes
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.experiments import wiring
from repjax.metrics import classification


class Data(NamedTuple):
  """What a config of a classifier says about its data, read.

  Attributes:
    train: The training rows.
    recipe: How images become what the model sees.
    steps: Number of updates.
  """

  train: source.Source
  recipe: transforms.Recipe
  steps: int


def read(config: Any) -> Data:
  """Reads the training set that a config names.

  Args:
    config: With the groups `data` (name, dir, train_split) and `augment` (the
      arguments of `recipes.images`), and with batch_size, epochs, min_steps.
  """
  return data(config, load(config, config.data.train_split))


def data(config: Any, train: source.Source) -> Data:
  """What `read` gives, of training rows from elsewhere."""
  return Data(
    train=train,
    recipe=recipes.images(train, **config.augment),
    steps=wiring.steps_of(config, len(train)),
  )


def load(config: Any, split: str) -> source.Source:
  """Rows of a split of the set that a config names."""
  return source.load(config.data.name, split, data_dir=config.data.dir)


def classifier(
  config: Any,
  data: Data,
  method: types.Method,
  *,
  batches: types.Batches | None = None,
  sources: Callable[[str], source.Source] | None = None,
  multiple: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment that classifies the images of one TFDS set.

  Args:
    config: With what `read`, `wiring.shuffled` and `wiring.of_sources` read.
    data: `read(config)`, or made from it.
    method: What is trained; `predict` gives 'logits'.
    batches: What it is trained on; shuffled epochs if None.
    sources: Split -> its rows; by default those of the set `config.data.name`.
    multiple: Rows that the method mixes with each other.
    warm_start: Fresh state -> the state to train from.

  Raises:
    InputError: The set has no classes.
  """
  if data.train.num_classes is None:
    raise types.InputError(
      f'--config.data.name={config.data.name} has no labels to learn: give '
      'rows with a column label, or say which it is by csv:label=COLUMN or '
      'npz:label=COLUMN.'
    )
  if 'target' in data.train.reader(np.zeros(1, int)):
    raise types.InputError(
      f'--config.data.name={config.data.name} has a column target, which would '
      'stand in for the label: rename it, of files of your own as in '
      'npz:other=target.'
    )
  if batches is None:
    batches = wiring.shuffled(
      config, data.train, data.recipe, multiple=multiple
    )
  if sources is None:
    sources = lambda split: load(config, split)  # noqa: E731

  def figures(rows, outputs, columns):
    from repjax import pictures

    logits, labels = outputs['logits'], columns['label']
    chosen = plots.telling(logits, labels)
    # Images of many sizes as the network sees them, others as they are.
    decode = data.recipe.decode_evaluate if rows.image_shape is None else None
    shown = rows.read(columns['index'][chosen], decode=decode)['image']
    return {
      'predictions': plots.predictions(
        pictures.visible(shown),
        logits[chosen],
        labels[chosen],
        wrong_rate=1 - measure(outputs, columns)['accuracy'],
      ),
      **plots.of_classes(logits, labels),
    }

  return wiring.of_sources(
    config,
    method,
    batches=batches,
    sources=sources,
    steps=data.steps,
    measure=measure,
    figures=figures,
    recipe=data.recipe,
    warm_start=warm_start,
  )


def measure(outputs, columns) -> dict[str, float]:
  """Measures of 'logits' against 'label'."""
  return classification.measure(outputs['logits'], columns['label'])
