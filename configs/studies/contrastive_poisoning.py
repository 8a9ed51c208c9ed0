"""What poisoning contrastive models claims, measured: how few pairs it takes.

The paper trains CLIP on three million pairs of image and caption. With .01 % of
the pairs poisoned most images with a patch are taken for what the attacker
likes, with .0001 % (a few copies) one image is, and the model is as good as
before on all others. A z-score of embeddings, without any label, tells how well
the backdoor works.

Here: captions of eight templates about `digits`, an MLP and a small transformer
from scratch, zero-shot by the same templates. Each seed draws the class that
its backdoor wants, the rows that carry the trigger (2 x 2 pixels in a corner),
and four test images that are taken for other classes, `n` copies each. A set of
1,442 rows needs a larger share of poison than one of millions: the number of
copies is what compares.

Defences, none of which the paper proposes, at 20 rows with the trigger: more
training on 360 clean pairs, by the same loss or by CleanCLIP's; leaving out the
5 % of pairs whose caption agrees least with those of images with like pixels;
and the search of the smallest patch that turns images into a class.

In the first record defences trained for 28 steps, in which nothing is unlearned
(CleanCLIP's loss left .95 of the success, undecided against CLIP's own). Now
they have 281, at the rate of training and the published weight: CleanCLIP's
loss forgets a fifth of the backdoor, and 6 points of accuracy, CLIP's own
nothing, and 14 points. Neither was tuned, and a user's figures hang on the rate
(https://github.com/nishadsinghi/CleanCLIP/issues/3), so that the verdict is one
on this setting and not on the method at its best.

--preset=features attacks what reads no captions: SimCLR and MoCo, by the
trigger on rows of the wanted class (Saha et al., CVPR 2022,
https://arxiv.org/abs/2105.10123), and SupCon, since it reads labels as CLIP
reads captions, by rows with wrong labels, on `digits` at random places of 12 x
12; success is that of a linear probe of clean rows. Trials of two seeds were in
view: SupCon .05 to .89 at 72 rows, SimCLR .05 to .28 at 140 of a class's 146;
MoCo was not tried. With crops of .3 of an image, a larger trigger, or digits in
the middle SimCLR took no notice. Unlabelled targets, joined with images of the
wanted class, were not hit there, and are not built. In the record seeds, which
draw the wanted class, differ by more than methods: SupCon's gains go from .10
to .85, MoCo's from .08 to .42. That SupCon and MoCo are asked for SimCLR's
accuracy, too, came with theirs in view (MoCo's interval ends at .551, the
threshold is .55), and only withdraws.

Settings come from runs of one seed, 0, with 20 rows, whose success (.79) was
known when the threshold on it was written; a pilot of another implementation
had .94 there, .45 at 3 rows and .013 at none, and 1.0 of targets at 3 copies.
"""

import jax
from ml_collections import config_dict
import numpy as np
import scipy.stats

from configs import contrastive_poisoning as recipe
from configs import presets
from configs.parts import poisoned_features
from configs.parts import poisoned_runs
from configs.parts import poisoning_defences
from repjax import plots
from repjax import types

SEEDS = (0, 1, 2, 3, 4)

# The thresholds stood here before the first run, but for what is said above.
_NEEDS = ('accuracy', 'success_clean')
CLAIMS = dict(
  backdoor=dict(
    says='20 of 1,442 rows carry the trigger: share of other test images with '
    'it that are taken for the wanted class, minus the same of a clean model',
    paper='works with .01 % of three million pairs (abstract)',
    at_least=0.6,
    needs=_NEEDS,
  ),
  accuracy=dict(
    kind='first',
    says='zero-shot test accuracy without poison',
    paper='the model is useful',
    at_least=0.9,
  ),
  success_clean=dict(
    kind='first',
    says='clean model: share of other test images with the trigger that are '
    'taken for the wanted class',
    paper='chance',
    at_most=0.15,
  ),
  attack=dict(
    kind='first',
    says='20 rows: success of the trigger before any defence',
    paper='works',
    at_least=0.5,
  ),
  targeted=dict(
    says='5 copies of an image with wrong captions: share of targets taken for '
    'the wanted class, minus the same of a clean model',
    paper='works with .0001 % of three million pairs, three (abstract)',
    at_least=0.8,
    needs=_NEEDS,
  ),
  targeted_three=dict(
    says='3 copies: the same',
    paper='works with .0001 % of three million pairs, three (abstract)',
    at_least=0.5,
    needs=_NEEDS,
  ),
  clean_cost=dict(
    says='zero-shot test accuracy, clean model minus one with 20 rows of a '
    'backdoor',
    paper='figure not checked',
    at_most=0.02,
    needs=_NEEDS,
  ),
  z_gain=dict(
    says='z-score of the trigger, 20 rows minus none',
    paper='rises with the number of poisoned pairs (figure not checked)',
    at_least=0.5,
    needs=_NEEDS,
  ),
  z_rank=dict(
    says='rank correlation of z-score and success, over seven numbers of rows',
    paper='the z-score stands in for success (sec. 5)',
    at_least=0.6,
    needs=_NEEDS,
  ),
  more_captions=dict(
    says='5 copies: share of targets hit, five different captions minus one',
    paper='not reported',
  ),
  clean_clip=dict(
    says='20 rows, then training on 360 clean pairs: success left by '
    "CleanCLIP's loss, over that before",
    paper='not of this paper',
    at_most=0.5,
    needs=('attack',),
  ),
  clean_clip_over_plain=dict(
    says="the same: success left by CleanCLIP's loss minus that left by "
    "CLIP's own",
    paper='not of this paper',
    at_most=0.0,
    needs=('attack',),
  ),
  filtered=dict(
    says='20 rows, 5 % of pairs left out by neighbours in pixels: success over '
    'that before',
    paper='not of this paper',
    at_most=0.5,
    needs=('attack',),
  ),
  inverted=dict(
    says='20 rows: anomaly of the patch that leads to the wanted class '
    '(above 2 is suspicious)',
    paper='not of this paper',
    at_least=2.0,
    needs=('attack', 'inverted_clean'),
  ),
  # Came with a record of `inverted` in view, before any run of it.
  inverted_clean=dict(
    kind='first',
    says='clean model: anomaly of the patch that leads to the same class',
    paper='not of this paper',
    at_most=2.0,
  ),
  **poisoned_features.CLAIMS,
)

_STUDY: presets.Layer = dict(
  paper=dict(
    study=dict(
      backdoors=(0, 1, 3, 5, 10, 20, 40),
      targeted=(1, 2, 3, 5, 8),
      num_targets=4,
      attacked=20,
      told=5,
      # Of the defences.
      clean_rows=360,
      clean_epochs=100.0,
      in_modal=1.0,
      left_out=0.05,
      neighbours=10,
      inversion=dict(images=128, steps=200, weight=0.01),
    )
  ),
  features=poisoned_features.PRESET,
  smoke=dict(
    study=dict(
      backdoors=(0, 3),
      targeted=(2,),
      attacked=3,
      told=2,
      clean_rows=64,
      clean_epochs=1.0,
      inversion=dict(images=8, steps=4),
    )
  ),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains all attacks of all seeds side by side, then the defences."""
  if 'unlabelled' in config.study:
    return poisoned_features.run(config, seeds)
  of, shared = config.study, poisoned_runs.setting(config)
  arms = [
    *(('backdoor', n) for n in of.backdoors),
    *(('targeted', n) for n in of.targeted),
    ('one caption', of.told),
  ]
  runs = [_run(shared, seed, *arm) for arm in arms for seed in seeds]
  trained = poisoned_runs.train('poisoned', shared, runs)

  def each(values):
    rows = np.reshape(values, (len(arms), len(seeds)))
    return dict(zip(arms, rows, strict=True))

  def of_arm(arm) -> tuple[types.TrainState, list]:
    first = arms.index(arm) * len(seeds)
    part = slice(first, first + len(seeds))
    return jax.tree.map(lambda x: x[part], trained.states), runs[part]

  accuracy = each(trained.score)
  hits = each(poisoned_runs.hit(shared, trained, runs, number=of.num_targets))
  success, z = map(each, poisoned_runs.attacked(shared, trained.states, runs))
  clean, told = ('backdoor', 0), ('targeted', of.told)
  worst = ('backdoor', of.attacked)
  doors = [('backdoor', n) for n in of.backdoors]
  gained = {arm: x - hits[clean] for arm, x in hits.items()}
  scalars = {
    'backdoor': success[worst] - success[clean],
    'accuracy': accuracy[clean],
    'success_clean': success[clean],
    'attack': success[worst],
    'targeted': gained[told],
    'clean_cost': accuracy[clean] - accuracy[worst],
    'z_gain': z[worst] - z[clean],
    'z_rank': _ranks(
      np.stack([z[x] for x in doors]), np.stack([success[x] for x in doors])
    ),
    'more_captions': hits[told] - hits['one caption', of.told],
    **poisoning_defences.measured(shared, *of_arm(worst), of_arm(clean)[0]),
  }
  if ('targeted', 3) in hits:
    scalars['targeted_three'] = gained['targeted', 3]
  for arm in arms:
    kind, count = arm
    name = f'{kind}, {count}'
    scalars[f'{name}: accuracy'] = accuracy[arm]
    if kind == 'backdoor':
      scalars[f'{name}: success'], scalars[f'{name}: z'] = success[arm], z[arm]
    else:
      scalars[f'{name}: targets hit'] = hits[arm]
  curves = {
    'backdoor': (of.backdoors, [success[x] for x in doors]),
    'targeted': (
      (0, *of.targeted),
      [hits[clean], *(hits['targeted', n] for n in of.targeted)],
    ),
  }
  return types.Report(
    scalars={k: np.asarray(x).tolist() for k, x in scalars.items()},
    arrays={},
    figures={
      'success': plots.seed_curves(
        {k: (np.array(x), np.stack(y)) for k, (x, y) in curves.items()},
        xlabel='poisoned rows (backdoor), copies (targeted)',
        ylabel='share taken for the wanted class',
      ),
      'z_score': plots.lines(
        {f'{x[1]} rows': (z[x], success[x]) for x in doors},
        xlabel='z-score of the trigger',
        ylabel='success',
        joined=False,
      ),
    },
  )


def _run(shared, seed, kind, count):
  if kind == 'backdoor':
    return poisoned_runs.backdoor(shared, seed, count)
  return poisoned_runs.targeted(
    shared,
    seed,
    count,
    number=shared.config.study.num_targets,
    captions=1 if kind == 'one caption' else shared.config.poison.captions,
  )


def _ranks(z, success):
  """Rank correlations over the first axis, [S]; 0 where all are alike."""
  found = [
    scipy.stats.spearmanr(*x).statistic if np.ptp(x[1]) else 0.0
    for x in zip(z.T, success.T, strict=True)
  ]
  return np.array(found)
