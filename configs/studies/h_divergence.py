"""What the H-divergence claims, measured: tests that see more, and decisions.

The paper reports more powerful tests of two samples than those by MMD, with
kernel densities and mixtures on synthetic sets and with autoencoders on images,
and divergences that tell which change of climate matters to whom. Here, over
data sets that are drawn anew for every test:

- *blobs*: nine blobs, round or slanted (the paper's numbers). Kernel densities
  with the bandwidth that is likeliest on another draw, as in the paper; MMD
  with the median distance, with the bandwidth of the best ratio of signal and
  noise on another draw, and with the best of six in hindsight.
- *images*: digits against fakes that have the mean and the covariance of each
  class (the paper has MNIST and a DCGAN), autoencoders of this recipe.
- *climate*: places where a change made it warmer, drier or windier; decisions
  on a crop and on heating (a generator of our own, `data.sets.climates`, in
  place of the paper's weather records). Does a divergence tell at which places
  yesterday's decision is now a bad one?

The paper's estimate of the mixture has as many rows as either sample; beside it
stands the pool of both, whose entropy is the same for all permutations and so
adds no noise.

With halves of both samples, as many rows as one (the paper draws each by a
coin), H-Min is level with the best MMD, and far above H-JS;
with the pool both forms are level with each other and far above MMD. The tests
by autoencoders nearly always see the fakes, MMD seldom. A decision's own
divergence finds the places where it is a bad one now, MMD hardly any, which
reacts to wind that nobody asked about; that is what the loss knows and MMD does
not.

Trials with other seeds had shown the figures of all parts when thresholds were
written. The power with the pool had come as a surprise: against the best MMD a
tie was expected. Of images, two samples of real ones are compared 8 times a
seed, and .1 +- .2 of these tests reject: their level is not settled by it.
"""

import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from configs import h_divergence as recipe
from configs import presets
from configs.parts import h_divergence_study as parts
from repjax import plots
from repjax import types
from repjax.analysis import decision_losses
from repjax.analysis import h_divergence
from repjax.analysis import mmd
from repjax.analysis import two_sample
from repjax.data.sets import two_samples

SEEDS = (0, 1, 2, 3, 4)

CLAIMS = dict(
  gain_over_untuned=dict(
    says='blobs, 180 rows: power at level .05, H-Min (pool) minus MMD with the '
    'median distance',
    paper='more power than MMD; figure not checked',
    at_least=0.2,
    needs=('type_one',),
  ),
  # That power needs it came later, when it was known.
  type_one=dict(
    kind='first',
    says='blobs, 180 rows of one distribution each: rejections by H-Min (pool)',
    paper='at the level (.05); figure not checked',
    at_most=0.08,
  ),
  gain_over_js=dict(
    says='blobs, 180 rows: power, H-Min minus H-JS, both with halves of both '
    'samples (as many rows as a sample)',
    paper="H-Min is what the paper takes for blobs (authors' repository; no "
    'figure)',
    at_least=0.1,
  ),
  gain_over_js_pooled=dict(
    says='the same, both with the pool',
    paper='not reported',
  ),
  pool_gain=dict(
    says='blobs, 180 rows: power of H-Min, mixture by the pool minus by as '
    'many rows as a sample',
    paper='not reported',
    at_least=0.1,
  ),
  gain_over_tuned=dict(
    says='blobs, 180 rows: power, H-Min (pool) minus MMD at the best bandwidth '
    'in hindsight',
    paper='not reported',
    at_least=0.0,
    needs=('type_one',),
  ),
  paper_form_over_tuned=dict(
    says='blobs, 180 rows: power, H-Min with halves of both samples minus MMD '
    'at the best bandwidth in hindsight',
    paper='not reported',
  ),
  vae_fits=dict(
    kind='first',
    says='images: nats an image, best pixels that are independent minus -ELBO',
    paper='not reported',
    at_least=0.0,
  ),
  image_gain=dict(
    says='images, 100 real and 100 fake: power, H-Min of -ELBO (pool) minus '
    'MMD with the median distance',
    paper='more power than MMD with a deep kernel on MNIST; figure not checked',
    at_least=0.2,
    needs=('vae_fits',),
  ),
  crop_auroc_gain=dict(
    says='climate, 50 years: places where the crop of before is now a bad one, '
    'AUROC by H-JS of that decision minus by MMD',
    paper='maps of weather stations, no figure',
    at_least=0.1,
  ),
  heating_auroc_gain=dict(
    says='the same of heating: AUROC by H-JS of that decision minus by MMD',
    paper='maps of weather stations, no figure',
    at_least=0.1,
  ),
  other_decision=dict(
    says='climate: the same places for the crop, AUROC by H-JS of the crop '
    'minus by H-JS of heating',
    paper='maps of two activities differ, no figure',
    at_least=0.1,
  ),
  windier=dict(
    says='climate, places where only the wind has changed: rejections by MMD '
    'minus by H-JS of the crop',
    paper='not reported',
    at_least=0.2,
  ),
)

_STUDY = dict(
  paper=dict(
    study=dict(
      blob_rows=(90, 180, 360, 450, 630, 720, 810, 900),
      compared_rows=180,
      blob_repetitions=100,
      null_repetitions=100,
      permutations=100,
      image_repetitions=100,
      image_permutations=100,
      image_steps=1000,
      chunk=20,
      places=300,
      place_years=50,
    )
  ),
  small=dict(
    study=dict(
      blob_rows=(45, 90, 180),
      blob_repetitions=60,
      null_repetitions=200,
      permutations=99,
      image_repetitions=8,
      image_permutations=19,
      image_steps=200,
    )
  ),
  smoke=dict(
    study=dict(
      blob_rows=(20,),
      compared_rows=20,
      blob_repetitions=4,
      null_repetitions=4,
      permutations=19,
      image_repetitions=1,
      image_steps=3,
      places=40,
      place_years=10,
    )
  ),
)

_MMD_GRID = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
_GRID = jnp.linspace(0.01, 1.0, 30)  # That of the authors' code.


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Tests drawn anew, and places whose changes matter or do not."""
  # Read first: what is missing is to be said before anything is computed.
  pictures = parts.read_images(config)
  found = (
    _blobs(config, seeds),
    parts.images(config, seeds, recipe.network(config), *pictures),
    parts.climate(config, seeds),
  )
  return types.Report(
    scalars={k: x for scalars, _ in found for k, x in scalars.items()},
    arrays={},
    figures={k: x for _, figures in found for k, x in figures.items()},
  )


def _kde(phi, mixture):
  def choose(x, y):
    # One bandwidth for all three terms, chosen on rows that are not tested.
    rows = two_sample.pool(x, y)
    loss = decision_losses.kde(decision_losses.best_bandwidth(rows, _GRID))
    return h_divergence.statistic(loss, phi=phi, mixture=mixture)

  return choose


def _tuned(x, y):
  return mmd.statistic(mmd.best_bandwidth(x, y, bandwidths=_GRID))


_TESTS = {
  'H-Min (pool)': _kde('min', 'pooled'),
  'H-JS (pool)': _kde('js', 'pooled'),
  'H-Min': _kde('min', 'halves'),
  'H-JS': _kde('js', 'halves'),
  'MMD (median)': parts.fixed(mmd.statistic('median')),
  'MMD (chosen)': _tuned,
}


def _blobs(config, seeds):
  study, rows = config.study, config.study.compared_rows

  def power(tests, num_rows, draw=two_samples.blobs, repetitions=None):
    return parts.power(
      config,
      seeds,
      draw,
      tests,
      repetitions=repetitions or study.blob_repetitions,
      permutations=study.permutations,
      num_rows=num_rows,
    )

  grid = {f'MMD ({h})': parts.fixed(mmd.statistic(h)) for h in _MMD_GRID}
  at = {
    n: power({**_TESTS, **grid} if n == rows else _TESTS, n)
    for n in study.blob_rows
  }
  powers = {name: at[rows][name] for name in _TESTS}
  hindsight = max((at[rows][h] for h in grid), key=lambda x: x.mean())
  powers['MMD (best in hindsight)'] = hindsight
  null = power(
    _TESTS, rows, two_samples.same(two_samples.blobs), study.null_repetitions
  )
  pooled, own = powers['H-Min (pool)'], powers['H-Min']
  scalars = {
    'gain_over_untuned': pooled - powers['MMD (median)'],
    'type_one': null['H-Min (pool)'],
    'gain_over_js': own - powers['H-JS'],
    'gain_over_js_pooled': pooled - powers['H-JS (pool)'],
    'pool_gain': pooled - own,
    'gain_over_tuned': pooled - hindsight,
    'paper_form_over_tuned': own - hindsight,
    **{f'blobs: {name}': x for name, x in powers.items()},
    **{f'blobs: {name}, of one distribution': x for name, x in null.items()},
  }
  curves = {
    name: (
      np.asarray(study.blob_rows),
      np.stack([x[name] for x in at.values()]),
    )
    for name in _TESTS
  }
  figure = plots.seed_curves(
    curves, xlabel='rows of each sample', ylabel='power at level .05'
  )
  return scalars, {'blobs': figure}
