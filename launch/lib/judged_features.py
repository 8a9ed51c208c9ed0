"""Few-shot episodes on the features of a trained model.

What `launch.evaluate --episodes=5x1` prints.
"""

import re
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from repjax import loop
from repjax import types
from repjax.data.batches import episodes
from repjax.layers import layer_inputs
from repjax.methods import distribution_calibration
from repjax.methods import few_shot
from repjax.metrics import averages
from repjax.metrics import pairs
from repjax.protocols import on_episodes


class Settings(NamedTuple):
  """Of classifiers that have any, as published.

  Attributes:
    power: Tukey's; None for .5, or none at all where features are negative.
    neighbours: Base classes that lend to a row.
    alpha: Added to their covariance.
    num_drawn: Draws a class.
    shrinkage: Of covariances of base classes.
  """

  power: float | None = None
  neighbours: int = 2
  alpha: float = 0.21
  num_drawn: int = 750
  shrinkage: float = 0.0


def asked(text: str) -> tuple[int, int]:
  """'5x1' -> 5 ways, 1 shot."""
  found = re.fullmatch(r'(\d+)x(\d+)', text)
  if found is None:
    raise types.InputError(
      f'--episodes={text} must be ways x shots, for example 5x1.'
    )
  return int(found[1]), int(found[2])


def measure(
  experiment: types.Experiment,
  state: types.TrainState,
  split: str,
  *,
  layer: str,
  ways: int,
  shots: int,
  queries: int,
  count: int,
  seed: int,
  base_split: str = '',
  settings: Settings = Settings(),
) -> dict[str, object]:
  """Accuracy of classifiers on the input of a layer, over the same episodes.

  Methods that learn without labels predict features, and those are judged.

  Returns:
    As `judge`; with `base_split`, its rows are those of base classes.
  """

  def predict(state, batch):
    own = jax.eval_shape(experiment.method.predict, state, batch)
    if 'features' in own and 'logits' not in own:
      found = experiment.method.predict(state, batch)
      return {'features': found['features']}
    _, rows = layer_inputs.with_input_of(
      lambda: experiment.method.predict(state, batch), layer
    )
    return {'features': rows}

  evaluator = loop.Evaluator(types.Predictor(predict))

  def features(split):
    outputs, columns = evaluator(state, experiment.evals(split), split=split)
    if 'label' not in columns:
      raise types.InputError(
        '--episodes need rows with labels; these have none.'
      )
    return outputs['features'], np.asarray(columns['label'])

  found, base = features(split), None
  if base_split:
    base = features(base_split)
    _check_others(experiment, (split, found[1]), (base_split, base[1]))
  return judge(
    *found,
    base=base,
    ways=ways,
    shots=shots,
    queries=queries,
    count=count,
    seed=seed,
    settings=settings,
  )


def _check_others(experiment, *parts):
  """Refuses base classes that episodes are of, as far as names tell."""
  called = []
  for split, labels in parts:
    rows = getattr(experiment.evals(split), 'source', None)
    if rows is None or rows.class_names is None:
      return
    called.append({rows.class_names[x] for x in np.unique(labels).tolist()})
  shared = called[0] & called[1]
  if shared:
    raise types.InputError(
      f'--base_split={parts[1][0]} has classes of --split={parts[0][0]}, such '
      f'as {min(shared)!r}: those that lend to episodes are others.'
    )


def judge(
  features: np.ndarray,
  labels: np.ndarray,
  *,
  base: tuple[np.ndarray, np.ndarray] | None,
  ways: int,
  shots: int,
  queries: int,
  count: int,
  seed: int,
  settings: Settings,
) -> dict[str, object]:
  """Accuracy of classifiers on features, over the same episodes.

  Args:
    features: [R, D].
    labels: [R].
    base: The same of rows of other classes, for Distribution Calibration, which
      is left out without them.
    ways: Classes of an episode.
    shots: Rows to learn from, of each class.
    queries: Rows to be judged by, of each class.
    count: Number of episodes.
    seed: Of the episodes.
    settings: Of the classifiers.

  Returns:
    Numbers of the episodes, and 'accuracy': classifier -> [mean, half of its
    95 % interval]; 'over': classifier -> other -> the same of their paired
    difference. Logs both as a table.
  """
  sampler = episodes.sampler(
    labels, ways=ways, shots=shots, queries=queries, seed=seed
  )
  power = settings.power
  if power is None:
    lowest = min(x.min() for x in (features, *(base or ())[:1]))
    power = 0.5 if lowest >= 0 else 1.0
  found = on_episodes.accuracy(
    features,
    sampler,
    _classifiers(features, base, settings, power),
    count=count,
  )
  logging.info(
    '%d episodes of %d x %d: accuracy, and each row minus the columns, in '
    'points +- half of the 95 %% interval\n%s',
    count,
    ways,
    shots,
    pairs.table(found),
  )
  return {
    'episodes': count,
    'ways': ways,
    'shots': shots,
    'queries': queries,
    'classes': len(sampler.counts),
    'base classes': len(np.unique(base[1])) if base else 0,
    'power': power,
    'accuracy': {k: averages.interval(x.tolist()) for k, x in found.items()},
    'over': pairs.differences(found),
  }


def _classifiers(features, base, settings, power):
  """Name -> classifier. A power of 1 changes nothing, and has none."""
  distribution_calibration.check_power(features, power)
  classifiers = {
    'nearest centroid': few_shot.nearest_centroid(),
    'cosine': few_shot.cosine(),
    'nearest neighbour': few_shot.nearest_neighbours(),
    **few_shot.regressions(power=None if power == 1 else power),
  }
  if base is None:
    return classifiers
  kinds = {'calibrated, published': 'raw'}
  if power != 1:
    kinds['calibrated, consistent'] = 'transformed'
  for name, of in kinds.items():
    classifiers[name] = distribution_calibration.classifier(
      distribution_calibration.statistics(
        *base, of=of, power=power, shrinkage=settings.shrinkage
      ),
      power=power,
      neighbours=settings.neighbours,
      alpha=settings.alpha,
      num_drawn=settings.num_drawn,
    )
  return classifiers
