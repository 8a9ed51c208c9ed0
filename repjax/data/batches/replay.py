"""Host side: a memory of what was seen, done and earned, to learn from.

Each frame is kept once: what was seen after a step is what is seen before the
next one, and a stack of frames is put together when it is drawn. Of 500,000
steps with stacks of three pictures of 100 x 100 that is 15 GB in place of the
90 of transitions as they are.
"""

import pathlib

import numpy as np

from repjax import files
from repjax import types
from repjax.data.environments import worlds

_FORMAT = 'rows-{:09d}-{:09d}.npz'


class Memory:
  """The last steps of E worlds whose episodes begin and end together."""

  def __init__(
    self, *, capacity: int, num_worlds: int, num_steps: int, stack: int = 1
  ):
    """Makes one without rows.

    Args:
      capacity: Transitions that it holds at least, of all worlds.
      num_worlds: E.
      num_steps: Length of an episode.
      stack: Frames of an observation; before the first of an episode are more
        of it.

    Raises:
      InputError: If a number is not positive.
    """
    types.check_range(
      '[1, inf)',
      capacity=capacity,
      num_worlds=num_worlds,
      num_steps=num_steps,
      stack=stack,
    )
    self.written = 0  # Steps of each world.
    self._num_steps, self._stack = num_steps, stack
    self._num_worlds = num_worlds
    # Whole episodes; one more is being written over.
    episodes = -(-capacity // (num_worlds * num_steps)) + 1
    self._kept = (episodes - 1) * num_steps
    self._slots = episodes * (num_steps + 1)
    self._frames: np.ndarray = np.empty(0)
    self._action: np.ndarray = np.empty(0)
    self._reward: np.ndarray = np.empty(0)

  def add(self, steps: worlds.Steps) -> None:
    """Writes some steps of all worlds, over the oldest where it is full."""
    if not self._frames.size:
      self._frames, self._action, self._reward = (
        self._room(x) for x in (steps.seen, steps.action, steps.reward)
      )
    # More than there is room for would be written in no order.
    for start in range(0, len(steps.reward), self._num_steps):
      part = worlds.Steps(*(x[start : start + self._num_steps] for x in steps))
      slots = self._slot(self.written + np.arange(len(part.reward)))
      self._frames[slots] = part.seen
      self._frames[(slots + 1) % self._slots] = part.then
      self._action[slots], self._reward[slots] = part.action, part.reward
      self.written += len(part.reward)

  def draw(
    self, rng: np.random.Generator, *, batch_size: int, column: str
  ) -> dict[str, np.ndarray]:
    """Transitions, uniformly with replacement.

    Args:
      rng: Draws them.
      batch_size: B.
      column: Of observations.

    Returns:
      `column`, 'next_' + `column`, 'action' [B, A], 'reward' [B], 'discount'
      [B], which is 1 since episodes end because time is up, and 'mask' [B].

    Raises:
      ValueError: If it holds none.
    """
    if not self.written:
      raise ValueError('the memory holds nothing yet')
    first = max(0, self.written - self._kept)
    steps = rng.integers(first, self.written, batch_size)
    lanes = rng.integers(self._num_worlds, size=batch_size)
    slots = self._slot(steps)
    ones = np.ones(batch_size, np.float32)
    return {
      column: self._stacked(steps, lanes, 0),
      f'next_{column}': self._stacked(steps, lanes, 1),
      'action': self._action[slots, lanes],
      'reward': self._reward[slots, lanes],
      'discount': ones,
      'mask': ones.copy(),
    }

  def save(self, folder: pathlib.Path, since: int) -> None:
    """Writes a file of the steps made since then, unless there are none."""
    # From the first step of an episode on, with which its stacks begin.
    oldest = max(0, self.written - self._kept)
    since = max(since, oldest - oldest % self._num_steps)
    if since >= self.written:
      return
    slots = self._slot(np.arange(since, self.written))
    path = folder / _FORMAT.format(since, self.written)
    files.write_arrays(
      path,
      seen=self._frames[slots],
      action=self._action[slots],
      reward=self._reward[slots],
      then=self._frames[(slots + 1) % self._slots],
    )

  def load(self, folder: pathlib.Path, steps: int) -> None:
    """Reads what `save` wrote, up to `steps`, and forgets what came later.

    Raises:
      InputError: If files are missing or damaged.
    """
    for path in sorted(folder.glob('rows-*.npz')):
      first, last = map(int, path.stem.split('-')[1:])
      if first >= steps:
        path.unlink()  # The run makes those steps again.
        continue
      if first > self.written and last - first >= self._kept:
        self.written = first  # What came before was written over.
      if first != self.written or last > steps:
        break
      found = worlds.Steps(**files.read_arrays(path))
      if found.reward.shape[1] != self._num_worlds:
        raise types.InputError(
          f'{path} is of {found.reward.shape[1]} worlds side by side, and '
          f'config.world.num={self._num_worlds}: a run that acts goes on in as '
          'many; give another --workdir.'
        )
      self.add(found)
    if self.written != steps:
      raise types.InputError(
        f'{folder} holds the memory of {self.written:,} steps, not of the '
        f'{steps:,} of the checkpoint: give another --workdir.'
      )

  def _room(self, like):
    """For all steps; the system gives memory as it is written."""
    shape = (self._slots, self._num_worlds, *like.shape[2:])
    try:
      return np.empty(shape, like.dtype)
    except MemoryError as error:
      size = np.prod(shape, dtype=float) * like.dtype.itemsize / 1e9
      raise types.InputError(
        f'A memory of {size:.0f} GB does not fit: lower config.act.capacity.'
      ) from error

  def _slot(self, steps):
    """Where the frame before a step is; behind each episode's is its last."""
    episode, at = np.divmod(steps, self._num_steps)
    return (episode * (self._num_steps + 1) + at) % self._slots

  def _stacked(self, steps, lanes, later):
    at = steps % self._num_steps + later
    slots = self._slot(steps) + later
    frames = [
      self._frames[(slots - np.minimum(back, at)) % self._slots, lanes]
      for back in reversed(range(self._stack))
    ]
    return frames[0] if self._stack == 1 else np.concatenate(frames, -1)
