"""Parts of the study of H-divergence: tests of images, and places that change.

Zhao et al., ICLR 2022. https://openreview.net/forum?id=KB5onONJIAU
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics

from repjax import plots
from repjax.analysis import decision_losses
from repjax.analysis import fitted_losses
from repjax.analysis import h_divergence
from repjax.analysis import mmd
from repjax.analysis import rejections
from repjax.analysis import two_sample
from repjax.data.reading import source
from repjax.data.sets import climates
from repjax.data.sets import gaussian_fakes
from repjax.data.sets import two_samples
from repjax.models import vae

LEVEL = 0.05


def power(
  config,
  seeds,
  draw: rejections.Draw,
  tests: Mapping[str, rejections.Choose],
  *,
  repetitions: int,
  permutations: int,
  num_rows: int,
) -> dict[str, np.ndarray]:
  """Share of tests that reject: name -> one a seed."""
  keys = [jax.random.split(jax.random.key(x), repetitions) for x in seeds]
  p = rejections.p_values(
    draw,
    tests,
    rngs=jnp.concatenate(keys),
    num_rows=num_rows,
    num_permutations=permutations,
    chunk=config.study.chunk,
  )
  return {
    name: np.asarray(
      [
        rejections.summary(x, alpha=LEVEL, num_permutations=permutations).rate
        for x in found.reshape(len(seeds), -1)
      ]
    )
    for name, found in p.items()
  }


def fixed(statistic: two_sample.Statistic) -> rejections.Choose:
  """Chooses nothing."""
  return lambda x, y: statistic


def read_images(config) -> tuple[np.ndarray, np.ndarray]:
  """Real images and as many fakes, in [0, 1]."""
  real, seen = (
    source.load(config.data.name, split, data_dir=config.data.dir)
    for split in (config.data.real_split, config.data.train_split)
  )
  fake = gaussian_fakes.make(seen, len(real), seed=config.seed)
  shown, fakes = (
    x.read(np.arange(len(x)))['image'].astype(np.float32) / 255
    for x in (real, fake)
  )
  return shown, fakes


def images(config, seeds, model: vae.Vae, shown, fakes):
  """Scalars and figures of real images against fakes."""
  study, data = config.study, config.data
  loss = fitted_losses.vae(
    model,
    rng=jax.random.key(config.seed),
    steps=study.image_steps,
    learning_rate=config.tx.learning_rate,
  )
  tests = {
    '-ELBO': fixed(h_divergence.statistic(loss, phi='min')),
    'MMD (median)': fixed(mmd.statistic('median')),
  }
  draws = {
    'real and fake': two_samples.subsets(shown, fakes),
    'real alone': two_samples.disjoint(shown),
  }
  powers = {
    what: power(
      config,
      seeds,
      draw,
      tests,
      repetitions=study.image_repetitions,
      permutations=study.image_permutations,
      num_rows=data.num_rows,
    )
    for what, draw in draws.items()
  }
  apart = powers['real and fake']
  alone = draws['real alone']
  fits = jax.jit(
    lambda keys: jax.lax.map(
      lambda key: _nats_gained(loss, alone(key, data.num_rows)[0]), keys
    )
  )(jnp.stack([jax.random.key(x) for x in seeds]))
  scalars = {
    'image_gain': apart['-ELBO'] - apart['MMD (median)'],
    'vae_fits': np.asarray(fits),
    **{
      f'images: {name}, {what}': x
      for what, by_name in powers.items()
      for name, x in by_name.items()
    },
  }
  return scalars, {
    'images': plots.bars(powers, ylabel='rejections at level .05')
  }


def _nats_gained(loss, image):
  """What independent pixels of the best brightness lose more, in nats."""
  ones = jnp.ones(len(image))
  pixels = image.reshape(len(image), -1).mean(0)
  apart = -sum(
    jax.scipy.special.xlogy(p, p).sum() for p in (pixels, 1 - pixels)
  )
  return apart - loss.entropy(loss.prepare(image), ones)


# Decision -> what each action costs, their names, and the least regret that
# counts: 2 % of a good harvest, and a fifth of a unit of capacity.
_DECISIONS = {
  'crop': (climates.crop_costs, tuple(climates.CROPS), 0.02),
  'heating': (climates.heating_costs, climates.CAPACITIES, 0.2),
}
_MANY_YEARS = 4000  # Enough for what is true.


def climate(config, seeds):
  """Scalars and figures: at which places should a decision be another one?"""
  keys = jnp.stack([jax.random.key(x) for x in seeds])
  measured = jax.jit(
    lambda x: jax.lax.map(lambda key: _places(config.study, key), x)
  )(keys)
  found = [
    _scores(jax.tree.map(lambda x, i=i: np.asarray(x[i]), measured), config)
    for i in range(len(seeds))
  ]
  scores = {
    decision: {
      name: np.asarray([x[decision][name] for x in found])
      for name in found[0][decision]
    }
    for decision in _DECISIONS
  }
  windier = {
    name: np.asarray([x['windier'][name] for x in found])
    for name in ('MMD', 'crop')
  }
  scalars = {
    'crop_auroc_gain': scores['crop']['crop'] - scores['crop']['MMD'],
    'heating_auroc_gain': scores['heating']['heating']
    - scores['heating']['MMD'],
    'other_decision': scores['crop']['crop'] - scores['crop']['heating'],
    'windier': windier['MMD'] - windier['crop'],
    **{
      f'climate: places for {decision}, AUROC by {name}': x
      for decision, by_name in scores.items()
      for name, x in by_name.items()
    },
    **{
      f'climate: windier, rejections by {name}': x
      for name, x in windier.items()
    },
  }
  names = {'MMD': 'MMD', 'crop': 'H-JS of crop', 'heating': 'H-JS of heating'}
  bars = {
    f'bad {decision}': {names[name]: x for name, x in by_name.items()}
    for decision, by_name in scores.items()
  }
  return scalars, {'climate': plots.bars(bars, ylabel='AUROC over places')}


def _places(study, rng):
  """Divergences and regrets at one draw of places, [S] each."""
  keys = jax.random.split(rng, 6)
  means = climates.means(keys[0], study.places)
  before, after = (
    climates.years(key, x, study.place_years)
    for key, x in zip(keys[1:3], (means.before, means.after), strict=True)
  )
  statistics = {
    name: h_divergence.statistic(
      decision_losses.actions(name, costs, actions), phi='js'
    )
    for name, (costs, actions, _) in _DECISIONS.items()
  }
  rows = {name: (before, after) for name in statistics}
  # MMD knows no decision, but at least the spread of all three.
  statistics['MMD'] = mmd.statistic('median')
  rows['MMD'] = tuple(climates.standardised(x) for x in (before, after))
  tests = jax.random.split(keys[3], study.places)

  def test(statistic):
    def one(args):
      value, permuted = two_sample.values(
        statistic, *args, num_permutations=study.permutations
      )
      return value, two_sample.num_larger(value, permuted)

    return one

  return {
    'change': means.change,
    'tests': {
      name: jax.lax.map(test(statistic), (*rows[name], tests))
      for name, statistic in statistics.items()
    },
    'regrets': {
      name: _regret(costs, means, keys[4:])
      for name, (costs, _, _) in _DECISIONS.items()
    },
  }


def _scores(places, config):
  """AUROC of each divergence for each decision, and rejections."""
  result = {
    decision: {
      name: float(
        metrics.roc_auc_score(places['regrets'][decision] > threshold, value)
      )
      for name, (value, _) in places['tests'].items()
    }
    for decision, (_, _, threshold) in _DECISIONS.items()
  }
  windier = places['change'] == climates.CHANGES.index('windier')
  for name, (_, larger) in places['tests'].items():
    p = two_sample.p_value(larger[windier], config.study.permutations)
    result.setdefault('windier', {})[name] = float((p <= LEVEL).mean())
  return result


def _regret(costs, means, keys):
  """What the best action of before costs after, over the best one, [S]."""

  def average(args):
    key, mean = args
    return costs(climates.years(key, mean[None], _MANY_YEARS)[0]).mean(0)

  old, new = (
    jax.lax.map(average, (jax.random.split(key, len(mean)), mean))
    for key, mean in zip(keys, (means.before, means.after), strict=True)
  )
  kept = jnp.take_along_axis(new, old.argmin(-1)[:, None], -1)[:, 0]
  return kept - new.min(-1)
