"""Trains agents that act, one after the other, and follows what they earn.

For studies: what `run.fit` does, without a work directory.
"""

from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from repjax import loop
from repjax import types


class Trained(NamedTuple):
  """One agent.

  Attributes:
    state: After the last update, on the host.
    steps: Updates at which it was judged, [T].
    measured: Name -> what the experiment's companion measured then, [T].
    sums: Name -> mean over the last stretch.
  """

  state: types.TrainState
  steps: np.ndarray
  measured: dict[str, np.ndarray]
  sums: dict[str, float]


def train(
  name: str, experiment: types.Experiment, *, seed: int, every: int
) -> Trained:
  """Trains an experiment that has a companion, as `run.fit` would.

  Args:
    name: For the progress lines.
    experiment: Fresh; what it has done so far is lost.
    seed: Of initialization and of the method's draws.
    every: Updates between two measurements.

  Raises:
    NonFiniteError: If a mean is not finite.
  """
  companion = experiment.companion
  companion.begin(None, 0)
  steps, measured, means = [], [], []

  def act(step, state, sums):
    del sums
    companion.follow(step, state)

  def judge(step, state, sums):
    del sums
    if step % every == 0 or step == experiment.steps:
      steps.append(step)
      measured.append({k: x(state) for k, x in companion.measures.items()})
      told = '  '.join(f'{k} {x:.4g}' for k, x in measured[-1].items())
      logging.info(
        '%s, seed %d: step %s/%s  %s',
        name,
        seed,
        f'{step:,}',
        f'{experiment.steps:,}',
        told,
      )

  progress = loop.Progress(
    every=every,
    steps=experiment.steps,
    batch_size=round(experiment.train.expected_rows),
    write=lambda step, values: means.append(dict(values)),
  )
  state = loop.fit(
    experiment.method,
    experiment.train.iterate,
    steps=experiment.steps,
    seed=seed,
    hooks=(progress, act, judge),
  )
  return Trained(
    jax.device_get(state),
    np.asarray(steps),
    {k: np.array([x[k] for x in measured]) for k in companion.measures},
    means[-1],
  )
