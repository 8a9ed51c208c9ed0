"""What GPM claims, measured: accuracy over tasks in sequence, and forgetting.

The paper takes the span of old tasks' layer inputs out of every update, and
reports, after ten permuted MNISTs, the highest accuracy of all methods without
growing networks (93.91 %, backward transfer -0.03, table 1), above A-GEM, EWC
and replay. Here: five permutations of `digits`, seeds side by side, and all
tasks at once as an upper bound. `mnist` is the same on ten permutations of
MNIST, `paper` GPM alone at the paper's scale.

All thresholds are met. Replay of 25 rows a class and task, which the paper
reports 6.7 points below GPM, is four points above it on `digits`, where that is
a sixth of a task, and one point below it on MNIST. EWC has the strength that is
best by test accuracy, which favours it: 100, and 1 on MNIST. The learning rate
is one for all learners, and chosen for none.
"""

from absl import logging
from ml_collections import config_dict
import numpy as np
import optax

from configs import gpm
from configs import presets
from configs.parts import task_streams
from repjax import matrix_plots
from repjax import plots
from repjax import types
from repjax.data.images import recipes
from repjax.experiments import wiring
from repjax.protocols import continual

SEEDS = (0, 1, 2, 3, 4)
GRIDS = {'^ewc strength$': 'ewc.strengths'}

# The thresholds stood here before the first run. That EWC's best strength must
# lie inside of its grid came later, when it was known for `digits` alone.
CLAIMS = dict(
  over_ewc=dict(
    says='ACC, GPM minus EWC at the best of its strengths',
    paper='+3.9 points (93.91 against 89.97, table 1)',
    at_least=0.0,
    needs=('strength_inside',),
  ),
  over_a_gem=dict(
    says='ACC, GPM minus A-GEM (25 rows a class and task)',
    paper='+10.4 points (93.91 against 83.56, table 1)',
    at_least=0.0,
  ),
  acc_gain=dict(
    says='final accuracy over all tasks (ACC), GPM minus plain SGD',
    paper='not reported for SGD (permuted MNIST, table 1)',
    at_least=0.15,
  ),
  # Came with records in view (.95, .87): it can only withdraw.
  learnt=dict(
    kind='first',
    says='accuracy of GPM on each task when it has learnt it, mean over tasks',
    paper='not reported',
    at_least=0.8,
  ),
  bwt=dict(
    says='backward transfer (BWT) of GPM',
    paper='-0.03 (permuted MNIST, table 1)',
    at_least=-0.10,
    at_most=0.10,
    needs=('learnt',),
  ),
  bwt_mnist=dict(
    says='permuted MNIST: backward transfer (BWT) of GPM',
    paper='-0.03 (permuted MNIST, table 1)',
    at_least=-0.05,
    at_most=0.05,
    needs=('learnt',),
  ),
  over_replay=dict(
    says='ACC, GPM minus replay (25 rows a class and task)',
    paper='+6.7 points (93.91 against 87.24 of ER_Res, table 1)',
  ),
  below_multitask=dict(
    says='ACC, all tasks at once minus GPM',
    paper='2.8 points (96.70 against 93.91, table 1)',
  ),
  acc=dict(says='ACC of GPM', paper='93.91 % (permuted MNIST, table 1)'),
  strength_inside=dict(
    kind='first',
    says='EWC: the best strength lies inside of its grid (1) or at an edge (0)',
    paper='does not apply',
    at_least=1.0,
  ),
)

_ALL = dict(
  study=dict(learners=('sgd', 'gpm', 'a_gem', 'ewc', 'replay', 'multitask'))
)
_STUDY = dict(
  paper=dict(study=dict(learners=('gpm',))),
  small=_ALL,
  paper_cifar100=_ALL,
  paper_5datasets=_ALL,
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, gpm.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Learns the tasks in sequence, by every learner."""
  outcomes, ewc, best = _learn_all(config, seeds)
  found = {name: continual.measures(x) for name, x in outcomes.items()}
  acc = {name: x['acc'] for name, x in found.items()}
  tasks = np.diagonal(outcomes['gpm'].accuracy, axis1=1, axis2=2)
  scalars = {
    'acc': acc['gpm'],
    'learnt': tasks.mean(-1),
    bwt_claim(config): found['gpm']['bwt'],
  }
  for claim, learner in (
    ('acc_gain', 'sgd'),
    ('over_a_gem', 'a_gem'),
    ('over_ewc', 'ewc'),
    ('over_replay', 'replay'),
  ):
    if learner in acc:
      scalars[claim] = acc['gpm'] - acc[learner]
  if 'multitask' in acc:
    scalars['below_multitask'] = acc['multitask'] - acc['gpm']
  for name, numbers in found.items():
    for key, values in numbers.items():
      scalars[f'{name} {key}'] = values
  if 'ewc' in outcomes:
    inside = min(ewc) < best < max(ewc)
    scalars['strength_inside'] = np.full(len(seeds), float(inside))
    scalars['ewc strength'] = np.full(len(seeds), best)
    scalars |= {f'ewc acc, strength {x:g}': acc for x, acc in ewc.items()}
  matrices = {
    name: x.accuracy.mean(0)
    for name, x in outcomes.items()
    if name != 'multitask'
  }
  ranks = outcomes['gpm'].ranks
  return types.Report(
    scalars=scalars,
    arrays=matrices,
    figures={
      'accuracy': matrix_plots.matrices(
        matrices, xlabel='accuracy on task', ylabel='after task'
      ),
      'ranks': plots.seed_curves(
        {
          layer: (np.arange(1, x.shape[1] + 1), x.T)
          for layer, x in ranks.items()
        },
        ylabel="rank of the layer's basis",
        xlabel='tasks learnt',
      ),
    },
  )


def bwt_claim(config) -> str:
  """The claim that GPM's backward transfer is judged by."""
  data = config.data
  on_mnist = data.stream == 'permuted' and data.name == 'mnist'
  return 'bwt_mnist' if on_mnist else 'bwt'


def _learn_all(config, seeds):
  """(learner -> `continual.Outcome`, EWC's strength -> its ACC, the best)."""
  stream = task_streams.read(config)
  smallest = min(len(task.train) for task in stream)
  recipe = recipes.images(stream[0].train, **config.augment)
  rows = continual.rows(stream, recipe.evaluate)
  settings = config.gpm.to_dict()
  thresholds = settings.pop('thresholds')[config.network]

  def learn(learner, strength=0.0):
    return continual.run(
      learner,
      task_streams.network(config, stream[0].train.num_classes),
      rows,
      optax.sgd(config.tx.learning_rate),
      seeds=seeds,
      batch_size=config.batch_size,
      steps=wiring.steps_of(config, smallest),
      heads=config.heads,
      thresholds=thresholds,
      strength=strength,
      learning_rate=config.tx.learning_rate,
      vectorize=config.network == 'mlp',
      **settings,
      **config.replay,
    )

  outcomes = {x: learn(x) for x in config.study.learners if x != 'ewc'}
  if 'ewc' not in config.study.learners:
    return outcomes, {}, 0.0
  tried = {x: learn('ewc', x) for x in config.ewc.strengths}
  accs = {x: continual.measures(found)['acc'] for x, found in tried.items()}
  best = max(accs, key=lambda strength: accs[strength].mean())
  logging.info('ewc: best strength %g', best)
  return {**outcomes, 'ewc': tried[best]}, accs, best
