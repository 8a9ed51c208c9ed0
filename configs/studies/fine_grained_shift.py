"""What the fine-grained benchmark claims, measured: no method wins everywhere.

The paper trains 19 methods on tables of two attributes, and reports that the
best one depends on the shift; that augmentation helps where it describes the
nuisance; and that algorithms for domain generalization gain little over ERM
(its takeaways, sec. 5; figures are plots of changes over ERM, from which no
number was copied). Here: three shapes, told apart in three colours, where the
colour goes with the label, is rare, or is never seen; with noisy labels; and in
few rows. Methods: see `configs/parts/shift_methods.py`.

All cells of a method (shifts x seeds) are trained side by side. Each seed draws
rows of its own; the test is uniform, and networks predict it in evaluation
mode, which is asserted. The weights of IRM, CORAL and DANN are chosen for each
shift by the mean accuracy over seeds on a validation set that is uniform, as in
the paper: whoever has no such set gains less. Of the 24 that are chosen among
five (.01 to 100; the paper has four) nine are the least, near which a penalty
is none, and one is the largest, where all are at chance. The learning rate is
one for all, the best of three for ERM on the same validation set. Pretraining
is on digits in colours, and BN-Adapt is to be compared with the same networks
as they are (batch_norm); its statistics are those of all rows of a colour,
against N = 100 of training: the benchmark gives the new ones 10 / 110, whatever
their number.

Found: the hue augmentation is the best on every shift, and alone helps where
the colour tells the label of every row. Of the others, crop and BN-Adapt are
best where the correlation is strong, BN-Adapt where values are unseen, crop
where rows are few, pretraining where values are rare; but whoever takes
BN-Adapt for all of them loses about a point, which five seeds do not tell from
none (.011 +- .014; in the record before, with three weights, .013 +- .012), so
that `most_wins` is not judged. BN-Adapt is far above the same networks without
it where the colour misleads; with noisy labels hardly anything but hue is above
ERM. RandAugment of its full strength, AutoAugment, and JTT where labels are
noisy, lie below ERM.

`most_wins` was found to hold whatever happens: where all are at chance somebody
wins by luck. `regret`, which was written with its figure in view, asks whether
one method for all shifts loses anything, and withdraws it where that is open.

Trials on three seeds had shown the accuracy of ERM and of the hue augmentation
on four of the shifts when the thresholds were written. The range of rates and
the number of steps were settled after that, by a trial on two other seeds.
"""

from ml_collections import config_dict
import numpy as np

from configs import fine_grained_shift as recipe
from configs import presets
from configs.parts import shift_methods
from configs.parts import shift_study
from configs.parts import shift_tables
from repjax import matrix_plots
from repjax import types
from repjax.benchmarks import shift_results
from repjax.benchmarks import shift_training
from repjax.experiments import of_images
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)
GRIDS = {'^rate of ERM$': 'study.rates', ', weight$': 'study.weights'}

# The thresholds stood here before the first run.
CLAIMS = dict(
  base_accuracy=dict(
    kind='first',
    says='no shift: test accuracy of ERM',
    paper='not copied',
    at_least=0.75,
  ),
  describing_gain=dict(
    says='the augmentation that describes the nuisance (hue) minus the best '
    'other method, mean over shifts',
    paper='heuristic augmentation helps if it describes the attribute (sec. 5)',
    at_least=0.1,
    needs=('base_accuracy',),
  ),
  # Came after the record, with its figure in view: it can only withdraw what
  # `most_wins` says.
  regret=dict(
    kind='first',
    says='the other methods: what the best one for all shifts loses to the '
    'best one of each shift, both chosen on other seeds',
    paper='above 0: no method is always the best (sec. 5)',
    at_least=0.0,
  ),
  most_wins=dict(
    says='the other methods: largest part of the shifts on which one of them '
    'is the best',
    paper='below 1: no method is always the best (sec. 5)',
    at_most=0.99,
    needs=('base_accuracy', 'regret'),
  ),
  chance_at_none=dict(
    says='colour tells the label of every row: ERM minus chance',
    paper='not copied',
    at_most=0.05,
    needs=('base_accuracy',),
  ),
  rises=dict(
    says='ERM with the most rare rows minus with none',
    paper='rises with the number of uncorrelated rows (figure not copied)',
    at_least=0.08,
    needs=('base_accuracy',),
  ),
  algorithms_gain=dict(
    says='the best of IRM, CORAL, DANN, SagNet and domain Mixup by validation, '
    'minus ERM, mean over shifts',
    paper='limited (sec. 5)',
    at_most=0.08,
    needs=('base_accuracy',),
  ),
  other_augmentation_gain=dict(
    says='an augmentation that does not describe the nuisance (crop) minus '
    'ERM, mean over shifts',
    paper='it may hurt (sec. 5)',
  ),
)

_STUDY = dict(
  paper=dict(
    study=dict(
      # Those of the paper.
      methods=(
        *(x for x in shift_methods.NAMES if x != 'group_dro'),
        shift_study.PRETRAINED,
      ),
      rates=(1e-4, 1e-3, 1e-2),
      weights=(0.01, 0.1, 1.0, 10.0),
      # Rare rows of the correlated shifts; of the noisy one the last.
      num_rare=(0, 50, 500),
      num_rare_low=10,
      label_noise=0.3,
      total=1000,
      rare_share=0.1,
      copies=8,
    )
  ),
  small=dict(
    study=dict(
      rates=(3e-3, 1e-2, 3e-2),
      weights=(0.01, 0.1, 1.0, 10.0, 100.0),
      num_rare=(0, 50, 300),
      num_rare_low=30,
      total=500,
      copies=4,
    )
  ),
  smoke=dict(
    study=dict(
      methods=(
        *('erm', 'hue', 'crop', 'irm', 'domain_mixup', 'jtt', 'bn_adapt'),
        shift_study.PRETRAINED,
      ),
      rates=(3e-3,),
      weights=(0.1, 1.0),
      num_rare=(0, 9, 30),
      total=40,
      copies=2,
    )
  ),
)
_ALGORITHMS = ('irm', 'coral', 'dann', 'sagnet', 'domain_mixup')


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains every method on all shifts and seeds, tables of both by value."""
  splits = shift_tables.read(config)
  num_labels, num_values = splits.train.num_classes, splits.num_values
  names = list(shift_study.named_shifts(config))
  made = shift_training.cells(
    splits.train.columns(),
    {
      x: shift_tables.conditions(y)
      for x, y in shift_study.named_shifts(config).items()
    },
    seeds=seeds,
    num_labels=num_labels,
    num_values=num_values,
    steps=config.min_steps,
    batch_size=config.batch_size,
  )
  scale = of_images.data(config, splits.train).recipe
  held_out = _joined(
    *(side_by_side.rows(x, scale.evaluate) for x in (splits.valid, splits.test))
  )
  arms = shift_study.Arms(
    made, scale, held_out, num_labels, num_values, num_valid=len(splits.valid)
  )
  config, erm = shift_study.with_best_rate(config, arms)
  accuracy, valid, tables, weights = {}, {}, {}, {}
  found = {}
  for method in config.study.methods:
    if method == 'bn_adapt':
      found |= shift_study.adapted(config, arms)
    elif method != 'erm':
      found[method] = shift_study.arm(config, method, arms)
  for method, made in {'erm': erm, **found}.items():
    tables[method] = made.tables
    accuracy[method] = dict(zip(names, made.test, strict=True))
    valid[method] = made.valid
    weights |= {
      f'{method}, {x}, weight': [y]
      for x, y in zip(names, made.weights, strict=False)
    }
  report = _report(config, accuracy, valid, tables, num_labels)
  return report._replace(scalars={**report.scalars, **weights})


def _joined(valid, test):
  return {name: np.concatenate([x, test[name]]) for name, x in valid.items()}


def _report(config, accuracy, valid, tables, num_labels):
  """All measures; of shifts alone, but for the first."""
  shifts = list(accuracy['erm'])[1:]
  shifted = {
    method: {x: by_shift[x] for x in shifts}
    for method, by_shift in accuracy.items()
  }

  def stacked(methods):
    return np.stack(
      [np.stack([shifted[m][x] for x in shifts]) for m in methods]
    )  # [methods, K, S]

  others = {x: y for x, y in shifted.items() if x != 'hue'}
  erm = stacked(['erm'])[0]
  algorithms = [x for x in _ALGORITHMS if x in accuracy]
  best = np.stack([valid[x][1:] for x in algorithms]).argmax(0)  # [K]
  chosen = stacked(algorithms)[best, np.arange(len(shifts))]
  none, *_, most = (
    accuracy['erm'][f'correlated, {x}'] for x in config.study.num_rare
  )
  gap = stacked(['hue'])[0] - stacked(list(others)).max(0)
  return types.Report(
    scalars={
      'base_accuracy': accuracy['erm']['uniform'],
      'describing_gain': gap.mean(0),
      'regret': shift_results.regret(others),
      'most_wins': shift_results.wins(others).max(0),
      'chance_at_none': none - 1 / num_labels,
      'rises': most - none,
      'algorithms_gain': (chosen - erm).mean(0),
      'other_augmentation_gain': (stacked(['crop'])[0] - erm).mean(0),
      'rate of ERM': [config.tx.learning_rate],
      **{
        f'{method}, {shift}': values
        for method, by_shift in accuracy.items()
        for shift, values in by_shift.items()
      },
    },
    arrays={f'cells of {method}': x for method, x in tables.items()},
    figures={
      'change_over_erm': shift_results.change_figure(accuracy, 'erm'),
      'ranks': shift_results.rank_figure(shifted),
      'cells': matrix_plots.matrices(
        {
          f'{method}, {shift}': tables[method][place].mean(0)
          for method in ('erm', 'hue')
          for place, shift in ((2, list(accuracy['erm'])[2]), (5, 'unseen'))
        },
        xlabel='colour',
        ylabel='shape',
      ),
    },
  )
