"""Device code: a point that circles a mark, seen as a small picture.

The world in which policies are adapted here, in place of the DeepMind Control
suite: nothing but arithmetic, so that thousands of steps a second are rendered
beside the networks that look at them. As in most tasks of that suite, all that
a policy must know is where what it moves is. The task is the same under all
looks.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.environments import environment


class Look(NamedTuple):
  """Colours are RGB in [0, 1].

  Attributes:
    agent: Colour of the point, [3].
    mark: Colour of the mark in the middle, [3].
    background: Colour behind them, [3].
    gain: What the whole picture is multiplied with, a scalar.
    waves: Colour of stripes that are added to the background, [3]; 0 for none.
    speed: How far the stripes move in a step, in widths of the picture.
  """

  agent: jax.Array
  mark: jax.Array
  background: jax.Array
  gain: jax.Array
  waves: jax.Array
  speed: jax.Array


class State(NamedTuple):
  """One episode.

  Attributes:
    agent: Place of the point, (x, y) in [LOW, HIGH]^2.
    time: Steps made, an int32 scalar.
    look: What all of it looks like.
  """

  agent: jax.Array
  time: jax.Array
  look: Look


LOW, HIGH = 0.05, 0.95
CENTRE = 0.5
KINDS = ('background', 'objects', 'light', 'stripes')
RADIUS = 0.3  # Of the circle.
_WAVES = 2.0  # Stripes in a picture.


def make_look(
  *,
  agent: tuple[float, ...] = (1.0, 0.0, 0.0),
  mark: tuple[float, ...] = (0.0, 1.0, 0.0),
  background: tuple[float, ...] = (0.1, 0.1, 0.1),
  gain: float = 1.0,
  waves: tuple[float, ...] = (0.0, 0.0, 0.0),
  speed: float = 0.0,
) -> Look:
  """A look; by default that of training: red and green on dark grey."""
  return Look(
    *(
      jnp.asarray(x, jnp.float32)
      for x in (agent, mark, background, gain, waves, speed)
    )
  )


def draw_looks(kind: str, *, num: int, seed: int) -> dict[str, Look]:
  """Random looks of one kind, in which the point can be seen.

  Args:
    kind: 'background' (of another colour), 'objects' (of other colours),
      'light' (less of it) or 'stripes' (that move behind the objects, in place
      of the paper's videos).
    num: Number of looks.
    seed: Decides all of them.

  Returns:
    'kind 0', 'kind 1', ... -> look.

  Raises:
    InputError: If the kind is unknown.
  """
  types.check_choice('kind', kind, KINDS)
  rng = np.random.default_rng([seed, KINDS.index(kind)])
  default = make_look()

  def colour(*far_from):
    """A colour that is told from others by eye."""
    while True:
      drawn = rng.uniform(0.0, 1.0, 3)
      if all(np.linalg.norm(drawn - x) > 0.5 for x in far_from):
        return tuple(drawn)

  def one():
    if kind == 'background':
      return make_look(background=colour(default.agent, default.mark))
    if kind == 'objects':
      agent = colour(default.background)
      return make_look(agent=agent, mark=colour(default.background, agent))
    if kind == 'light':
      return make_look(gain=rng.uniform(0.2, 0.6))
    return make_look(
      waves=tuple(rng.uniform(0.0, 0.8, 3)), speed=rng.uniform(-0.1, 0.1)
    )

  return {f'{kind} {i}': one() for i in range(num)}


def stack_looks(looks: Mapping[str, Look]) -> Look:
  """Looks in order, with a leading axis."""
  return jax.tree.map(lambda *x: jnp.stack(x), *looks.values())


def make(
  *,
  size: int = 16,
  num_steps: int = 100,
  stride: float = 0.08,
  width: float = 0.1,
  blob: float = 0.08,
) -> environment.Environment:
  """The world: x <- clip(x + stride a), an action of length at most 1.

  The reward is that part of the action that leads counterclockwise around the
  middle, at least 0, times exp(-((|x - c| - R) / width)^2) after it, so that
  at most 1 is earned in a step.

  Args:
    size: Side of the picture in pixels.
    num_steps: Length of an episode.
    stride: How far an action of length 1 moves the point.
    width: Of the circle's ring in which there are rewards.
    blob: Standard deviation of the two spots, in widths of the picture.

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', size=size, num_steps=num_steps)
  types.check_range('(0, inf)', stride=stride, width=width, blob=blob)
  centres = (jnp.arange(size) + 0.5) / size  # [W]

  def reset(rng, look):
    agent = jax.random.uniform(rng, (2,), minval=LOW, maxval=HIGH)
    return State(agent, jnp.zeros((), jnp.int32), look)

  def step(state, action):
    action = shorten(action)
    outwards = state.agent - CENTRE
    outwards = outwards / jnp.maximum(_norm(outwards), 1e-6)
    around = outwards[0] * action[1] - outwards[1] * action[0]
    agent = jnp.clip(state.agent + stride * action, LOW, HIGH)
    off = (_norm(agent - CENTRE) - RADIUS) / width
    reward = jnp.maximum(around, 0.0) * jnp.exp(-jnp.square(off))
    return State(agent, state.time + 1, state.look), reward

  def observe(state):
    look = state.look
    # A spot is a product of two bells: two exponentials a row and a column.
    places = jnp.stack([jnp.full(2, CENTRE), state.agent])  # [2, (x, y)]
    bells = jnp.exp(
      -jnp.square(centres[None, None] - places[..., None]) / (2 * blob**2)
    )  # [2, (x, y), W]
    mark, agent = bells[:, 1, :, None] * bells[:, 0, None, :]  # [H, W] each
    phase = centres - look.speed * state.time
    stripes = 0.5 + 0.5 * jnp.sin(2 * jnp.pi * _WAVES * phase)  # [W]
    row = look.background[None] + stripes[:, None] * look.waves[None]  # [W, 3]
    image = jnp.broadcast_to(row, (size, size, 3))
    for spot, colour in ((mark, look.mark), (agent, look.agent)):
      image = image + spot[..., None] * (colour[None, None] - image)
    return jnp.clip(look.gain * image, 0.0, 1.0)

  return environment.Environment(reset, step, observe, 2, num_steps)


def shorten(action: jax.Array) -> jax.Array:
  """An action [2] of length at most 1, in its direction."""
  return action / jnp.maximum(_norm(action), 1.0)


def expert(state: State, *, gain: float = 4.0) -> jax.Array:
  """Around, and back to the circle, [2]: what a policy is cloned from."""
  outwards = state.agent - CENTRE
  distance = _norm(outwards)
  outwards = outwards / jnp.maximum(distance, 1e-6)
  around = jnp.stack([-outwards[1], outwards[0]])
  return shorten(around + gain * (RADIUS - distance) * outwards)


def _norm(x):
  return jnp.sqrt(jnp.square(x).sum() + 1e-12)
