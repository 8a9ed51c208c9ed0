"""What Distribution Calibration claims, measured: one row, five rows, why.

The paper draws features for a class of few rows from a Gaussian whose mean and
covariance come from the base classes nearest to it, and reports that logistic
regression on them is better than the best methods before (abstract; figures not
checked). Users measured, on the authors' features of miniImageNet, in the same
episodes of one and of five rows: logistic regression 59.07 and 81.48 %, with
calibration 68.21 and 83.46 %; but 64.63 and 83.11 % with Tukey's power alone,
66.39 and 83.56 % with normalization alone, 65.18 and 84.11 % with both:
https://github.com/ShuoYang-1998/Few_Shot_Distribution_Calibration/issues/3

Here: each seed draws which five of ten classes are learned (100 of 156
characters of Omniglot), and episodes of the others, all rows of which are new;
all classifiers see the same episodes. `published` takes statistics of raw
features and compares them with rows under the power, as the authors' code does,
which depends on the scale of features: it is swept. `consistent` takes both
under the power. Nothing is tuned on episodes (a trial of CIFAR-10: -.019) but
which of two is the simple one, the better for all seeds together.

On no set is the published rule ahead at one row, and scale decides (on MNIST
.53 at a mean of .1, .43 at 1.6). Consistent statistics come near the power.
"""

from ml_collections import config_dict
import numpy as np

from configs import distribution_calibration as recipe
from repjax import plots
from repjax import types
from repjax.data.batches import episodes
from repjax.experiments import of_images
from repjax.methods import distribution_calibration as calibration
from repjax.methods import few_shot
from repjax.protocols import on_episodes
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)
_SHOTS = (1, 5)

# What features of base rows are scaled to have as their mean, and which of
# these is the authors': features are means of relu(norm), whose scales begin
# at 1 (0.4 for a Gaussian). Nothing draws them elsewhere: Adam runs without
# weight decay, and the head sees unit vectors (train.py and wrn_model.py of
# https://github.com/ShuoYang-1998/Few_Shot_Distribution_Calibration).
_MEANS = (0.1, 0.2, 0.4, 0.8, 1.6)
_AUTHORS = 0.4

# The thresholds stood here before the first run on these sets. That the gain at
# one row and its loss at five were to be expected was known from a trial with
# another network on MNIST: .390 against .426 (published) and .445 (consistent)
# at one row, .628 (power) against .583 and .635 at five.
_NEEDS = ('base_accuracy', 'features_gain')
_OURS = dict(paper='not reported', needs=_NEEDS)
CLAIMS = dict(
  one_row=dict(
    says='1 row: accuracy in episodes, published calibration minus logistic '
    'regression',
    paper='68.57 % calibrated (quoted by others); users measured +9.1 points',
    **dict(at_least=0.01, needs=_NEEDS),
  ),
  one_row_over_simple=dict(
    says='1 row: published calibration minus the better of power and l2 alone',
    paper='not reported; users measured +1.8 points',
    **dict(at_least=0.0, needs=_NEEDS),
  ),
  five_rows_over_simple=dict(
    says='5 rows: published calibration minus the better of power and l2 alone',
    paper='not reported; users measured -0.1 points (-0.65 against both)',
    **dict(at_most=0.0, needs=_NEEDS),
  ),
  consistent_gain=dict(  # Came with records in view, and has no threshold.
    says='1 row: consistent calibration minus logistic regression',
    paper='not reported',
  ),
  consistent_one=dict(
    says='1 row: consistent statistics minus published ones',
    **dict(**_OURS, at_least=0.0),
  ),
  consistent_five=dict(
    says='5 rows: consistent statistics minus published ones',
    **dict(**_OURS, at_least=0.0),
  ),
  # These two stood here before any run with scaled features.
  at_their_scale=dict(
    says='1 row, features scaled to a mean of 0.4: published calibration minus '
    'logistic regression',
    paper='68.57 % calibrated (quoted by others); users measured +9.1 points',
    **dict(at_least=0.01, needs=_NEEDS),
  ),
  at_their_scale_over_simple=dict(
    says='1 row, features scaled to a mean of 0.4: published calibration minus '
    'the better of power and l2 alone',
    paper='not reported; users measured +1.8 points',
    **dict(at_least=0.0, needs=_NEEDS),
  ),
  base_accuracy=dict(
    kind='first',
    says='test accuracy of the network on its base classes',
    **dict(paper='good features are taken for granted', at_least=0.5),
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
  train = recipe.read(config, config.data.train_split)
  test = recipe.read(config, config.data.eval_splits[0])
  _, transforms, steps = of_images.data(config, train)
  rows, test_rows = (
    side_by_side.rows(x, transforms.evaluate) for x in (train, test)
  )
  split = [recipe.classes(config, train.column('label'), s) for s in seeds]
  trained = side_by_side.train(
    'base classes',
    method := recipe.method(config, steps),
    _of_base(rows, [base for base, _ in split]),
    test_rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
    points=4,
    vectorize=config.network == 'mlp',  # See `seed_loop.fit`.
    score=_score_of([base for base, _ in split]),
  )
  everything = {k: np.concatenate([rows[k], test_rows[k]]) for k in rows}
  features = on_episodes.features(
    method, trained.states, everything, layer='head'
  )
  known = len(rows['label'])
  found = [
    _judge(config, x, everything['label'], known, *classes, seed)
    for x, classes, seed in zip(features, split, seeds, strict=True)
  ]
  means = np.asarray([mean for mean, _ in found])
  accuracy = {
    key: np.asarray([x[key] for _, x in found]) for key in found[0][1]
  }
  named = {
    f'{shots} rows, {name}' + (f', mean {mean}' if mean else ''): x
    for (shots, name, mean), x in accuracy.items()
  }
  return types.Report(
    scalars={
      'base_accuracy': trained.score,
      'features_gain': accuracy[5, 'logistic regression', None]
      - 1 / config.episodes.ways,
      'mean of features': means,
      **_differences(accuracy),
      **named,
    },
    arrays={},
    figures=_figures(accuracy),
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


def _judge(config, features, labels, num_train, base, novel, seed):
  """Mean of features and (shots, classifier, mean or None) -> accuracy.

  Features with a mean are scaled to it, by their rows of base classes.
  """
  known = np.flatnonzero(np.isin(labels[:num_train], base))
  numbers = config.calibration.to_dict()
  power, shrinkage = numbers['power'], numbers.pop('shrinkage')
  regressions = few_shot.regressions(power=power)

  def calibrated(rows, of):
    stats = calibration.statistics(
      rows[known], labels[known], of=of, power=power, shrinkage=shrinkage
    )
    return calibration.classifier(stats, **numbers)

  def accuracy(shots, rows, classifiers):
    sampler = episodes.sampler(
      labels,
      ways=config.episodes.ways,
      shots=shots,
      queries=config.episodes.queries,
      seed=seed,
      classes=novel.tolist(),
    )
    count = config.episodes.count
    found = on_episodes.accuracy(rows, sampler, classifiers, count=count)
    return {name: float(x.mean()) for name, x in found.items()}

  classifiers = {
    **regressions,
    'nearest centroid': few_shot.nearest_centroid(),
    'calibrated, published': calibrated(features, 'raw'),
    'calibrated, consistent': calibrated(features, 'transformed'),
  }
  found = {
    (shots, name, None): x
    for shots in _SHOTS
    for name, x in accuracy(shots, features, classifiers).items()
  }
  usual = float(features[known].mean())
  for mean in _MEANS:
    rows = features * np.float32(mean / usual)
    published = {'calibrated, published': calibrated(rows, 'raw')}
    found |= {
      (1, name, mean): x
      for name, x in accuracy(1, rows, regressions | published).items()
    }
  return usual, found


def _differences(accuracy):
  """What the claims compare."""
  one, five = (_scores(accuracy, shots) for shots in _SHOTS)
  scaled, mended = _scores(accuracy, 1, _AUTHORS), 'calibrated, consistent'

  def gain(score, form='calibrated, published', over='logistic regression'):
    return score[form] - score[over]

  def over_simple(score):
    simple = max(score['power'], score['l2'], key=np.mean)  # For all seeds.
    return score['calibrated, published'] - simple

  return {
    'one_row': gain(one),
    'one_row_over_simple': over_simple(one),
    'five_rows_over_simple': over_simple(five),
    'consistent_gain': gain(one, mended),
    'consistent_one': gain(one, mended, 'calibrated, published'),
    'consistent_five': gain(five, mended, 'calibrated, published'),
    'at_their_scale': gain(scaled),
    'at_their_scale_over_simple': over_simple(scaled),
  }


def _scores(accuracy, shots, mean=None):
  """Classifier -> accuracies a seed, of features with that mean."""
  return {k[1]: x for k, x in accuracy.items() if k[::2] == (shots, mean)}


def _figures(accuracy):
  one, five = (_scores(accuracy, shots) for shots in _SHOTS)
  swept = [_scores(accuracy, 1, mean) for mean in _MEANS]
  usual = 'logistic regression'
  return {
    'accuracy': plots.bars(
      {
        name.replace(', ', ',\n').replace(' and ', '\nand '): {
          '1 row': one[name],
          '5 rows': five[name],
        }
        for name in one
      },
      ylabel='accuracy in episodes of five classes',
    ),
    'scale': plots.seed_curves(
      {
        name: (
          np.asarray(_MEANS),
          np.stack([x[name] - x[usual] for x in swept]),
        )
        for name in swept[0]
        if name != usual
      },
      xlabel='mean to which features are scaled',
      ylabel=f'accuracy, 1 row, minus {usual}',
    ),
  }
