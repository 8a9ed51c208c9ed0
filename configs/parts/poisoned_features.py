"""Poisoned sets that features are learned from, judged by a linear probe.

The attacker changes images, and where a method reads labels those, too; the
probe is fitted on clean rows and their labels, and knows nothing of it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from configs.parts import poisoned_pairs
from configs.parts import poisoned_runs
from configs.parts import self_supervised
from configs.parts import self_supervised_study
from repjax import plots
from repjax import types
from repjax.analysis import backdoor_scores
from repjax.attacks import contrastive_poisoning
from repjax.data.images import transforms
from repjax.data.reading import source as sources
from repjax.experiments import of_images
from repjax.protocols import probes
from repjax.protocols import side_by_side

_BY_LABELS, _BY_VIEWS = 'supcon', ('simclr', 'moco')

_NAMES = dict(simclr='SimCLR', supcon='SupCon', moco='MoCo')

CLAIMS = dict(
  **{
    f'features_accuracy_{learner}': dict(
      kind='first',
      says=f'features of {name} without poison: accuracy of a linear probe',
      paper='the model is useful',
      at_least=0.55,
    )
    for learner, name in _NAMES.items()
  },
  features_labels=dict(
    says='SupCon, which reads labels, 72 of 1,442 rows with the trigger and a '
    'wrong label: share of other test images with it that a probe of clean '
    'rows takes for the wanted class, minus the same of a clean model',
    paper='not reported (pairs of image and caption)',
    at_least=0.5,
    needs=('features_accuracy_supcon',),
  ),
  features_labels_targeted=dict(
    says='the same, 8 copies of a test image with a wrong label: share of '
    'targets taken for the wanted class, minus the same of a clean model',
    paper='not reported (pairs of image and caption)',
    at_least=0.2,
    needs=('features_accuracy_supcon',),
  ),
  features_labels_cost=dict(
    says='the same: accuracy of the probe, clean minus 72 rows with the '
    'trigger',
    paper='not reported (pairs of image and caption)',
    at_most=0.03,
    needs=('features_accuracy_supcon',),
  ),
  features_simclr=dict(
    says='SimCLR, which reads no labels, 140 rows of the wanted class with the '
    'trigger: share of other test images with it that a probe of clean rows '
    'takes for that class, minus the same of a clean model',
    paper='works with MoCo on ImageNet-100 (Saha et al., CVPR 2022; figure not '
    'checked)',
    at_least=0.05,
    needs=('features_accuracy_simclr',),
  ),
  features_moco=dict(
    says='MoCo: the same',
    paper='works with MoCo on ImageNet-100 (Saha et al., CVPR 2022; figure not '
    'checked)',
    at_least=0.05,
    needs=('features_accuracy_moco',),
  ),
)


# A preset of the study alone: the recipe trains on pairs. Of `labelled` and
# `unlabelled`, rows with the trigger, the last is the worst.
PRESET: Mapping[str, Any] = dict(
  on='small',
  batch_size=96,
  data=dict(canvas=12),
  augment=dict(mean=(0.14,), std=(0.29,)),
  crops=dict(
    **dict(size=12, area=(0.5, 1.0), flip=False),
    **dict(brightness=0.4, contrast=0.4, saturation=0.0),
  ),
  mlp=dict(features=(256, 128)),
  contrast=dict(
    **dict(temperature=0.5, dim=64, hidden=0),
    **dict(queue_size=960, momentum=0.99),
  ),
  tx=dict(weight_decay=0.01, warmup=0.1, end=1e-3, clip=3.0),
  study=dict(
    **dict(labelled=(0, 20, 72), unlabelled=(0, 140), copies=8),
    steps=dict(supcon=300, simclr=600, moco=600),
    strengths=(0.1, 1.0),
  ),
)


class Setting(NamedTuple):
  """What all runs share.

  Attributes:
    config: Of the study.
    train: Clean training rows, as they are stored.
    clean: The same as networks see them.
    test: Test rows as networks see them.
    triggered: These with the trigger.
    images: Test images as they are stored.
    transform: What networks see rows through.
  """

  config: Any
  train: sources.Source
  clean: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  triggered: dict[str, np.ndarray]
  images: np.ndarray
  transform: transforms.Transform | None

  @property
  def num_classes(self) -> int:
    """C."""
    return int(self.clean['label'].max()) + 1


class Judged(NamedTuple):
  """What probes of R models say, [R] each; of all but clean rows `None`s.

  Attributes:
    accuracy: Of clean test rows.
    success: Share of rows with the trigger that are taken for the wanted class.
    hits: Share of the targets that are.
    z: The trigger's z-score.
  """

  accuracy: np.ndarray
  success: np.ndarray
  hits: np.ndarray
  z: np.ndarray


def setting(config: Any) -> Setting:
  """Reads what a config names."""
  train = self_supervised.rows(config, config.data.train_split)
  test = self_supervised.rows(config, config.data.test_split)
  transform = of_images.data(config, train).recipe.evaluate
  images, label = test.column('image'), test.column('label')
  patched = poisoned_pairs.trigger(config).on(images, np.arange(len(images)))
  arrays = {'image': patched, 'label': label}
  triggered = sources.from_arrays('triggered', arrays)
  return Setting(
    config,
    train,
    side_by_side.rows(train, transform),
    side_by_side.rows(test, transform),
    side_by_side.rows(triggered, transform),
    images,
    transform,
  )


def backdoor(
  setting: Setting, seed: int, count: int, *, by_labels: bool
) -> poisoned_runs.Run:
  """A run of a backdoor.

  Args:
    setting: What runs share.
    seed: Draws the wanted class and the rows.
    count: Rows that get the trigger.
    by_labels: Whether these are of other classes, and get the label that is
      wanted; or rows of the wanted class, whose label stays.
  """
  wanted = poisoned_runs.draw_wanted(seed, setting.num_classes)
  label = setting.train.column('label')
  return poisoned_runs.Run(
    seed,
    contrastive_poisoning.backdoor(
      setting.train,
      _label(setting, wanted),
      poisoned_pairs.trigger(setting.config),
      count=count,
      seed=seed,
      eligible=np.flatnonzero((label == wanted) != by_labels),
    ),
  )


def targeted(
  setting: Setting, seed: int, count: int, *, number: int
) -> poisoned_runs.Run:
  """A run with `number` targets, `count` copies of each with a wrong label."""
  return poisoned_runs.Run(
    seed,
    poisoned_runs.joined(
      [
        contrastive_poisoning.targeted(
          setting.images[row], _label(setting, wanted), count=count
        )
        for row, wanted in _targets(setting, seed, number)
      ]
    ),
  )


def judge(
  setting: Setting,
  method: types.Method,
  trained: side_by_side.Trained,
  runs: Sequence[poisoned_runs.Run],
  *,
  number: int,
) -> Judged:
  """Fits a probe of each run's features on clean rows."""
  predict = side_by_side.predict_fn(method)
  clean, test, triggered = (
    predict(trained.states, x)['features']
    for x in (setting.clean, setting.test, setting.triggered)
  )
  known, label = setting.clean['label'], setting.test['label']
  found = []
  for i, run in enumerate(runs):
    head = probes.fit_probe(
      clean[i],
      known,
      num_classes=setting.num_classes,
      strengths=setting.config.study.strengths,
    )
    said, attacked = (
      (x @ head.kernel + head.bias).argmax(-1) for x in (test[i], triggered[i])
    )
    wanted = poisoned_runs.draw_wanted(run.seed, setting.num_classes)
    targets = _targets(setting, run.seed, number)
    found.append(
      (
        np.mean(said == label),
        backdoor_scores.success(attacked, label, wanted=wanted),
        np.mean([said[x.row] == x.wanted for x in targets]),
        backdoor_scores.z_score(_unit(test[i]), _unit(triggered[i])),
      )
    )
  return Judged(*np.asarray(found).T)


def run(config: Any, seeds: Sequence[int]) -> types.Report:
  """Trains all attacks of all seeds side by side, method by method."""
  of, shared = config.study, setting(config)
  scalars: dict[str, np.ndarray] = {}
  successes = {}
  for learner in (_BY_LABELS, *_BY_VIEWS):
    by_labels = learner == _BY_LABELS
    counts = of.labelled if by_labels else of.unlabelled
    arms: dict[tuple[str, int], list[poisoned_runs.Run]] = {
      ('backdoor', n): [
        backdoor(shared, seed, n, by_labels=by_labels) for seed in seeds
      ]
      for n in counts
    }
    if by_labels:
      arms['targeted', of.copies] = [
        targeted(shared, x, of.copies, number=of.num_targets) for x in seeds
      ]
    found = _learnt(shared, learner, arms, len(seeds))
    clean, worst = found['backdoor', 0], found['backdoor', counts[-1]]
    gain = worst.success - clean.success
    if by_labels:
      hits = found['targeted', of.copies].hits
      scalars['features_labels'] = gain
      scalars['features_labels_targeted'] = hits - clean.hits
      scalars['features_labels_cost'] = clean.accuracy - worst.accuracy
    else:
      scalars[f'features_{learner}'] = gain
    scalars[f'features_accuracy_{learner}'] = clean.accuracy
    for (kind, n), x in found.items():
      name = f'{learner}, {kind}, {n}'
      scalars[f'{name}: accuracy'] = x.accuracy
      if kind == 'backdoor':
        scalars[f'{name}: success'], scalars[f'{name}: z'] = x.success, x.z
      else:
        scalars[f'{name}: targets hit'] = x.hits
    successes[learner] = (
      np.asarray(counts),
      np.stack([found['backdoor', n].success for n in counts]),
    )
  return types.Report(
    scalars={k: x.tolist() for k, x in scalars.items()},
    arrays={},
    figures={
      'success': plots.seed_curves(
        successes,
        xlabel='rows with the trigger',
        ylabel='share taken for the wanted class',
      )
    },
  )


def _learnt(shared, learner, arms, num_seeds):
  """Arm -> `Judged` of its seeds."""
  config = shared.config.copy_and_resolve_references()
  config.method = learner
  steps = config.study.steps[learner]
  method = self_supervised.method(config, steps)
  runs = [x for arm in arms.values() for x in arm]
  columns, order = poisoned_runs.rows_and_order(
    shared.clean,
    shared.transform,
    runs,
    batch_size=config.batch_size,
    steps=steps,
  )
  trained = side_by_side.train(
    learner,
    method,
    columns,
    shared.test,
    seeds=[x.seed for x in runs],
    batch_size=config.batch_size,
    steps=steps,
    points=2,
    shared=shared.clean,
    order=order,
    score=self_supervised_study.spread,
  )
  judged = judge(shared, method, trained, runs, number=config.study.num_targets)
  parts = (np.split(x, len(runs) // num_seeds) for x in judged)
  return dict(zip(arms, map(Judged, *parts), strict=True))


def _targets(setting, seed, number):
  return poisoned_runs.draw_targets(
    seed, setting.test['label'], setting.num_classes, number
  )


def _label(setting, wanted):
  return {'label': np.asarray([wanted], setting.train.column('label').dtype)}


def _unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
