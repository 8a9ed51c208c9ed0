"""Host side: worlds of the DeepMind Control suite, seen as PAD's agents see it.

Tassa et al., 'DeepMind Control Suite', 2018 (https://arxiv.org/abs/1801.00690),
by the package `dm_control` (extra `dmcontrol`). Hansen et al., ICLR 2021
(https://arxiv.org/abs/2007.04309), act on stacks of three pictures of 100 x 100
pixels, repeat each action, and deploy agents where colours are others
(`colours`) or a video plays behind the scene (`video`).

The authors replay colours and videos of their own, and find the background by a
green screen. Here colours are drawn for each episode, and the background is
where the renderer says that there is nothing. The hundred palettes of their
color_hard move each channel by up to about .45, as 'colours_easy' does.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from repjax import types
from repjax.data.environments import simulator
from repjax.data.environments import worlds

# What a world may look like.
LOOKS = ('training', 'colours_easy', 'colours_hard', 'video')


class _State(NamedTuple):
  """State of E worlds.

  Attributes:
    made: Steps made in all, an int32 scalar.
    seed: What everything is drawn from.
    physics: What MuJoCo integrates, [E, ...].
    frames: The last ones of each, the newest the last, [E, stack, ...].
  """

  made: np.ndarray
  seed: np.ndarray
  physics: np.ndarray
  frames: np.ndarray


class ControlSuite:
  """E worlds of one task (`worlds.Worlds`)."""

  def __init__(
    self,
    task: str,
    *,
    num: int = 1,
    num_steps: int = 250,
    action_repeat: int = 4,
    column: str = 'image',
    size: int = 100,
    stack: int = 3,
    look: str = 'training',
    video: Sequence[np.ndarray] = (),
  ):
    """Makes them.

    Args:
      task: Domain and task, such as 'walker-walk'.
      num: E.
      num_steps: Length of an episode; the authors' have 1,000 steps of the
        simulator, which are `num_steps * action_repeat`.
      action_repeat: Steps of the simulator for an action; rewards are summed.
      column: 'image' for pictures, 'features' for what the suite observes.
      size: Side of the pictures.
      stack: Frames of an observation.
      look: One of `LOOKS`: colours as they are, halfway to random ones or
        random ones in each episode, or a video behind the scene.
      video: Its pictures [size, size, 3], uint8; see `videos`.

    Raises:
      InputError: If dm_control or its renderer is not there, the task is
        unknown, or a setting is out of range.
    """
    types.check_choice('column', column, ('image', 'features'))
    types.check_choice('look', look, LOOKS)
    types.check_range(
      '[1, inf)',
      num=num,
      num_steps=num_steps,
      action_repeat=action_repeat,
      size=size,
      stack=stack,
    )
    if look == 'video' and not len(video):
      raise types.InputError("look='video' needs pictures of a video.")
    self.num, self.num_steps = num, num_steps
    self.column, self.stack = column, stack
    self._repeat, self._size, self._look = action_repeat, size, look
    self._video = video
    self._worlds = [simulator.Simulator(task) for _ in range(num)]
    self._test = simulator.Simulator(task)
    self.action_dim = self._test.low.size
    self._live = (-1, 0)  # Count and seed of what the worlds are at.
    self._acting: dict[Any, Any] = {}  # Policies, compiled.
    if column == 'image':
      simulator.check_renderer(self._test, size)

  def begin(self, seed: int) -> _State:
    """Worlds whose first episodes have not begun."""
    self._live = (-1, 0)  # A state that is restored next must be gone to.
    for world in self._worlds:
      world.reset(0)
    frames = np.stack([self._frame(x, 0) for x in self._worlds])
    return _State(
      np.zeros((), np.int32),
      np.asarray(seed, np.uint32),
      np.stack([x.physics_state() for x in self._worlds]),
      np.repeat(frames[:, None], self.stack, 1),
    )

  def collect(self, policy, params, state, *, num_steps):
    """Acts in a loop; the policy is compiled."""
    self._go_to(state)
    act = self._compiled(policy)
    count, seed = int(state.made), int(state.seed)
    frames = np.array(state.frames)
    told = []
    for _ in range(num_steps):
      at = count % self.num_steps
      if at == 0:
        for lane, world in enumerate(self._worlds):
          self._begin_episode(world, seed, count // self.num_steps, lane)
          frames[lane] = self._frame(world, 0)
      action = np.asarray(act(params, _stacked(frames), seed, count))
      seen, reward = frames[:, -1].copy(), np.zeros(self.num, np.float32)
      frames = np.roll(frames, -1, 1)
      for lane, world in enumerate(self._worlds):
        reward[lane] = world.step(action[lane], self._repeat)
        frames[lane, -1] = self._frame(world, at + 1)
      told.append((seen, action, reward, frames[:, -1].copy()))
      count += 1
    self._live = (count, seed)
    state = _State(
      np.asarray(count, np.int32),
      state.seed,
      np.stack([x.physics_state() for x in self._worlds]),
      frames,
    )
    return state, worlds.Steps(*map(np.stack, zip(*told, strict=True)))

  def returns(self, policy, params, *, seed, episodes):
    """One episode after the other, in a world of its own."""
    act = self._compiled(policy)
    totals = np.zeros(episodes)
    for episode in range(episodes):
      seen = self.first(seed, episode)
      for at in range(self.num_steps):
        count = episode * self.num_steps + at
        action = np.asarray(act(params, seen[None], seed, count))[0]
        seen, reward = self.next(action, at + 1, seen)
        totals[episode] += reward
    return totals

  # One world that is stepped by hand.

  def first(self, seed: int, episode: int) -> np.ndarray:
    """Begins a test episode; what is seen, [..., stack * channels]."""
    self._begin_episode(self._test, seed, episode, 0)
    return np.concatenate([self._frame(self._test, 0)] * self.stack, -1)

  def next(
    self, action: np.ndarray, time: int, seen: np.ndarray
  ) -> tuple[np.ndarray, float]:
    """Makes a step of it: (what is seen after step number `time`, reward)."""
    reward = self._test.step(action, self._repeat)
    frame = self._frame(self._test, time)
    return np.concatenate([seen[..., frame.shape[-1] :], frame], -1), reward

  def _begin_episode(self, world, seed, episode, lane):
    rng = np.random.default_rng([seed, episode, lane])
    world.reset(int(rng.integers(2**32)))
    if self._look.startswith('colours'):
      world.paint(rng, 0.5 if self._look == 'colours_easy' else 1.0)

  def _go_to(self, state):
    """Puts the simulators where a state is, unless they are there."""
    count, seed = int(state.made), int(state.seed)
    if self._live == (count, seed) or count % self.num_steps == 0:
      return  # They are, or new episodes begin.
    for lane, world in enumerate(self._worlds):
      self._begin_episode(world, seed, count // self.num_steps, lane)
      world.go_to(state.physics[lane])

  def _frame(self, world, time):
    if self.column == 'features':
      return world.features()
    image = world.render(self._size)
    if self._look != 'video':
      return image
    behind = world.background(self._size)[..., None]
    return np.where(behind, self._video[time % len(self._video)], image)

  def _compiled(self, policy):
    if policy not in self._acting:
      self._acting[policy] = jax.jit(
        lambda params, seen, seed, count: policy(
          params, seen, jax.random.fold_in(jax.random.key(seed), count)
        )
      )
    act = self._acting[policy]
    return lambda params, seen, seed, count: act(
      params, seen, np.uint32(seed), np.int32(count)
    )


def _stacked(frames):
  """[E, stack, ..., C] -> [E, ..., stack * C]."""
  return np.concatenate(np.moveaxis(frames, 1, 0), -1)
