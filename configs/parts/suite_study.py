"""PAD's study in the DeepMind Control suite, as the authors run it."""

from typing import Any

from absl import logging
import numpy as np

from configs.parts import control
from configs.parts import deployed
from repjax import plots
from repjax import types
from repjax.data.environments import videos
from repjax.methods import squashed_policy
from repjax.protocols import deployment

_TRAINING = 'training'
_FRAMES = 250  # Of a video that is made.


def run(config: Any, seeds) -> types.Report:
  """Trains an agent a seed; deploys each with and without adaptation.

  Args:
    config: With the rate of the adaptation (tx.learning_rate, as in training),
      study.suite_looks, suite_episodes and video (a folder of pictures, or ''
      for waves).
    seeds: Of agents.
  """
  looks = (_TRAINING, *config.study.suite_looks)
  worlds = {look: _world(config, look) for look in looks}
  dim = worlds[_TRAINING].action_dim
  policy = squashed_policy.exploiting(
    control.network(config, action_dim=dim), view=control.view(config)
  )
  adapter = control.adapter(config, action_dim=dim)
  rates = {'no adaptation': 0.0, 'adapting': config.tx.learning_rate}
  returns = {name: np.zeros((len(seeds), len(looks))) for name in rates}
  for i, seed in enumerate(seeds):
    params = deployed.learned(config, seed)
    for j, (look, world) in enumerate(worlds.items()):
      for name, rate in rates.items():
        told = deployment.in_simulator(
          world,
          policy,
          adapter,
          params,
          rate=rate,
          episodes=config.study.suite_episodes,
          seed=seed,
        )
        returns[name][i, j] = told.reward.sum(1).mean()
        logging.info(
          'seed %d, %s, %s: return %.1f', seed, look, name, returns[name][i, j]
        )
  none, adapting = returns.values()
  fails = none < config.study.fails_below * none[:, :1]
  before = deployed.over(none, fails)
  gain = deployed.over(adapting, fails) - before
  return types.Report(
    scalars={
      'failing': fails[:, 1:].mean(1),
      'gain': gain / max(before.mean(), 1e-9),
      'cost': 1 - adapting[:, 0] / none[:, 0],
      **{
        f'{name}, return in {look}': x[:, j]
        for name, x in returns.items()
        for j, look in enumerate(looks)
      },
    },
    arrays=returns,
    figures={
      'returns': plots.bars(
        {
          look: {name: x[:, j] for name, x in returns.items()}
          for j, look in enumerate(looks)
        },
        ylabel=f'return of an episode of {config.data.name}',
      )
    },
  )


def _world(config, look):
  video = ()
  if look == 'video':
    size = config.world.size
    video = (
      videos.read_video(config.study.video, size=size)
      if config.study.video
      else videos.waves(size=size, num=_FRAMES, seed=config.seed)
    )
  return control.worlds(config, column='image', look=look, video=video)
