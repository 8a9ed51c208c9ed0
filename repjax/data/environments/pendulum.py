"""Device code: the pendulum that is swung up, seen as three numbers.

The equations, limits and costs of Gym's 'Pendulum-v1' (the classic control task
on which soft actor-critic is checked), with rewards that are those divided by
`SCALE`, in [-1, 0].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax.data.environments import environment

MAX_SPEED = 8.0
MAX_TORQUE = 2.0
_STEP = 0.05  # Seconds.
_GRAVITY = 10.0
_MASS = 1.0
_LENGTH = 1.0
# The largest cost of a step.
SCALE = jnp.pi**2 + 0.1 * MAX_SPEED**2 + 0.001 * MAX_TORQUE**2


class State(NamedTuple):
  """One episode.

  Attributes:
    angle: Radians from upright.
    speed: Radians a second.
  """

  angle: jax.Array
  speed: jax.Array


# What all episodes look like: numbers have no look.
LOOK = np.zeros((), np.float32)


def make(*, num_steps: int = 200) -> environment.Environment:
  """The world; its observations are (cos, sin, speed), its action a torque."""

  def reset(rng, look):
    del look  # There is nothing to see.
    angle, speed = jax.random.uniform(rng, (2,), minval=-1.0)
    return State(jnp.pi * angle, speed)

  def step(state, action):
    torque = MAX_TORQUE * jnp.clip(action[0], -1.0, 1.0)
    angle = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = jnp.square(angle) + 0.1 * jnp.square(state.speed) + 0.001 * torque**2
    pull = 3 * _GRAVITY / (2 * _LENGTH) * jnp.sin(state.angle)
    push = 3 / (_MASS * _LENGTH**2) * torque
    speed = state.speed + (pull + push) * _STEP
    speed = jnp.clip(speed, -MAX_SPEED, MAX_SPEED)
    return State(state.angle + speed * _STEP, speed), -cost / SCALE

  def observe(state):
    return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.speed])

  return environment.Environment(reset, step, observe, 1, num_steps)
