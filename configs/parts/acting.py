"""Agents that learn from what they do: worlds, soft actor-critic, a run."""

from collections.abc import Callable
from typing import Any

import optax

from configs import presets
from repjax import types
from repjax.data.environments import worlds as worlds_lib
from repjax.experiments import acting
from repjax.methods import sac
from repjax.methods import squashed_policy
from repjax.models import agent as agents


def learner(
  config: Any,
  model: agents.Agent,
  optimizer: types.Optimizer = optax.adam,
  *,
  action_dim: int,
  **settings: Any,
) -> types.Method:
  """Soft actor-critic with a config's rates.

  Args:
    config: With tx (learning_rate, temperature_rate and temperature_b1, of the
      temperature's Adam) and sac.
    model: The agent's network.
    optimizer: Makes an optax chain of a rate.
    action_dim: Numbers of an action.
    **settings: task, transform, view and column of `sac.make`.
  """
  tx, fields = config.tx, dict(config.sac)
  rate = optimizer(tx.learning_rate)
  return sac.make(
    model,
    sac.Optimizers(
      critic=rate,
      actor=rate,
      temperature=optimizer(tx.temperature_rate, b1=tx.temperature_b1),
      task=rate,
    ),
    action_dim=action_dim,
    every=sac.Every(*[fields.pop('every')] * 3),
    **fields,
    **settings,
  )


def experiment(
  config: Any,
  model: agents.Agent,
  method: types.Method,
  worlds: worlds_lib.Worlds,
  *,
  view: Callable[..., Any] = lambda x: x,
) -> types.Experiment:
  """A run that acts in worlds and learns from it.

  Args:
    config: With seed, batch_size, min_steps (updates) and act: first, steps
      and updates of `acting.Schedule`, capacity and episodes.
    model: The agent's network, whose policy acts.
    method: What is trained.
    worlds: Where.
    view: Of observations, what the policy acts on.

  Raises:
    InputError: A field of `step` is set, which no run that acts reads.
  """
  for name, x in config.step.items():
    plain = presets.RUN['paper']['step'][name]
    if x != plain:
      raise types.InputError(
        f'config.step.{name}={x!r}: agents that act know it not; leave it '
        f'{plain!r}.'
      )
  act = config.act
  batches = acting.Acting(
    worlds,
    acting.Policies(
      squashed_policy.exploring(model, view=view),
      squashed_policy.exploiting(model, view=view),
    ),
    acting.Schedule(act.first, act.steps, act.updates),
    seed=config.seed,
    batch_size=config.batch_size,
    capacity=act.capacity,
    episodes=act.episodes,
  )
  return types.Experiment(
    method=method,
    train=batches,
    evals=_no_rows,
    eval_splits=(),
    steps=config.min_steps,
    warm_start=lambda state: state,
    measure=lambda outputs, columns: {},
    figures=lambda split, outputs, columns: {},
    companion=batches.companion(),
  )


def _no_rows(split):
  raise types.InputError(
    f'An agent that acts has no rows of a split {split!r}: it is judged by '
    'launch.evaluate without --episodes.'
  )
