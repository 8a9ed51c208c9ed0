"""A memory holds what a list of transitions holds."""

import collections

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import replay
from repjax.data.environments import worlds

_EPISODE = 4


class _Told:
  """Two worlds whose frames say (world, episode, time), and all transitions."""

  def __init__(self):
    self.time, self.all = 0, []

  def steps(self, num):
    parts = []
    for _ in range(num):
      episode, at = divmod(self.time, _EPISODE)
      frame = [
        np.array([[w, episode, at + x] for w in range(2)], np.float32)
        for x in (0, 1)
      ]
      action = np.array([[10 * self.time + w] for w in range(2)], np.float32)
      reward = action[:, 0] / 2
      parts.append((frame[0], action, reward, frame[1]))
      self.all += [
        (w, episode, at, float(action[w, 0]), float(reward[w]))
        for w in range(2)
      ]
      self.time += 1
    return worlds.Steps(*map(np.stack, zip(*parts, strict=True)))


def _memory(capacity, stack=1):
  return replay.Memory(
    capacity=capacity, num_worlds=2, num_steps=_EPISODE, stack=stack
  )


def _drawn(memory, num=2000):
  return memory.draw(
    np.random.default_rng(0), batch_size=num, column='features'
  )


def _expected(told, count, stack):
  """Rows that the last `count` transitions of each world should be."""

  def seen(world, episode, at):
    # Before an episode's first frame is the first, again and again.
    times = [max(0, at - back) for back in reversed(range(stack))]
    return tuple(x for time in times for x in (world, episode, time))

  return {
    (*seen(w, e, t), *seen(w, e, t + 1), action, reward)
    for w, e, t, action, reward in told.all[-2 * count :]
  }


@pytest.mark.parametrize('stack', [1, 3])
@pytest.mark.parametrize('chunks', [(3,), (1,) * 9, (5, 30, 7), (2, 4, 9, 1)])
def test_what_is_drawn_is_what_a_list_holds(stack, chunks):
  told, memory = _Told(), _memory(2 * 2 * _EPISODE, stack)
  for num in chunks:
    memory.add(told.steps(num))
  batch = _drawn(memory)
  rows = np.concatenate(
    [
      batch['features'],
      batch['next_features'],
      batch['action'],
      batch['reward'][:, None],
    ],
    1,
  )
  expected = _expected(told, min(told.time, 2 * _EPISODE), stack)
  counts = collections.Counter(map(tuple, rows.tolist()))
  assert set(counts) == expected
  # All are as likely: none is off by more than five deviations.
  mean = len(rows) / len(expected)
  assert max(abs(x - mean) for x in counts.values()) < 5 * mean**0.5
  assert batch['mask'].all()
  assert batch['discount'].all()


def test_what_was_saved_in_parts_is_what_was_there(tmp_path):
  told, memory, saved = _Told(), _memory(2 * 2 * _EPISODE, 2), 0
  for num in (3, 5, 40, 6):
    memory.add(told.steps(num))
    memory.save(tmp_path, saved)
    saved = memory.written
  read = _memory(2 * 2 * _EPISODE, 2)
  read.load(tmp_path, saved)
  for name, x in _drawn(memory).items():
    np.testing.assert_array_equal(_drawn(read)[name], x)
  # Both go on alike.
  more = told.steps(3)
  for x in (memory, read):
    x.add(more)
  np.testing.assert_array_equal(
    _drawn(read)['features'], _drawn(memory)['features']
  )


def test_an_earlier_checkpoint_forgets_what_came_later(tmp_path):
  told, memory = _Told(), _memory(100)
  for num in (3, 5):
    since = memory.written
    memory.add(told.steps(num))
    memory.save(tmp_path, since)
  early = _memory(100)
  early.load(tmp_path, 3)
  assert early.written == 3
  assert [x.name for x in tmp_path.iterdir()] == [
    'rows-000000000-000000003.npz'
  ]
  with pytest.raises(types.InputError, match='not of the 8 of the checkpoint'):
    _memory(100).load(tmp_path, 8)


def test_damaged_files_and_empty_memories_are_refused(tmp_path):
  told, memory = _Told(), _memory(100)
  with pytest.raises(ValueError, match='nothing yet'):
    _drawn(memory)
  memory.add(told.steps(3))
  memory.save(tmp_path, 0)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(types.InputError, match='missing or damaged'):
    _memory(100).load(tmp_path, 3)
  with pytest.raises(types.InputError, match='capacity'):
    _memory(0)


def test_a_memory_that_does_not_fit_is_refused():
  memory = replay.Memory(capacity=10**15, num_worlds=2, num_steps=_EPISODE)
  with pytest.raises(types.InputError, match=r'lower config\.act\.capacity'):
    memory.add(_Told().steps(1))


def test_a_save_after_more_than_it_holds_begins_with_an_episode(tmp_path):
  told, memory = _Told(), _memory(2 * _EPISODE, 3)
  memory.add(told.steps(3 * _EPISODE + 2))
  memory.save(tmp_path, 0)
  read = _memory(2 * _EPISODE, 3)
  read.add(worlds.Steps(*(np.full_like(x, -9) for x in told.steps(12))))
  read.written = 0
  read.load(tmp_path, memory.written)
  for name, x in _drawn(memory).items():
    np.testing.assert_array_equal(_drawn(read)[name], x)


@pytest.mark.parametrize('num', [1, 4])
def test_a_memory_of_another_number_of_worlds_is_refused(num, tmp_path):
  told, memory = _Told(), _memory(100)
  memory.add(told.steps(3))
  memory.save(tmp_path, 0)
  other = replay.Memory(capacity=100, num_worlds=num, num_steps=_EPISODE)
  with pytest.raises(types.InputError, match='is of 2 worlds'):
    other.load(tmp_path, 3)
