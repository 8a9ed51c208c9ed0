"""Host side: a run whose rows are what its own policy does.

The agent acts in worlds beside the updates of the run (`types.Companion`), what
it does goes into a memory, and the batches of the run are drawn from that. What
a batch holds is a function of the seed and of all updates before, so that a run
that was stopped goes on bit for bit: the work directory keeps the memory, each
step once, and where the worlds are.
"""

from collections.abc import Iterator
import hashlib
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from repjax import files
from repjax import types
from repjax.data.batches import replay
from repjax.data.environments import worlds as worlds_lib

# Streams of one seed: what worlds do, what is drawn of the memory, test
# episodes.
_WORLDS, _DRAWS, _TEST = 0, 1, 2
_WORLDS_FORMAT = 'worlds-{:09d}.npz'


class Policies(NamedTuple):
  """How an agent acts.

  Attributes:
    explore: While it learns.
    exploit: When it is judged.
  """

  explore: worlds_lib.Policy
  exploit: worlds_lib.Policy


class Schedule(NamedTuple):
  """How acting and learning take turns.

  Attributes:
    first: Steps of each world by chance, before the first update.
    steps: Steps of each world in a turn.
    updates: Updates in a turn. The first turns are those of `first`: the agent
      learns from what was done by chance before it acts, as often as from all
      that comes later.
  """

  first: int
  steps: int
  updates: int

  def steps_after(self, updates: int) -> int:
    """Steps that each world has made after so many updates."""
    return max(self.first, updates // self.updates * self.steps)


class Acting:
  """Batches (`types.Batches`) of what was done, and the doing of it."""

  def __init__(
    self,
    worlds: worlds_lib.Worlds,
    policies: Policies,
    schedule: Schedule,
    *,
    seed: int,
    batch_size: int,
    capacity: int,
    episodes: int,
  ):
    """Begins with steps by chance.

    Args:
      worlds: Where it acts.
      policies: How.
      schedule: When.
      seed: Of all that is drawn here.
      batch_size: Rows of a batch over all devices.
      capacity: Transitions that the memory holds.
      episodes: Test episodes of a measurement, the same at each.

    Raises:
      InputError: If a number is out of range, or there are several processes.
    """
    types.check_range(
      '[1, inf)',
      episodes=episodes,
      **{f'schedule.{k}': x for k, x in schedule._asdict().items()},
    )
    if schedule.first % schedule.steps:
      raise types.InputError(
        f'The steps of a turn ({schedule.steps}) must divide those by chance '
        f'({schedule.first}).'
      )
    if jax.process_count() > 1:
      raise types.InputError(
        'A run that acts has one process: leave out --num_processes.'
      )
    self._worlds, self._policies = worlds, policies
    self._schedule, self._seed = schedule, seed
    self._batch_size, self._episodes = batch_size, episodes
    self._capacity = capacity
    self._folder: pathlib.Path | None = None
    self._begin(None, 0)

  @property
  def expected_rows(self) -> float:
    """Rows of a step over all devices."""
    return self._batch_size

  def fingerprint(self) -> str:
    """Of what was done by chance; all else follows from it."""
    found = hashlib.sha256()
    for _, x in sorted(self.batch(0).items()):
      found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Rows drawn for a step, of what has been done by now."""
    rng = np.random.default_rng([self._seed, _DRAWS, step])
    return self._memory.draw(
      rng, batch_size=self._batch_size, column=self._worlds.column
    )

  def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one step after the other; none is drawn ahead."""
    while True:
      yield self.batch(start_step)
      start_step += 1

  @property
  def num_transitions(self) -> int:
    """Steps made so far in all worlds."""
    return self._memory.written * self._worlds.num

  def companion(self) -> types.Companion:
    """What the run calls beside its updates."""
    return types.Companion(
      begin=self._begin,
      follow=self.follow,
      save=self._save,
      measures={'return': lambda state: float(self.returns(state).mean())},
    )

  def follow(self, step: int, state: types.TrainState) -> None:
    """Acts, if it is time to after update number `step`."""
    due = self._schedule.steps_after(step) - self._memory.written
    if due > 0:
      self._act(self._policies.explore, _on_one_device(state.params), due)

  def returns(self, state: types.TrainState) -> np.ndarray:
    """What the policy earns in test episodes, [episodes]."""
    return self._worlds.returns(
      self._policies.exploit,
      _on_one_device(state.params),
      seed=_seed(self._seed, _TEST),
      episodes=self._episodes,
    )

  def _act(self, policy, params, num_steps):
    self._state, steps = self._worlds.collect(
      policy, params, self._state, num_steps=num_steps
    )
    self._memory.add(steps)

  def _begin(self, workdir, step):
    self._folder = None if workdir is None else workdir / 'memory'
    self._state = self._worlds.begin(_seed(self._seed, _WORLDS))
    self._memory = replay.Memory(
      capacity=self._capacity,
      num_worlds=self._worlds.num,
      num_steps=self._worlds.num_steps,
      stack=self._worlds.stack,
    )
    self._saved = 0
    if step == 0:
      if self._folder is not None:
        self._memory.load(self._folder, 0)  # What was never saved whole.
      chance = worlds_lib.uniform(self._worlds.action_dim)
      for _ in range(0, self._schedule.first, self._schedule.steps):
        self._act(chance, {}, self._schedule.steps)
      return
    assert self._folder is not None, 'a checkpoint lies in a work directory'
    self._memory.load(self._folder, self._schedule.steps_after(step))
    self._saved = self._memory.written
    path = self._folder / _WORLDS_FORMAT.format(self._saved)
    self._state = _restore(path, self._state, self._worlds.num_steps)

  def _save(self, step):
    if self._folder is None:
      return
    del step  # What was done says it.
    self._memory.save(self._folder, self._saved)
    path = self._folder / _WORLDS_FORMAT.format(self._memory.written)
    leaves = jax.tree.leaves(jax.device_get(self._state))
    arrays = {f'{i}': x for i, x in enumerate(leaves)}
    files.write_arrays(path, num_steps=self._worlds.num_steps, **arrays)
    self._saved = self._memory.written


def _restore(path, like, num_steps):
  """States of worlds as `_save` wrote them."""
  structure = jax.tree.structure(like)
  found = files.read_arrays(path)
  known = int(found.get('num_steps', num_steps))  # Older runs kept none.
  if known != num_steps:
    raise types.InputError(
      f'{path} is of episodes of {known} steps, and config.world.num_steps='
      f'{num_steps}: a run goes on with those; give another --workdir.'
    )
  leaves = [found[f'{i}'] for i in range(structure.num_leaves)]
  return jax.tree.unflatten(structure, leaves)


def _seed(seed, stream):
  """A seed of 32 bits of one stream."""
  return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def _on_one_device(params):
  """Replicated parameters as the one device has them that acts."""
  return jax.tree.map(
    lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, params
  )
