"""What PGI claims, measured: right in colours of other classes.

The paper trains on digits that mostly have their class's colour, and reports
that predictions made equal in majority and minority of each class hold best
where a digit has the colour of another class (systematic shift), with groups
that are inferred from a model after its first epoch. Here: coloured `digits`, a
quarter of the authors' channels, with colours, rows and initialization of each
seed's own; one plain training for all, which goes on with each method, with the
true groups and, for two of them, the inferred ones. The reference has five
epochs of 1,000 rows in place of one of 45,000.

The learning rate (of three) and the methods' weights were chosen on held-out
rows in colours of other classes, as the authors' validation sets are, with two
seeds that are not these: 0.1 is best for PGI and within .01 of the best for
plain training and balanced groups. PGI's weight is the better of 10 and 30,
GroupDRO's step of 0.1 and 1; IRM and V-REx have the best weight of 1, 10 and
100, the class-wise penalties the same 10, the only one that was tried. When
thresholds were written, accuracies of trials on those seeds, and on the first
one here, were in view: PGI far above balanced groups, MMD as good as PGI.

With true groups PGI is 19.7 points and more above balanced groups, and those
are above plain training, for every seed; MMD inside classes is as good as PGI
and costs nothing in known colours. With inferred groups the order is the same
on average, but five seeds do not decide it: precisions of the partitions are
.34 to .91.
"""

from ml_collections import config_dict
import numpy as np
from sklearn import metrics

from configs import group_invariance
from configs import presets
from configs.parts import group_methods
from repjax import plots
from repjax import types
from repjax.experiments import of_images
from repjax.methods import group_inference
from repjax.methods import lp_ft
from repjax.methods import reweighting
from repjax.metrics import classification
from repjax.models import conv_net
from repjax.protocols import own_rows
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

CLAIMS = dict(
  accuracy=dict(
    kind='first',
    says='plain training: accuracy in the colours of training',
    paper='99.6 % (coloured MNIST, table 1, as quoted by others)',
    at_least=0.9,
  ),
  shift_cost=dict(
    kind='first',
    says='plain training: accuracy in the colours of training minus in colours '
    'of other classes',
    paper='60.9 points (99.60 against 38.72, table 1, as quoted by others)',
    at_least=0.3,
  ),
  pgi_gain=dict(
    says='in colours of other classes: accuracy of PGI minus that of balanced '
    'groups, true groups',
    paper='PGI has inferred groups there (no figure copied)',
    at_least=0.05,
    needs=('accuracy', 'shift_cost'),
  ),
  balanced_gain=dict(
    says='the same, balanced groups minus plain training, true groups',
    paper='not reported',
    at_least=0.02,
    needs=('accuracy', 'shift_cost'),
  ),
  inferred_pgi_gain=dict(
    says='the same, PGI minus balanced groups, inferred groups',
    paper='positive on coloured MNIST (no figure copied)',
    at_least=0.05,
    needs=('accuracy', 'shift_cost'),
  ),
  inferred_balanced_gain=dict(
    says='the same, balanced groups minus plain training, inferred groups',
    paper='not reported',
    at_least=0.0,
    needs=('accuracy', 'shift_cost'),
  ),
  pgi_best_gain=dict(
    says='the same, PGI minus the best of all other methods, true groups',
    paper='best or near the best (no figure copied)',
  ),
  precision_ratio=dict(
    says='precision of the inferred minority over that of chance',
    paper='not reported',
    at_least=2.0,
  ),
  known_cost=dict(
    says='in the colours of training: accuracy of plain training minus PGI, '
    'true groups',
    paper='small (no figure copied)',
  ),
  anomaly_gain=dict(
    says='average precision for the digit 0, which is no class, against digits '
    'in new colours: PGI minus plain training, true groups',
    paper='measured there, too (no figure copied)',
  ),
)

# What else goes on from the reference, with the true groups.
_BY_GROUP = ('reweight', 'irm', 'vrex', 'group_dro')
_BY_CLASS = ('cirm', 'cvrex', 'cdro', 'cmmd')

_STUDY = dict(
  paper=dict(study=dict(points=6, others=_BY_GROUP + _BY_CLASS)),
  smoke=dict(study=dict(others=['reweight', 'cdro'], points=1)),
)

# In-distribution colours, new ones, those of other classes, and the digit 0.
_TESTS = ('in_distribution', 'non_systematic', 'systematic', 'anomaly')


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(
    preset, presets.IMAGES, group_invariance.PRESETS, _STUDY
  )


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains a reference, infers groups, and goes on with each method."""
  recipe = of_images.data(config, group_invariance.load(config, 'train')).recipe

  def rows(split):
    of_seeds = [
      side_by_side.rows(
        group_invariance.load(config, split, seed=seed), recipe.evaluate
      )
      for seed in seeds
    ]
    return {k: np.stack([x[k] for x in of_seeds]) for k in of_seeds[0]}

  train, tests = rows('train'), {split: rows(split) for split in _TESTS}
  num_rows = train['label'].shape[1]
  epoch = num_rows / config.batch_size
  steps = group_methods.steps_of(config.epochs, epoch)
  first = group_methods.steps_of(config.groups.after, epoch)
  order = seed_loop.epochs(
    num_rows, seeds, steps=steps, batch_size=config.batch_size
  )

  def method(kind):
    own = config.copy_and_resolve_references()
    own.method = kind
    return group_invariance.method(own, num_rows, steps)

  def fit(name, made, columns, order, states, test=None):
    return own_rows.fit(
      name,
      made,
      states,
      columns,
      order,
      seeds=seeds,
      points=config.study.points,
      test=test,
    )

  plain = method('erm')
  start = side_by_side.begin(plain, train, seeds)
  reference, _ = fit('reference', plain, train, order[:, :first], start)
  inferred, reports = _infer(config, reference, train, seeds)
  weighted = {
    **train,
    'weight': np.stack(
      [reweighting.row_weights(group, 2) for group in train['group']]
    ),
  }
  results, curves = {}, {}
  for name, kind, columns in (
    ('plain', 'erm', train),
    ('balanced', 'balanced', train),
    ('PGI', 'pgi', train),
    *(
      (kind, kind, weighted if kind == 'reweight' else train)
      for kind in config.study.others
    ),
    ('balanced, inferred', 'balanced', inferred),
    ('PGI, inferred', 'pgi', inferred),
  ):
    made = plain if kind == 'erm' else method(kind)
    # What a method remembers (GroupDRO) begins here, all else goes on.
    fresh = side_by_side.begin(made, columns, seeds).model_state
    states = reference.replace(model_state={**fresh, **reference.model_state})
    states, curve = fit(
      name, made, columns, order[:, first:], states, tests['systematic']
    )
    results[name] = _measure(made, states, tests)
    curves[name] = first + curve[0], curve[1]
  return _report(config, results, curves, reports)


def _infer(config, reference, train, seeds):
  """(training rows with inferred groups, reports of each seed)."""
  predict = lp_ft.features(conv_net.ConvNet(9, **config.net))
  outputs = own_rows.predict(predict, reference, train)
  partitions = [
    group_inference.infer(
      outputs['features'][place],
      outputs['logits'][place],
      train['label'][place],
      num_classes=9,
      seed=seed,
      **config.inference,
    )
    for place, seed in enumerate(seeds)
  ]
  reports = [
    partition.report(group)
    for partition, group in zip(partitions, train['group'], strict=True)
  ]
  group = np.stack([partition.group for partition in partitions])
  return {**train, 'group': group}, reports


def _measure(method, states, tests):
  """Accuracies in all colours, and how well a digit 0 is told, one a seed."""
  logits = {
    name: own_rows.predict(method.predict, states, rows)['logits']
    for name, rows in tests.items()
  }
  found = {
    name: side_by_side.accuracy({'logits': logits[name]}, tests[name])
    for name in _TESTS[:3]
  }
  unsure = {
    name: -np.exp(classification.log_softmax(x)).max(-1)
    for name, x in logits.items()
  }
  known, new = unsure['non_systematic'], unsure['anomaly']
  truth = np.repeat([0, 1], [known.shape[1], new.shape[1]])
  found['anomaly'] = np.asarray(
    [
      metrics.average_precision_score(truth, np.concatenate(scores))
      for scores in zip(known, new, strict=True)
    ]
  )
  return found


def _report(config, results, curves, reports):
  def gain(better, worse, test='systematic'):
    return results[better][test] - results[worse][test]

  others = [
    results[name]['systematic']
    for name in ('plain', 'balanced', *config.study.others)
  ]
  precision = np.asarray([x['precision'] for x in reports])
  chance = np.asarray([x['base_rate'] for x in reports])
  main = ('plain', 'balanced', 'PGI', 'balanced, inferred', 'PGI, inferred')
  plain = results['plain']
  return types.Report(
    scalars={
      'accuracy': plain['in_distribution'],
      'shift_cost': plain['in_distribution'] - plain['systematic'],
      'pgi_gain': gain('PGI', 'balanced'),
      'balanced_gain': gain('balanced', 'plain'),
      'inferred_pgi_gain': gain('PGI, inferred', 'balanced, inferred'),
      'inferred_balanced_gain': gain('balanced, inferred', 'plain'),
      'precision_ratio': precision / chance,
      # The best on average, not a seed's own.
      'pgi_best_gain': results['PGI']['systematic']
      - max(others, key=lambda x: x.mean()),
      'known_cost': gain('plain', 'PGI', 'in_distribution'),
      'anomaly_gain': gain('PGI', 'plain', 'anomaly'),
      **{
        f'inferred groups: {key}': np.asarray([x[key] for x in reports])
        for key in reports[0]
      },
      **{
        f'{name}: {test.replace("_", " ")}': values
        for name, by_test in results.items()
        for test, values in by_test.items()
      },
    },
    arrays={},
    figures={
      'accuracy': plots.bars(
        {
          name: {test.replace('_', ' '): by_test[test] for test in _TESTS[:3]}
          for name, by_test in results.items()
        },
        ylabel='test accuracy',
      ),
      'curves': plots.seed_curves(
        {name: curves[name] for name in main},
        ylabel="accuracy in other classes' colours",
      ),
    },
  )
