"""What the study of deployed policies does with agents, and what it tells."""

import functools
from typing import Any

import jax
import numpy as np

from configs.parts import control
from configs.parts import policies
from repjax import trees
from repjax import types
from repjax.data.environments import environment
from repjax.data.environments import point_mass
from repjax.methods import behaviour_cloning
from repjax.protocols import acted
from repjax.protocols import deployment
from repjax.protocols import side_by_side


def trained(config: Any, seeds) -> types.PyTree:
  """Parameters of one agent a seed, cloned or learned, with a leading axis."""
  if config.trained_by == 'sac':
    return trees.stack([learned(config, seed) for seed in seeds])
  train, test = (control.rows(config, x) for x in ('train', 'validation'))
  cloned = side_by_side.train(
    'cloning',
    policies.cloning(config),
    {},
    test.columns(),
    seeds=seeds,
    batch_size=config.batch_size,
    steps=config.min_steps,
    shared=train.columns(),
    score=behaviour_cloning.error,
  )
  return cloned.states.params


def learned(config: Any, seed: int) -> types.PyTree:
  """Parameters of an agent that learned by acting."""
  config = config.copy_and_resolve_references()
  config.seed = seed
  made = acted.train(
    'soft actor-critic',
    policies.acting(config),
    seed=seed,
    every=config.run.eval_every,
  )
  return made.state.params


class Deployer:
  """Deploys all agents in all looks of the point mass."""

  def __init__(self, config: Any, params: types.PyTree, looks: Any):
    """Compiles nothing yet.

    Args:
      config: With `study.episodes` a look.
      params: Of S agents, with a leading axis.
      looks: Name -> look.
    """
    self._config, self._params, self._looks = config, params, looks
    self.env = control.world(config)
    self._model = control.network(config)

  def __call__(self, optimizer: str, *, looks: Any = None, **settings: Any):
    """Episodes of all agents; see `deployment.everywhere`."""
    return deployment.everywhere(
      self.env,
      self._model,
      self._adapter(optimizer),
      self._params,
      point_mass.stack_looks(looks or self._looks),
      times=self._config.study.episodes,
      **settings,
    )

  def returns(self, optimizer: str, *, episode: int = 0, **settings: Any):
    """Mean return of each agent in each look, [S, L]."""
    return self.mean_return(self(optimizer, **settings), episode=episode)

  def mean_return(self, deployed: Any, *, episode: int = 0) -> np.ndarray:
    """That of one of the episodes that agents met one after the other."""
    total = deployed.reward[:, episode].sum(1)  # [S, L * times]
    times = self._config.study.episodes
    return total.reshape(len(total), -1, times).mean(-1)

  @functools.cache  # noqa: B019 - as long as the study runs.
  def _adapter(self, optimizer):
    config = self._config.copy_and_resolve_references()
    config.pad.optimizer = optimizer
    return control.adapter(config)


def of_teacher(config: Any) -> float:
  """Mean return of the teacher in the world of training."""
  env = control.world(config)
  looks = environment.repeat(point_mass.make_look(), config.study.episodes)
  walked = jax.jit(
    lambda rng: environment.walk_of_states(
      env,
      lambda states, seen, keys: jax.vmap(point_mass.expert)(states),
      looks,
      rng,
    )
  )(jax.random.key(0))
  return float(walked.reward.sum(0).mean())


def over(returns: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Mean over chosen looks, [S, L], [S, L] -> [S]."""
  return (returns * chosen).sum(1) / np.maximum(chosen.sum(1), 1)
