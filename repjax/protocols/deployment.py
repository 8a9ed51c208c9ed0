"""Deploys trained agents in worlds of many looks, side by side or by hand."""

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.adapt import pad
from repjax.data.environments import environment
from repjax.methods import squashed_policy
from repjax.models import agent as agents


def everywhere(
  env: environment.Environment,
  model: agents.Agent,
  adapter: pad.Adapter,
  params: types.PyTree,
  looks: environment.Look,
  *,
  rate: float | np.ndarray,
  limit: float | np.ndarray = -1.0,
  times: int = 1,
  key: int = 0,
  **settings: Any,
) -> pad.Deployment:
  """All agents in all looks, each acting by its policy's mode.

  Args:
    env: The world.
    model: The agents' network.
    adapter: How they adapt.
    params: Of S agents, with a leading axis.
    looks: L looks, with a leading axis.
    rate: Of the adaptation: one for all, or [S, L].
    limit: Of the harm detector: one for all, or one an agent, [S].
    times: Agents that begin anew in each look.
    key: Seed of the episodes, which are the same for all S agents.
    **settings: episodes, reset, actions; see `pad.deploy`.

  Returns:
    On the host, with a leading axis S, and L * times episodes side by side,
    those of a look next to each other; without parameters.
  """
  num = len(jax.tree.leaves(params)[0])
  num_looks = len(jax.tree.leaves(looks)[0])
  looks = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), looks)
  rates = np.broadcast_to(np.asarray(rate, np.float32), (num, num_looks))
  limits = np.broadcast_to(np.asarray(limit, np.float32), num)

  run = _program(env, model, adapter, tuple(sorted(settings.items())))
  told = run(
    params,
    looks,
    jax.random.key(key),
    np.repeat(rates, times, axis=1),
    limits,
  )
  return jax.device_get(told)


@functools.lru_cache(maxsize=4)
def _program(env, model, adapter, settings):
  """Compiled once for all rates, limits and parameters."""
  policy = squashed_policy.exploiting(model)

  def act(params, observation, rng):
    return policy(params, observation[None], rng)[0]

  def one(params, looks, key, rate, limit):
    return pad.deploy(
      env,
      act,
      adapter,
      params,
      looks,
      key,
      rate=rate,
      limit=limit,
      **dict(settings),
    )._replace(params=())

  return jax.jit(jax.vmap(one, (0, None, None, 0, 0)))


class ByHand(Protocol):
  """A world that is stepped on the host, such as `ControlSuite`.

  Attributes:
    num_steps: Length of an episode.
  """

  num_steps: int

  def first(self, seed: int, episode: int) -> np.ndarray:
    """What is seen when an episode begins."""

  def next(
    self, action: np.ndarray, time: int, seen: np.ndarray
  ) -> tuple[np.ndarray, float]:
    """(What is seen after step number `time`, its reward)."""


class Simulated(NamedTuple):
  """What one agent met in K episodes of T steps, one after the other.

  Attributes:
    reward: [K, T].
    loss: The task's loss before each update, [K, T].
  """

  reward: np.ndarray
  loss: np.ndarray


def in_simulator(
  world: ByHand,
  policy: squashed_policy.Policy,
  adapter: pad.Adapter,
  params: types.PyTree,
  *,
  rate: float,
  episodes: int,
  seed: int,
  limit: float = -1.0,
) -> Simulated:
  """An agent that acts and adapts in a world that no compiler knows.

  As trained again at the beginning of each episode, as in the authors' code.

  Args:
    world: Steps on the host; policy and adaptation are compiled.
    policy: What it does, (parameters, observations [1, ...], key) -> actions.
    adapter: How it adapts.
    params: Of the agent.
    rate: Of the adaptation; 0 for none.
    episodes: K.
    seed: Of the episodes, which are the same at all rates.
    limit: Of the harm detector; see `pad.training_limit`.
  """
  types.check_range('[1, inf)', episodes=episodes)
  act, update = _compiled(policy, adapter)
  reward = np.zeros((episodes, world.num_steps))
  loss = np.zeros_like(reward)
  for episode in range(episodes):
    state = adapter.init(params, rate, limit)
    seen = world.first(seed, episode)
    own = jax.random.fold_in(jax.random.key(seed), episode)
    for t in range(world.num_steps):
      rng = jax.random.fold_in(own, t)
      action = act(state.params, seen)
      then, reward[episode, t] = world.next(np.asarray(action), t + 1, seen)
      transition = pad.Transition(jnp.asarray(seen), action, jnp.asarray(then))
      state, loss[episode, t] = update(state, transition, rng)
      seen = then
  return Simulated(reward, loss)


@functools.lru_cache(maxsize=4)
def _compiled(policy, adapter):
  return (
    jax.jit(lambda params, seen: policy(params, seen[None], None)[0]),
    jax.jit(adapter.update),
  )


def choose_rates(
  tried: np.ndarray, fails: np.ndarray, kinds: Sequence[str]
) -> np.ndarray:
  """A rate for each kind of look, chosen on the looks of all other kinds.

  One for all agents, by what they earn together: a rate chosen agent by agent
  is noise where hardly anything is earned.

  Args:
    tried: Returns at R rates, [R, S, L].
    fails: Which looks are to be adapted to, [S, L].
    kinds: Of the L looks.

  Returns:
    Places of the best rates in `tried`, [L]: the same for looks of one kind,
    whose own returns count for nothing in it. The first one where no look of
    another kind fails: nothing is known of rates.
  """
  names = np.asarray(kinds)
  chosen = np.zeros(len(names), int)
  for kind in np.unique(names):
    others = fails & (names != kind)
    earned = np.where(others, tried, 0.0).sum((1, 2))
    # Where an agent of others is spoilt, the rate is none.
    earned = np.where(np.isfinite(earned), earned, -np.inf)
    chosen[names == kind] = earned.argmax()
  return chosen
