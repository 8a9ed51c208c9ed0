"""What Robbing the Fed claims, measured: images read from federated updates.

Todo:
"""

import functools

from ml_collections import config_dict
import numpy as np

from configs import imprint
from configs import presets
from configs.parts import imprint_cost
from configs.parts import imprint_study
from repjax import plots
from repjax import types
from repjax.attacks import imprint_bins
from repjax.attacks import imprint_figures
from repjax.attacks import imprint_trials as trials
from repjax.experiments import of_images
from repjax.protocols import compression
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

CLAIMS = dict(
  x=dict(says='x', paper='not reported', at_least=0.0),
)

_STUDY = dict(
  paper=dict(
    study=dict(
      # Rows of a user, at each number of bins.
      num_rows=64,
      bins=(64, 128, 256, 512),
      # Users of a round; of the most, also `wide` times as many bins, and
      # targets of the one-shot attack a seed.
      users=(1, 4, 16),
      wide=16,
      num_targets=20,
      # FedAvg: local steps, and their rates.
      steps=8,
      local_rates=(0.001, 10.0),
      # Sent of an update: the largest entries, or whole multiples.
      share=0.05,
      levels=127,
      # In units of the clip norm, beside what epsilon asks for.
      noises=(1e-4, 1e-2),
      dp=dict(epsilon=8.0, delta=0.0, clip_norm=1.0, epochs=20.0),
      rates=(0.003, 0.01, 0.03, 0.1, 0.3),
    )
  ),
  smoke=dict(
    study=dict(
      num_rows=8,
      bins=(16, 32),
      users=(1, 2),
      wide=2,
      num_targets=2,
      steps=2,
      local_rates=(10.0,),
      noises=(1e-2,),
      dp=dict(epochs=0.2),
      rates=(0.1,),
    )
  ),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, imprint.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Attacks rounds of users, with defences and without."""
  data = of_images.read(config)
  rows, test, public = (
    side_by_side.rows(x, data.recipe.evaluate)
    for x in (
      data.train,
      of_images.load(config, config.data.eval_splits[0]),
      of_images.load(config, config.imprint.bins),
    )
  )
  bench = imprint_study.Bench(config, data, rows, seeds)
  scalars, figures = {}, {}
  for part in (_bins, _users, _averaging, _defences):
    found, drawn = part(bench)
    scalars.update(found)
    figures.update(drawn)
  learned = imprint_cost.learned(
    config, rows, public, test, data.train.num_classes, seeds
  )
  flagged, alarms = imprint_study.audited(bench, learned.states)
  return types.Report(
    scalars={
      **scalars,
      'plain_good': learned.accuracy['plain'],
      'noise_cost': learned.accuracy['plain'] - learned.accuracy['private'],
      'flagged': [flagged],
      'false_alarms': [alarms],
      **{f'{name}: rate': [x] for name, x in learned.rate.items()},
      **{f'{name}: test accuracy': x for name, x in learned.accuracy.items()},
    },
    arrays={},
    figures=figures,
  )


def _bins(bench):
  """Recovery against the number of bins, and against what is expected."""
  num_rows, most = bench.config.study.num_rows, bench.config.imprint.num_bins
  scalars, curves = {}, {}
  gaps, tops = [], []
  for num_bins in bench.config.study.bins:
    columns = bench.columns(num_rows)
    traps = bench.traps(num_bins)
    seen = bench.seen(traps, columns)
    scored, without = (
      bench.scored(seen, traps, columns['image'], top=top)
      for top in (True, False)
    )
    share = imprint_study.shares(scored, 60.0)
    alone = imprint_study.singles(scored)
    gaps.append(abs(share - alone))
    tops.append(share - imprint_study.shares(without, 60.0))
    rows = {
      'recovered': share,
      'alone in their bin': alone,
      'independent': imprint_bins.expected(num_rows, num_bins) / num_rows,
      'published formula': imprint_bins.published(num_rows, num_bins)
      / num_rows,
    }
    for name, x in rows.items():
      scalars[f'{num_bins} bins: {name}'] = np.broadcast_to(x, share.shape)
      curves.setdefault(name, []).append(scalars[f'{num_bins} bins: {name}'])
    scalars[f'{num_bins} bins: ssim'] = [x.ssim for x in scored]
    scalars[f'{num_bins} bins: median decibels'] = [
      np.median(x.psnr[x.psnr > 60]) if x.above(60) else 0.0 for x in scored
    ]
    if num_bins == most:
      scalars['over_guarantee'] = share - rows['published formula']
      scalars['near_independent'] = share - rows['independent']
  scalars['exact'] = [np.max(gaps)]
  scalars['top_bin'] = np.mean(tops, 0)
  at = np.asarray(bench.config.study.bins)
  drawn = plots.seed_curves(
    {name: (at, np.stack(x)) for name, x in curves.items()},
    xlabel='bins',
    ylabel=f'share of {num_rows} images',
  )
  return scalars, {'bins': drawn}


def _users(bench):
  """Recovery from sums over users, and one wanted image out of them."""
  study, num_bins = bench.config.study, bench.config.imprint.num_bins
  scalars, lines = {}, []
  for users in study.users:
    scored = bench.read(num_bins, trials.Round(users=users))
    lines.append(imprint_study.shares(scored, 60.0))
    scalars[f'{users} users: recovered'] = lines[-1]
  total = users * study.num_rows
  wide = bench.read(num_bins * study.wide, trials.Round(users=users))
  one_shot = imprint_study.one_shot(bench, total)
  scalars |= {
    'many_users': lines[-1],
    'many_users_wide': imprint_study.shares(wide, 60.0),
    'one_shot': one_shot - imprint_bins.published_one_shot(total, total),
    'one-shot: found': one_shot,
    'one-shot: independent': [imprint_bins.one_shot(total, total)],
  }
  return scalars, {}


def _averaging(bench):
  """FedAvg, in float64 as in the theory and in what is sent in practice."""
  found = imprint_study.averaging(bench)
  rate = bench.config.study.local_rates[-1]
  scalars = {
    f'FedAvg, {kind}, rate {x:g}: recovered': share
    for (kind, x), share in found.items()
  }
  sparse, cumulative = found['sparse', rate], found['cumulative', rate]
  return {'sparse_gain': sparse - cumulative, **scalars}, {}


def _defences(bench):
  """Clipping, noise and compression on the same private images."""
  study, num_bins = bench.config.study, bench.config.imprint.num_bins
  plan = imprint_cost.plan_of(bench.config, len(bench.data.train))
  private = f'epsilon {study.dp.epsilon:g}'
  own = functools.partial(plan.with_keys, runs=bench.seeds)
  noises = {
    'clipping': 0.0,
    **{f'noise {x:g}': x for x in study.noises},
    private: plan.noise_multiplier,
  }
  shorter = {
    'largest entries': lambda x, rng: compression.largest(x, share=study.share),
    'rounded': functools.partial(compression.rounded, levels=study.levels),
  }
  users = study.users[-1]
  rounds = {'nothing': trials.Round()}
  for name, noise in noises.items():
    link = plan._replace(noise_multiplier=noise, method='vmap').link()
    rounds[name] = trials.Round(private=link, own=own)
    if name in ('clipping', private):
      # The same link of a server's chain: users in the place of rows.
      by_user = trials.Round(users=users, server=link, own=own)
      rounds[f'of users: {name}'] = by_user
  for name, compress in shorter.items():
    rounds[name] = trials.Round(compress=compress)
  scored = {
    name: bench.read(
      num_bins,
      protocol,
      num_rows=study.num_rows // protocol.users,
      order='weight' if 'noise' in name or 'epsilon' in name else 'bias',
    )
    for name, protocol in rounds.items()
  }
  seen = {x: imprint_study.shares(y, 25.0) for x, y in scored.items()}
  exact = {x: imprint_study.shares(y, 60.0) for x, y in scored.items()}
  images = bench.columns(study.num_rows)['image'][0]
  mean, std = (np.asarray(bench.config.augment[x]) for x in ('mean', 'std'))
  shown = ('nothing', 'clipping', *list(noises)[-3:])
  scalars = {
    'clipping_alone': exact['nothing'] - exact['clipping'],
    'noise_stops': seen[private],
    'user_noise_stops': seen[f'of users: {private}'],
    'noise multiplier': [plan.noise_multiplier],
    **{f'{x}: above 25 dB': y for x, y in seen.items()},
    **{f'{x}: above 60 dB': y for x, y in exact.items()},
  }
  return scalars, {
    'images': imprint_figures.beside(
      images * std + mean,
      {x: (scored[x][0].images, scored[x][0].psnr) for x in shown},
    ),
    'defences': plots.bars(
      {
        name.replace('of users: ', 'users,\n'): {'above 25 dB': x}
        for name, x in seen.items()
      },
      ylabel=f'share of {study.num_rows} images',
    ),
  }
