"""What Domino claims, measured: slices that others miss, and their words.

The paper has 1,235 settings in which it is known where a model fails. Its
mixture finds 36 % of them, 12 points more than methods before; on noisy and
rare slices of one model of embeddings precision at 10 is .639, twice that of
the next best; embeddings of images and texts are better than others, and the
phrase that comes first names the slice in 35 % of settings.

Here: `digits` in six inks and four places, a CLIP of each seed that was trained
on captions of half of the training rows, validation rows of the other half,
test rows of the test split. A setting draws which five digits are the positive
class and, of a digit, an ink or a place, a rare slice (4 to 10 % of the
positive rows; the paper begins at 1 %, of which ten rows would not be left), a
correlation (.2 to .8, as in the paper) or noisy labels (10 to 30 %; the paper
begins at 1 %). Predictions are synthetic, right for 40 % of a slice and 90 % of
other rows, or those of an MLP trained on such rows, which counts only where it
is worse on a slice of validation rows. The best of five slices counts. A value
of a seed is a mean over its settings, and so intervals are over seeds, each
with a CLIP, settings and predictions of its own; there are 90 settings in all.

All embeddings are seen in the same few principal dimensions. With pixels in
128, the dimensions, and not what embeddings know, decided: densities of many
numbers outweigh labels and predictions.

Trials of one seed that is not below had set rows, rates and dimensions (32, and
25 components), and were in view when thresholds were written. There the
untrained network was as good as CLIP, inks and places being easy to see,
correlated slices were found by all that use errors and embeddings, and balls of
large losses, in the manner of the Spotlight, were better than Domino:
`over_next_best`, `correlated_over_confusion` and `clip_over_untrained` stand at
what the paper says or the plan was, and were expected to fail.

In the first record a seed had three settings of each kind, in the second six.
In both, methods that Domino is compared with ran on defaults. Now each has the
best of four settings, by precision at 10 on rare and noisy slices of two seeds
that are not below; thresholds are the same. Domino: 16 dimensions and 50
components (.78; .73 with 25, .67 with 25 in 32, as before). George-like: 16 and
25 (.60; .50 in 2, as before). Spotlight-like: 16 and balls of 1 % of the rows
or more (.90; .87 with 2 %, as before). The plain mixture and Domino with other
embeddings have Domino's. The second record had `over_plain` .36 +- .13,
`over_confusion` .25 +- .11 and `over_next_best` -.20 +- .10.

In both, noisy and correlated slices were found nearly always, and rare ones
seldom, which balls of large losses found more often. (A guess: the mixture
shares the errors outside of slices among few components, and a rare slice falls
into one of those.) `mnist` is the same on MNIST, with three settings of a kind.
"""

from ml_collections import config_dict
import numpy as np

from configs import domino as recipe
from configs import presets
from configs.parts import slice_study
from repjax import plots
from repjax import types

SEEDS = (0, 1, 2, 3, 4)

_SOUND = ('clip_accuracy', 'confusion_is_no_oracle')
CLAIMS = dict(
  over_plain=dict(
    says='rare and noisy slices, synthetic models: precision at 10, Domino '
    'minus the mixture without labels and predictions',
    paper='not among the methods compared (section 5.2)',
    at_least=0.15,
    needs=_SOUND,
  ),
  over_confusion=dict(
    says='the same: Domino minus cells of the confusion matrix',
    paper='above it: .639, of which the next best has less than half (section '
    '5.2)',
    at_least=0.15,
    needs=_SOUND,
  ),
  over_next_best=dict(
    says='the same: Domino minus the better of George-like and Spotlight-like',
    paper='+.33 (.639, 105 % above the next best, George)',
    at_least=0.0,
    needs=_SOUND,
  ),
  clip_accuracy=dict(
    kind='first',
    says='zero-shot accuracy of CLIP on test images, ten digits',
    paper='not of this paper',
    at_least=0.75,
  ),
  confusion_is_no_oracle=dict(
    kind='first',
    says='rare and noisy slices: precision at 10 of the confusion matrix',
    paper='not reported here',
    at_most=0.7,
  ),
  correlated_over_confusion=dict(
    says='correlated slices, synthetic models: Domino minus cells of the '
    'confusion matrix',
    paper='below 0: there the confusion matrix wins',
    at_most=0.0,
    needs=('clip_accuracy',),
  ),
  clip_over_pixels=dict(
    says="rare and noisy slices: Domino with CLIP's embeddings minus with "
    'pixels',
    paper='not reported (+.23 over an untrained network, section 5.1)',
    at_least=0.15,
    needs=_SOUND,
  ),
  clip_over_untrained=dict(
    says='the same: minus with those of the untrained network',
    paper='+.23 (.570 with CLIP, all settings of natural images)',
    at_least=0.15,
    needs=_SOUND,
  ),
  named=dict(
    says='rare and noisy slices: the planted word is one of the first three '
    'of twenty',
    paper='35 % first, 57 % in the first ten of 10,000 (rare slices, section '
    '5.3)',
    at_least=0.6,
    needs=_SOUND,
  ),
  # Asked of all settings before; of these alone since the record was in view,
  # which can only withdraw.
  models_fail=dict(
    kind='first',
    says='rare and noisy slices: part of the settings in which the trained '
    'model is worse there',
    paper='others were left out',
    at_least=0.3,
  ),
  trained_over_plain=dict(
    says='rare and noisy slices, trained models that fail there: Domino minus '
    'the mixture without labels and predictions',
    paper='figure not checked',
    at_least=0.0,
    needs=('clip_accuracy', 'models_fail'),
  ),
  trained_over_confusion=dict(
    says='the same: Domino minus cells of the confusion matrix',
    paper='figure not checked',
    at_least=0.0,
    needs=('clip_accuracy', 'models_fail'),
  ),
)

_STUDY = dict(
  paper=dict(
    study=dict(
      splits=dict(train='train[:50%]', validation='train[50%:]', test='test'),
      # Rows of each split that settings choose from, and rows of a setting.
      pool=12_000,
      rows=2000,
      settings=6,  # Of each kind, for each seed.
      vectorize=False,
      synthetic=dict(inside=0.4, outside=0.9),
      strengths=dict(rare=(0.04, 0.1), correlated=(0.2, 0.8), noisy=(0.1, 0.3)),
      classifier=dict(width=64, learning_rate=3e-3, batch_size=64, steps=200),
      num_words=3,
      # Of `slice_baselines.george` and `spotlight`.
      george=dict(num_components=25, pca_dim=2),
      spotlight=dict(min_weight=0.02, pca_dim=16),
    )
  ),
  small=dict(
    study=dict(
      vectorize=True,
      george=dict(pca_dim=16),
      spotlight=dict(min_weight=0.01),
    )
  ),
  mnist=dict(study=dict(settings=3)),
  smoke=dict(
    study=dict(
      pool=2400,
      rows=400,
      settings=1,
      classifier=dict(steps=4),
    )
  ),
)

_SYNTHETIC = (
  'Domino',
  'plain mixture',
  'confusion',
  'George-like',
  'Spotlight-like',
)
_TRAINED = ('Domino', 'plain mixture', 'confusion', 'Spotlight-like')
_KINDS = ('rare', 'correlated', 'noisy')


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Plants slices, looks for them in several ways, and names them."""
  pools = slice_study.pools(config, seeds)
  runs = [
    (pool, planted, seed)
    for pool, seed in zip(pools, seeds, strict=True)
    for planted in slice_study.plant(config, pool, seed)
  ]
  of_trained = slice_study.trained(config, runs)
  found: dict[str, list] = {}
  for i, (pool, planted, seed) in enumerate(runs):
    probs = slice_study.synthetic(config, planted, [seed, i])
    measured = slice_study.measure(
      config, pool, planted, probs, seed, _SYNTHETIC, embeddings=True
    )
    if slice_study.fails(planted, of_trained[i]):
      also = slice_study.measure(
        config, pool, planted, of_trained[i], seed, _TRAINED
      )
      measured.update({f'trained: {name}': x for name, x in also.items()})
    measured['trained models that fail'] = float(
      slice_study.fails(planted, of_trained[i])
    )
    for name, value in measured.items():
      found.setdefault((seed, planted.kind, name), []).append(value)
  names = sorted({name for _, _, name in found})

  def mean(name, *kinds):
    """Mean over all settings of some kinds, [S]; NaN where there are none."""
    return np.array(
      [
        np.mean(
          [x for kind in kinds for x in found.get((seed, kind, name), [])]
          or [np.nan]
        )
        for seed in seeds
      ]
    )

  hard = ('rare', 'noisy')
  domino, trained = mean('Domino', *hard), mean('trained: Domino', *hard)
  gain = lambda name: domino - mean(name, *hard)  # noqa: E731
  figure = {
    kind: {name: mean(name, kind) for name in _SYNTHETIC} for kind in _KINDS
  }
  scalars = {
    'over_plain': gain('plain mixture'),
    'over_confusion': gain('confusion'),
    'over_next_best': domino
    - np.maximum(mean('George-like', *hard), mean('Spotlight-like', *hard)),
    'correlated_over_confusion': mean('Domino', 'correlated')
    - mean('confusion', 'correlated'),
    'clip_over_untrained': gain('Domino, untrained'),
    'clip_over_pixels': gain('Domino, pixels'),
    'named': mean('named', *hard),
    'clip_accuracy': np.array([x.accuracy for x in pools]),
    'confusion_is_no_oracle': mean('confusion', *hard),
    'models_fail': mean('trained models that fail', *hard),
    'trained_over_plain': trained - mean('trained: plain mixture', *hard),
    'trained_over_confusion': trained - mean('trained: confusion', *hard),
    'trained_named': mean('trained: named', *hard),
    **{
      f'{name}, {kind}': mean(name, kind)
      for name in names
      for kind in _KINDS
      if np.isfinite(mean(name, kind)).all()
    },
  }
  pictures = {
    'precision': plots.bars(figure, ylabel='precision at 10'),
    'embeddings': plots.bars(
      {
        kind: {
          'CLIP': mean('Domino', kind),
          'untrained': mean('Domino, untrained', kind),
          'pixels': mean('Domino, pixels', kind),
        }
        for kind in _KINDS
      },
      ylabel="precision at 10 of Domino's slices",
    ),
  }
  for each in pictures.values():
    each.axes[0].set_ylim(0, 1.45)  # The legend stands above the bars.
  return types.Report(
    # A seed of which no trained model fails says nothing about those.
    scalars={name: x[np.isfinite(x)].tolist() for name, x in scalars.items()},
    arrays={},
    figures=pictures,
  )
