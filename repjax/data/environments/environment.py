"""Device code: what a world is, and how a policy walks through it.

A world is three pure functions of ONE episode; episodes go side by side under
`jax.vmap`, and whole walks are one `jax.lax.scan`. What it looks like is data
(a `look`, any pytree of arrays), so that one compiled program serves the world
of training and all changed ones.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types

State = Any
Look = Any

# (observations [E, ...], keys [E]) -> actions [E, A] in [-1, 1].
Policy = Callable[[jax.Array, jax.Array], jax.Array]


class Environment(NamedTuple):
  """A world with episodes of one length and actions in [-1, 1]^A.

  Attributes:
    reset: (key, look) -> state of a new episode.
    step: (state, action [A]) -> (state, reward). What is random in it is drawn
      from a key in the state.
    observe: State -> observation, an image [H, W, C] in [0, 1] or features [D].
    action_dim: A.
    num_steps: Length of an episode. It ends because time is up: what would
      come after it counts for values.
  """

  reset: Callable[[jax.Array, Look], State]
  step: Callable[[State, jax.Array], tuple[State, jax.Array]]
  observe: Callable[[State], jax.Array]
  action_dim: int
  num_steps: int


class Walk(NamedTuple):
  """What E episodes brought, step by step.

  Attributes:
    observation: What was seen before each step, [T, E, ...].
    action: What was done, [T, E, A].
    reward: [T, E].
    next_observation: What was seen after it, [T, E, ...].
    state: Of the world before each step.
  """

  observation: jax.Array
  action: jax.Array
  reward: jax.Array
  next_observation: jax.Array
  state: State


def walk(env: Environment, policy: Policy, looks: Look, rng: jax.Array) -> Walk:
  """One episode for each look, side by side.

  Args:
    env: The world.
    policy: (observations [E, ...], keys [E]) -> actions [E, A].
    looks: With a leading axis, [E, ...]; see `repeat`.
    rng: Of the beginnings, the world's draws and the policy's.
  """

  def act(states, observations, keys):
    del states  # A policy sees what is to be seen.
    return policy(observations, keys)

  return walk_of_states(env, act, looks, rng)


def walk_of_states(
  env: Environment,
  act: Callable[[State, jax.Array, jax.Array], jax.Array],
  looks: Look,
  rng: jax.Array,
) -> Walk:
  """`walk` of a teacher, who knows the world's states as well.

  Args:
    env: The world.
    act: (states, observations, keys) -> actions, all with a leading axis E.
    looks: With a leading axis, [E, ...].
    rng: Of the beginnings, the world's draws and the teacher's.
  """
  num = jax.tree.leaves(looks)[0].shape[0]
  rng_reset, rng_act = jax.random.split(rng)
  states = jax.vmap(env.reset)(jax.random.split(rng_reset, num), looks)

  def step(carry, rng):
    states, seen = carry
    actions = act(states, seen, jax.random.split(rng, num))
    new, rewards = jax.vmap(env.step)(states, actions)
    then = jax.vmap(env.observe)(new)
    return (new, then), Walk(seen, actions, rewards, then, states)

  begin = (states, jax.vmap(env.observe)(states))
  _, walked = jax.lax.scan(
    step, begin, jax.random.split(rng_act, env.num_steps)
  )
  return walked


def repeat(look: Look, num: int) -> Look:
  """The same (a look, a state) for each of `num` episodes, [num, ...]."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), look)


def uniform_policy(action_dim: int) -> Policy:
  """Actions that see nothing, uniform in [-1, 1]^A."""
  types.check_range('[1, inf)', action_dim=action_dim)

  def policy(observations, keys):
    del observations  # Whatever is seen.
    return jax.vmap(
      lambda key: jax.random.uniform(key, (action_dim,), minval=-1.0)
    )(keys)

  return policy
