"""Host side: worlds side by side, as a run that learns from them drives them.

Policies are pure functions of parameters; worlds are what steps. Those of
`environment` step inside of one compiled program (`Simulated`), those of a
simulator outside of JAX in a loop on the host (`dm_control`); who learns sees
no difference. What a state of worlds holds are arrays, so that a run can save
it and go on bit for bit.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.environments import environment

# (parameters, observations [E, ...], key) -> actions [E, A] in [-1, 1].
Policy = Callable[[types.PyTree, jax.Array, jax.Array], jax.Array]

State = Any


class Steps(NamedTuple):
  """What E worlds brought in n steps; of a stack of frames the newest.

  Attributes:
    seen: Frame before each step, [n, E, ...].
    action: What was done, [n, E, A].
    reward: [n, E].
    then: Frame after each step, [n, E, ...].
  """

  seen: np.ndarray
  action: np.ndarray
  reward: np.ndarray
  then: np.ndarray


class Worlds(Protocol):
  """E worlds that begin and end their episodes together.

  Attributes:
    num: E.
    num_steps: Length of an episode; it ends because time is up.
    action_dim: Numbers of an action, A.
    column: 'image' or 'features', what an observation is.
    stack: Frames of an observation, on the last axis, the newest the last.
  """

  num: int
  num_steps: int
  action_dim: int
  column: str
  stack: int

  def begin(self, seed: int) -> State:
    """Worlds whose first episodes have not begun."""

  def collect(
    self, policy: Policy, params: types.PyTree, state: State, *, num_steps: int
  ) -> tuple[State, Steps]:
    """Acts for some steps; episodes that end are followed by new ones.

    What is drawn depends on the seed of `begin` and the steps made since.
    """

  def returns(
    self, policy: Policy, params: types.PyTree, *, seed: int, episodes: int
  ) -> np.ndarray:
    """What is earned in whole episodes that nobody learns from, [episodes]."""


def uniform(action_dim: int) -> Policy:
  """A policy without parameters: uniform in [-1, 1]^A, whatever is seen."""
  walk = environment.uniform_policy(action_dim)

  def policy(params, observations, rng):
    del params  # It knows nothing.
    return walk(observations, jax.random.split(rng, jnp.shape(observations)[0]))

  return policy


class _State(NamedTuple):
  """State of `Simulated` worlds.

  Attributes:
    worlds: States of the environment, [E, ...].
    made: Steps made in all, an int32 scalar.
    seed: What everything is drawn from.
  """

  worlds: Any
  made: np.ndarray
  seed: np.ndarray


class Simulated:
  """Worlds of an `environment.Environment`, compiled with the policy."""

  stack = 1

  def __init__(
    self,
    env: environment.Environment,
    look: environment.Look,
    *,
    num: int,
    column: str,
  ):
    """Makes them.

    Args:
      env: The world.
      look: Of all of them.
      num: E, worlds side by side.
      column: What an observation is, 'image' or 'features'.

    Raises:
      InputError: If there is no world.
    """
    types.check_range('[1, inf)', num=num)
    self.num, self.column = num, column
    self.num_steps, self.action_dim = env.num_steps, env.action_dim
    self._env, self._look = env, look

  def begin(self, seed: int) -> _State:
    """Worlds whose first episodes have not begun."""
    # A first reset gives the shapes; the first step makes another.
    worlds = self._reset(jax.random.key(seed), self.num)
    return jax.device_get(
      _State(worlds, np.zeros((), np.int32), np.asarray(seed, np.uint32))
    )

  def collect(self, policy, params, state, *, num_steps):
    """Acts in one compiled call."""
    state, steps = self._collect(policy, num_steps, params, state)
    return state, Steps(*map(np.asarray, steps))

  def returns(self, policy, params, *, seed, episodes):
    """Whole episodes side by side in one compiled call."""
    return np.asarray(self._returns(policy, episodes, params, np.uint32(seed)))

  def _reset(self, rng, num):
    looks = environment.repeat(self._look, num)
    return jax.vmap(self._env.reset)(jax.random.split(rng, num), looks)

  @functools.partial(jax.jit, static_argnums=(0, 1, 2))
  def _collect(self, policy, num_steps, params, state):
    root = jax.random.key(state.seed)

    def step(carry, _):
      worlds, count = carry
      rng_reset, rng_act = jax.random.split(jax.random.fold_in(root, count))
      worlds = jax.lax.cond(
        count % self.num_steps == 0,
        lambda: self._reset(rng_reset, self.num),
        lambda: worlds,
      )
      seen = jax.vmap(self._env.observe)(worlds)
      action = policy(params, seen, rng_act)
      worlds, reward = jax.vmap(self._env.step)(worlds, action)
      then = jax.vmap(self._env.observe)(worlds)
      return (worlds, count + 1), (seen, action, reward, then)

    carry, steps = jax.lax.scan(
      step, (state.worlds, state.made), length=num_steps
    )
    return _State(*carry, state.seed), steps

  @functools.partial(jax.jit, static_argnums=(0, 1, 2))
  def _returns(self, policy, episodes, params, seed):
    walked = environment.walk(
      self._env,
      # One key for all, as while learning.
      lambda seen, keys: policy(params, seen, keys[0]),
      environment.repeat(self._look, episodes),
      jax.random.key(seed),
    )
    return walked.reward.sum(0)
