"""Deploys trained agents in worlds of many looks, all side by side."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.adapt import pad
from repjax.data.environments import environment
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

  def act(params, observation, rng):
    del rng  # The policy's mode.
    gaussian = model.apply(
      {'params': params}, observation[None], method='policy'
    )
    return jnp.tanh(gaussian.mean[0])

  def one(params, rate, limit):
    return pad.deploy(
      env,
      act,
      adapter,
      params,
      looks,
      jax.random.key(key),
      rate=rate,
      limit=limit,
      **settings,
    )._replace(params=())

  run = jax.jit(jax.vmap(one))
  return jax.device_get(run(params, np.repeat(rates, times, axis=1), limits))


def choose_rates(
  tried: np.ndarray, fails: np.ndarray, kinds: Sequence[str]
) -> np.ndarray:
  """Rates for each kind of look, chosen on the looks of all other kinds.

  Args:
    tried: Returns at R rates, [R, S, L].
    fails: Which looks are to be adapted to, [S, L].
    kinds: Of the L looks.

  Returns:
    Places of the best rates in `tried`, [S, L]: the same for looks of one kind,
    whose own returns count for nothing in it.
  """
  names = np.asarray(kinds)
  chosen = np.zeros(fails.shape, int)
  for kind in np.unique(names):
    others = fails & (names != kind)
    chosen[:, names == kind] = (tried * others).sum(2).argmax(0)[:, None]
  return chosen
