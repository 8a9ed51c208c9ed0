"""What stops an imprint: clipping, noise over rows and users, compression.

Fowl et al., ICLR 2022. https://arxiv.org/abs/2110.13057
"""

import functools
from typing import Any

import numpy as np

from configs.parts import imprint_cost
from configs.parts import imprint_study
from repjax import plots
from repjax.attacks import imprint_figures
from repjax.attacks import imprint_trials as trials
from repjax.protocols import compression


def measure(
  bench: imprint_study.Bench,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of all of these, on the same private images."""
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
    for kind in ('cumulative', 'sparse'):
      rounds[f'{kind}: {name}'] = trials.Round(compress=compress)
  scored = {
    name: bench.read(
      num_bins,
      protocol,
      num_rows=study.num_rows // protocol.users,
      kind='sparse' if name.startswith('sparse') else 'cumulative',
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
    'undefended': seen['nothing'],
    'undefended_users': seen['of users: clipping'],
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
        name.replace(': ', ':\n'): {'above 25 dB': x}
        for name, x in seen.items()
      },
      ylabel=f'share of {study.num_rows} images',
    ),
  }
