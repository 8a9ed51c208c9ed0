"""What PiCO claims, measured: candidates told apart, and what a warm-up is for.

The paper reports, on CIFAR-10 and CIFAR-100, far higher accuracy than other
losses of candidate sets, and nearly that of right labels (figures below are
those of the authors' README, https://github.com/hbzju/PiCO). Here: an MLP on
`digits` with uniform sets at rate q, drawn anew by each seed, seeds side by
side, against a target that stays uniform over the set and against PRODEN, LWS,
CC, MSE and EXP, all on the same random views. Rates of learning of uniform
targets (of .02, .05, .1, .2, .4) and of PiCO (.02 to .2, where it hardly
matters) were chosen on a fifth of the training rows, by three seeds; PRODEN's
is the better of two; those of the others were not tuned. No test row was seen.
Right labels are used to draw sets and to report, never to train.

`..._few` are sets at q = .8, where the warm-up of one epoch, as in the authors'
scripts, is told from one of 20. A first sketch elsewhere had seen PiCO fall
below uniform targets at q = .7 after one epoch; in the trials for this study,
with stronger views and a rate of .05, it did so at .8 alone (.43 against .70,
and .94 after a warm-up of 20 epochs). All thresholds were written with these
trials in view.

Found: at q = .3 and .5 PiCO is as good as right labels (98.5 and 98.4 against
98.5 %), 2 and 3.5 points above uniform targets, and finds the right candidate
of 99 % of the rows. At q = .5 CC and PRODEN are within half a point: what the
paper gains over them is not to be seen in so small a network. Where sets depend
on the row the gain over uniform targets is 26 points. After a warm-up of one
epoch PiCO does NOT collapse at q = .7 (nor without any, .96), and at .8, at
the rate of .1 that was chosen, only comes down to uniform targets, with seeds
from 70 to 94 %; 20 epochs of warm-up win 11 points there. LWS, not tuned,
learns late in some seeds.

`gpu` is CIFAR-10 at q = .5 in 60 epochs against PRODEN and LWS, all at the
authors' rate for PiCO: what it says of the others is a lower bound.
"""

from typing import NamedTuple

from ml_collections import config_dict
import numpy as np

from configs import pico as recipe
from configs import presets
from configs.parts import candidate_sets
from repjax import plots
from repjax import types
from repjax.experiments import of_images
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

_GOOD = ('supervised_accuracy',)

CLAIMS = dict(
  gain_half=dict(
    says='q = .5: test accuracy, PiCO minus uniform targets',
    paper='not reported: the paper has no such baseline',
    at_least=0.02,
    needs=_GOOD,
  ),
  gain_third=dict(
    says='q = .3: test accuracy, PiCO minus uniform targets',
    paper='not reported: the paper has no such baseline',
    at_least=0.02,
    needs=_GOOD,
  ),
  told_half=dict(
    says='q = .5: training rows whose likeliest target is right, PiCO',
    paper='figure not checked',
    at_least=0.94,
  ),
  told_third=dict(
    says='q = .3: training rows whose likeliest target is right, PiCO',
    paper='figure not checked',
    at_least=0.94,
  ),
  collapse=dict(
    says='q = .7, warm-up of one epoch: test accuracy, uniform targets minus '
    'PiCO',
    paper='not reported',
    at_least=0.0,
  ),
  collapse_few=dict(
    says='q = .8, warm-up of one epoch: test accuracy, uniform targets minus '
    'PiCO',
    paper='not reported',
    at_least=0.05,
  ),
  # Came with records of the others in view, before any run of it.
  collapse_at_once=dict(
    says='q = .7, without a warm-up: test accuracy, uniform targets minus PiCO',
    paper='not reported',
    at_least=0.0,
  ),
  warmup_few=dict(
    says='q = .8: test accuracy, PiCO with a warm-up of 20 epochs minus with '
    'one of one epoch',
    paper='not reported',
    at_least=0.2,
  ),
  over_proden=dict(
    says='q = .5: test accuracy, PiCO minus PRODEN',
    paper='+5.8 points (93.58 against 87.78, CIFAR-10)',
  ),
  over_lws=dict(
    says='q = .5: test accuracy, PiCO minus LWS',
    paper='+7.4 points (93.58 against 86.16, CIFAR-10)',
  ),
  gain_instances=dict(
    says='sets that depend on the row (rate .4): test accuracy, PiCO minus '
    'uniform targets',
    paper='not reported',
  ),
  supervised_accuracy=dict(
    kind='first',
    says='test accuracy with right labels',
    paper='94.91 % (CIFAR-10)',
    at_least=0.9,
  ),
)

_RATES = dict(
  **dict(pico=0.1, uniform=0.2, proden=0.2, supervised=0.1),
  **dict(lws=0.05, cc=0.05, mse=0.05, exp=0.05),
)
_STUDY = dict(
  # others: at q = .5. sweep: whether q = .3, .7, .8 are measured, and sets that
  # depend on the row. long: epochs of the longer warm-up.
  paper=dict(
    # RandAugment is made by the host, and rows are on the device: both views
    # are jittered.
    views=dict(strong_layers=0),
    study=dict(
      others=('proden', 'lws', 'cc', 'mse', 'exp'),
      sweep=True,
      long=20.0,
      rates=dict.fromkeys(_RATES, 0.01),
      vectorize=False,
    ),
  ),
  small=dict(study=dict(rates=_RATES, vectorize=True)),
  # Networks one after the other: each fills an accelerator.
  gpu=dict(
    on='paper',
    epochs=60.0,
    study=dict(others=('proden', 'lws'), sweep=False),
  ),
  smoke=dict(study=dict(others=('proden', 'lws'), long=0.05)),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains all arms, each with all seeds."""
  data = of_images.read(config)
  test = side_by_side.rows(of_images.load(config, 'test'), data.recipe.evaluate)
  rows = side_by_side.rows(data.train, data.recipe.evaluate)
  short, long = config.targets.warmup, config.study.long
  # (kind of sets, q, method, warm-up).
  arms = [
    ('uniform', 0.5, x, short)
    for x in ('pico', 'uniform', 'supervised', *config.study.others)
  ]
  if config.study.sweep:
    arms += [
      (kind, q, x, short)
      for kind, q in (
        *(('uniform', q) for q in (0.3, 0.7, 0.8)),
        ('instances', 0.4),
      )
      for x in ('pico', 'uniform')
    ]
    arms += [('uniform', q, 'pico', long) for q in (0.7, 0.8)]
    arms += [('uniform', 0.7, 'pico', 0.0)]
  # One method after the other: what it trains on shares a compiled program.
  methods, made = {}, {}
  for arm in sorted(arms, key=lambda arm: arm[2:]):
    changed = _config(config, arm)
    if arm[2:] not in methods:
      methods[arm[2:]] = recipe.method(changed, data)
    made[arm] = _train(changed, methods[arm[2:]], data, rows, test, seeds, arm)
  curves = {
    q: {_name(x): y.curve for x, y in made.items() if x[:2] == ('uniform', q)}
    for q in (0.5, 0.7, 0.8)
  }
  return types.Report(
    scalars=_scalars(made, short, long),
    arrays={},
    figures={
      f'accuracy_{100 * q:.0f}': plots.seed_curves(x, ylabel='test accuracy')
      for q, x in curves.items()
      if x
    },
  )


def _name(arm):
  kind, q, algorithm, warmup = arm
  after = f' after {warmup:g}' if algorithm == 'pico' else ''
  return f'{kind} {q:g}, {algorithm}{after}'


class _Arm(NamedTuple):
  """Test accuracies [S], their curves, and shares of targets that are right."""

  score: np.ndarray
  curve: tuple[np.ndarray, np.ndarray]
  told: np.ndarray | None


def _config(config, arm):
  config = config.copy_and_resolve_references()
  kind, config.data.rate, config.algorithm, config.targets.warmup = arm
  config.data.candidates = kind
  config.tx.learning_rate = config.study.rates[config.algorithm]
  return config


def _train(config, method, data, rows, test, seeds, arm):
  columns = side_by_side.per_seed(rows, seeds)
  columns['candidates'] = np.stack(
    [candidate_sets.sets(config, data.train, x) for x in seeds]
  )
  index = np.arange(len(data.train), dtype=np.int32)
  columns['index'] = np.tile(index, (len(seeds), 1))
  trained = side_by_side.train(
    _name(arm),
    method,
    columns,
    test,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=data.steps,
    points=8,  # Which divides the steps of `small`: no second program.
    vectorize=config.study.vectorize,
  )
  told = None
  if config.algorithm == 'pico':
    guess = np.asarray(trained.states.extra.targets.values).argmax(-1)
    told = (guess == columns['label']).mean(1)
  return _Arm(trained.score, trained.curve, told)


def _scalars(made, short, long):
  """Claims, and accuracies of all arms."""

  def pico(q, warmup=short, kind='uniform'):
    return made[kind, q, 'pico', warmup]

  def gain(q, over='uniform', kind='uniform'):
    return pico(q, kind=kind).score - made[kind, q, over, short].score

  found = {
    'gain_half': gain(0.5),
    'told_half': pico(0.5).told,
    'over_proden': gain(0.5, 'proden'),
    'over_lws': gain(0.5, 'lws'),
    'supervised_accuracy': made['uniform', 0.5, 'supervised', short].score,
  }
  if ('uniform', 0.3, 'pico', short) in made:
    found |= {
      'gain_third': gain(0.3),
      'told_third': pico(0.3).told,
      'collapse': -gain(0.7),
      'collapse_few': -gain(0.8),
      'collapse_at_once': made['uniform', 0.7, 'uniform', short].score
      - pico(0.7, 0.0).score,
      'warmup_few': pico(0.8, long).score - pico(0.8).score,
      'gain_instances': gain(0.4, kind='instances'),
    }
  for arm, x in made.items():
    found[f'{_name(arm)}: accuracy'] = x.score
    if x.told is not None:
      found[f'{_name(arm)}: told'] = x.told
  return found
