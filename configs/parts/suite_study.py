"""PAD's study in the DeepMind Control suite, as the authors run it.

Agents take hours. So they may be runs that were trained, stopped and resumed
before, by `launch.train --config.seed=5 --workdir=runs/walker/5` and so on for
all seeds of the study: `launch.reproduce --papers=pad --preset=paper
--data_dir=runs/walker` deploys those.
"""

from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from configs.parts import control
from configs.parts import deployed
from repjax import files
from repjax import plots
from repjax import start
from repjax import trees
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
      for waves), and data.dir, '' or a folder with a run a seed.
    seeds: Of agents.

  Raises:
    InputError: If there is no run of a seed, or of another agent.
  """
  looks = (_TRAINING, *config.study.suite_looks)
  worlds = {look: _world(config, look) for look in looks}
  dim = worlds[_TRAINING].action_dim
  model, view = control.network(config, action_dim=dim), control.view(config)
  policy = squashed_policy.exploiting(model, view=view)
  seen = view(jnp.asarray(worlds[_TRAINING].first(0, 0)[None]))
  adapter = control.adapter(config, action_dim=dim)
  rates = {'no adaptation': 0.0, 'adapting': config.tx.learning_rate}
  returns = {name: np.zeros((len(seeds), len(looks))) for name in rates}
  for i, seed in enumerate(seeds):
    params = _agent(config, model, seen, dim, seed)
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
  # A reward of the suite is 1 at the most.
  most = config.world.num_steps * config.world.action_repeat
  return types.Report(
    scalars={
      'suite_learned': none[:, 0] / most,
      'failing': fails[:, 1:].mean(1),
      'suite_gain': gain / max(before.mean(), 1e-9),
      'suite_cost': 1 - adapting[:, 0] / none[:, 0],
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


def _agent(config, model, seen, action_dim, seed):
  """Parameters of an agent that is trained now, or was before."""
  if not config.data.dir:
    return deployed.learned(config, seed)
  folder = files.path_of(config.data.dir) / str(seed)
  params = start.from_run(folder, field='config.data.dir')['params']
  task = files.read_json(folder / 'config.json', 'config')['config']['data']
  if task['name'] != config.data.name:
    raise types.InputError(
      f'{folder} was trained on {task["name"]}, not on {config.data.name}: '
      'give --data_dir with runs of that task, or another --preset.'
    )
  action = jnp.zeros((1, action_dim))
  wanted = jax.eval_shape(model.init, jax.random.key(0), seen, action)
  trees.check_leaves(
    trees.flatten(params),
    trees.flatten(wanted['params']),
    what=f'The parameters in {folder}',
  )
  return params


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
