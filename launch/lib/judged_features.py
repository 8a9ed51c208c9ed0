"""Few-shot episodes on the features of a trained model.

What `launch.evaluate --episodes=5x1` prints.
"""

import re

from absl import logging
import jax
import numpy as np

from repjax import loop
from repjax import types
from repjax.data.batches import episodes
from repjax.layers import layer_inputs
from repjax.methods import few_shot
from repjax.metrics import averages
from repjax.metrics import pairs
from repjax.protocols import on_episodes


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
) -> dict[str, object]:
  """Accuracy of classifiers on the input of a layer, over the same episodes.

  Methods that learn without labels predict features, and those are judged.

  Returns:
    Numbers of the episodes, and 'accuracy': classifier -> [mean, half of its
    95 % interval]; 'over': classifier -> other -> the same of their paired
    difference. Logs both as a table.
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

  outputs, columns = loop.Evaluator(types.Predictor(predict))(
    state, experiment.evals(split), split=split
  )
  if 'label' not in columns:
    raise types.InputError('--episodes need rows with labels; these have none.')
  sampler = episodes.sampler(
    np.asarray(columns['label']),
    ways=ways,
    shots=shots,
    queries=queries,
    seed=seed,
  )
  # Without a power where features are negative.
  power = 0.5 if outputs['features'].min() >= 0 else None
  classifiers = {
    'nearest centroid': few_shot.nearest_centroid(),
    'cosine': few_shot.cosine(),
    'nearest neighbour': few_shot.nearest_neighbours(),
    **few_shot.regressions(power=power),
  }
  found = on_episodes.accuracy(
    outputs['features'], sampler, classifiers, count=count
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
    'accuracy': {k: averages.interval(x.tolist()) for k, x in found.items()},
    'over': pairs.differences(found),
  }
