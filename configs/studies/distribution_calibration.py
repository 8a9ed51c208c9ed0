"""What Distribution Calibration claims, measured: one row, five rows, why.

The paper draws features for a class of few rows from a Gaussian whose mean and
covariance come from the base classes nearest to it, and reports that logistic
regression on them is better than the best methods before (abstract; figures not
checked). Users measured, on the authors' features of miniImageNet, in the same
episodes of one and of five rows: logistic regression 59.07 and 81.48 %, with
calibration 68.21 and 83.46 %; but 64.63 and 83.11 % with Tukey's power alone,
66.39 and 83.56 % with normalization alone, 65.18 and 84.11 % with both:
https://github.com/ShuoYang-1998/Few_Shot_Distribution_Calibration/issues/3

Here: each seed draws which five of ten classes are learned, and episodes of the
other five, all rows of which are new; all classifiers see the same episodes.
`published` takes statistics of raw features and compares them with rows under
the power, as the authors' code does; `consistent` takes both under the power.
Settings are the published ones for all: nothing is tuned on episodes.

With five base classes the published calibration gains nothing over logistic
regression at one row, on `digits` and on MNIST, and is behind the power alone,
by 5 points at one row and by 6 and 8 at five. Consistent statistics win back 4
to 6 points, and on MNIST are 4 ahead of logistic regression at one row. A
guess: the published rule averages raw means with rows under the power, so that
it depends on the scale of features, which was not matched to the authors'; and
so few base classes say little of others.
"""

from ml_collections import config_dict
import numpy as np

from configs import distribution_calibration as recipe
from repjax import plots
from repjax import types
from repjax.data.batches import episodes
from repjax.experiments import of_images
from repjax.layers import layer_inputs
from repjax.methods import distribution_calibration as calibration
from repjax.methods import few_shot
from repjax.protocols import on_episodes
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)
_SHOTS = (1, 5)

# The thresholds stood here before the first run on these sets. That the gain at
# one row and its loss at five were to be expected was known from a trial with
# another network on MNIST: .390 against .426 (published) and .445 (consistent)
# at one row, .628 (power) against .583 and .635 at five.
CLAIMS = dict(
  one_row=dict(
    says='1 row: accuracy in episodes, published calibration minus logistic '
    'regression',
    paper='better (figure not checked); users measured +9.1 points',
    at_least=0.01,
    needs=('base_accuracy', 'features_gain'),
  ),
  one_row_over_simple=dict(
    says='1 row: published calibration minus the better of power and l2 alone',
    paper='not reported; users measured +1.8 points',
    at_least=0.0,
    needs=('base_accuracy', 'features_gain'),
  ),
  five_rows_over_simple=dict(
    says='5 rows: published calibration minus the better of power and l2 alone',
    paper='not reported; users measured -0.1 points (-0.65 against both)',
    at_most=0.0,
    needs=('base_accuracy', 'features_gain'),
  ),
  consistent_one=dict(
    says='1 row: consistent statistics minus published ones',
    paper='not reported',
    at_least=0.0,
    needs=('base_accuracy', 'features_gain'),
  ),
  consistent_five=dict(
    says='5 rows: consistent statistics minus published ones',
    paper='not reported',
    at_least=0.0,
    needs=('base_accuracy', 'features_gain'),
  ),
  base_accuracy=dict(
    kind='first',
    says='test accuracy of the network on its base classes',
    paper='good features are taken for granted',
    at_least=0.5,
  ),
  features_gain=dict(
    kind='first',
    says='5 rows: accuracy of logistic regression over chance',
    paper='far above (figure not checked)',
    at_least=0.1,
  ),
)

get_config = recipe.get_config


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Base classes side by side, then episodes of the others, seed by seed."""
  train, transforms, steps = of_images.read(config)
  test = of_images.load(config, 'test')
  rows, test_rows = (
    side_by_side.rows(x, transforms.evaluate) for x in (train, test)
  )
  split = [recipe.classes(config, train.num_classes, s) for s in seeds]
  trained = side_by_side.train(
    'base classes',
    method := recipe.method(config, steps),
    _of_base(rows, [base for base, _ in split]),
    test_rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
    score=_score_of([base for base, _ in split]),
  )
  everything = {k: np.concatenate([rows[k], test_rows[k]]) for k in rows}
  features = _features(method, trained.states, everything)
  known = len(rows['label'])
  simple = _simple(config.calibration.power)
  found = [
    _judge(config, simple, x, everything['label'], known, *classes, seed)
    for x, classes, seed in zip(features, split, seeds, strict=True)
  ]
  accuracy = {key: np.asarray([x[key] for x in found]) for key in found[0]}
  return types.Report(
    scalars={
      'base_accuracy': trained.score,
      'features_gain': accuracy[5, 'logistic regression']
      - 1 / config.episodes.ways,
      **_differences(accuracy),
      **{f'{shots} rows, {name}': x for (shots, name), x in accuracy.items()},
    },
    arrays={},
    figures={
      'accuracy': plots.bars(
        {
          name.replace(', ', ',\n'): {
            f'{shots} rows': accuracy[shots, name] for shots in _SHOTS
          }
          for _, name in list(accuracy)[: len(accuracy) // 2]
        },
        ylabel='accuracy in episodes of five classes',
      )
    },
  )


def _of_base(rows, bases):
  """Rows of each seed's base classes, as many a seed, labelled anew."""
  chosen = [np.flatnonzero(np.isin(rows['label'], base)) for base in bases]
  size = min(map(len, chosen))
  chosen = np.stack([x[:size] for x in chosen])
  columns = {name: x[chosen] for name, x in rows.items()}
  columns['label'] = np.stack(
    [
      np.argsort(base)[np.searchsorted(np.sort(base), labels)]
      for base, labels in zip(bases, columns['label'], strict=True)
    ]
  )
  return columns


def _score_of(bases):
  """Accuracy on the rows of the base classes, [S]."""

  def accuracy(outputs, test):
    scores = []
    for logits, base in zip(outputs['logits'], bases, strict=True):
      known = np.isin(test['label'], base)
      guess = np.asarray(base)[logits[known].argmax(-1)]
      scores.append((guess == test['label'][known]).mean())
    return np.asarray(scores)

  return accuracy


def _features(method, states, rows):
  """What the heads see, [S, N, D]."""

  def predict(state, batch):
    _, features = layer_inputs.with_input_of(
      lambda: method.predict(state, batch), 'head'
    )
    return {'features': features}

  parts = []
  for first in range(0, len(rows['label']), 2000):
    batch = {k: x[first : first + 2000] for k, x in rows.items()}
    predicted = side_by_side.predict_fn(types.Predictor(predict))
    parts.append(predicted(states, batch)['features'])
  return np.concatenate(parts, 1)


def _simple(power):
  """Classifiers that know nothing of base classes."""
  regression = few_shot.logistic_regression()
  return {
    'logistic regression': regression,
    'power': few_shot.on(few_shot.tukey(power), regression),
    'l2': few_shot.on(few_shot.normalize, regression),
    'nearest centroid': few_shot.nearest_centroid(),
  }


def _judge(config, simple, features, labels, num_train, base, novel, seed):
  """Accuracy over episodes, (shots, classifier) -> number."""
  known = np.flatnonzero(np.isin(labels[:num_train], base))
  numbers = config.calibration.to_dict()
  power, shrinkage = numbers['power'], numbers.pop('shrinkage')
  classifiers = dict(simple)
  for name, of in (('published', 'raw'), ('consistent', 'transformed')):
    stats = calibration.statistics(
      features[known], labels[known], of=of, power=power, shrinkage=shrinkage
    )
    classifiers[f'calibrated, {name}'] = calibration.classifier(
      stats, **numbers
    )
  found = {}
  for shots in _SHOTS:
    sampler = episodes.sampler(
      labels,
      ways=config.episodes.ways,
      shots=shots,
      queries=config.episodes.queries,
      seed=seed,
      classes=novel.tolist(),
    )
    accuracy = on_episodes.accuracy(
      features, sampler, classifiers, count=config.episodes.count, at_once=100
    )
    found |= {(shots, k): float(x.mean()) for k, x in accuracy.items()}
  return found


def _differences(accuracy):
  """What the claims compare."""
  found = {}
  for shots, word in ((1, 'one'), (5, 'five')):
    score = {name: x for (n, name), x in accuracy.items() if n == shots}
    published = score['calibrated, published']
    simple = np.maximum(score['power'], score['l2'])
    if shots == 1:
      found['one_row'] = published - score['logistic regression']
    found[f'{word}_row{"s" * (shots > 1)}_over_simple'] = published - simple
    found[f'consistent_{word}'] = score['calibrated, consistent'] - published
  return found
