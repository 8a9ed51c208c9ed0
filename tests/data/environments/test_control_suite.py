"""Worlds of dm_control: seeds decide, states restore, looks change no task."""

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from repjax import types
from repjax.data.environments import control_suite
from repjax.data.environments import simulator
from repjax.data.environments import videos


@pytest.fixture(scope='module')
def suite():
  return pytest.importorskip('dm_control.suite')


def _policy(params, seen, rng):
  del seen
  return jnp.sin(params + jnp.arange(2.0))[:, None] * jnp.ones((1, 1))


def _worlds(**settings):
  settings = dict(num=2, num_steps=6, action_repeat=3, size=24) | settings
  return control_suite.ControlSuite('cartpole-swingup', **settings)


def test_steps_are_those_of_the_suite(suite):
  side = _worlds(column='features', num=1, stack=1)
  _, steps = side.collect(
    lambda params, seen, rng: jnp.full((1, 1), 0.75),
    {},
    side.begin(3),
    num_steps=6,
  )
  # The same episode by hand: three steps of the simulator an action.
  seed = np.random.default_rng([3, 0, 0]).integers(2**32)
  env = suite.load('cartpole', 'swingup', task_kwargs={'random': int(seed)})
  seen = env.reset().observation
  for t in range(6):
    expected = np.concatenate([*seen.values()])
    np.testing.assert_allclose(steps.seen[t, 0], expected, rtol=1e-6)
    total = 0.0
    for _ in range(3):
      told = env.step([0.75])
      total += told.reward
    seen = told.observation
    np.testing.assert_allclose(steps.reward[t, 0], total, rtol=1e-5)


@pytest.mark.parametrize('column', ['features', 'image'])
def test_a_restored_state_goes_on_bit_for_bit(suite, column):
  side = _worlds(column=column)
  state, first = side.collect(_policy, 0.3, side.begin(1), num_steps=9)
  _, then = side.collect(_policy, 0.5, state, num_steps=5)
  other = _worlds(column=column)
  _, again = other.collect(_policy, 0.5, state, num_steps=5)
  for x, y in zip(then, again, strict=True):
    np.testing.assert_array_equal(x, y)
  if column == 'image':
    assert first.seen.shape == (9, 2, 24, 24, 3)
    assert first.seen.dtype == np.uint8
    assert state.frames.shape == (2, 3, 24, 24, 3)
    # The last three frames, of the second episode.
    np.testing.assert_array_equal(
      state.frames[:, -2:], first.then[-2:].swapaxes(0, 1)
    )


def test_test_episodes_have_seeds_of_their_own(suite):
  side = _worlds(column='features')
  told = side.returns(_policy, 0.3, seed=5, episodes=2)
  np.testing.assert_array_equal(
    told, side.returns(_policy, 0.3, seed=5, episodes=2)
  )
  assert told[0] != told[1]
  seen = side.first(5, 0)
  np.testing.assert_array_equal(seen, side.first(5, 0))
  assert not np.array_equal(seen, side.first(5, 1))


def test_looks_change_pictures_and_no_rewards(suite):
  video = videos.waves(size=24, num=3, seed=0)
  told, pictures = {}, {}
  for look in control_suite.LOOKS:
    side = _worlds(num=1, look=look, video=video)
    pictures[look] = side.first(0, 0)
    told[look] = side.next(np.array([0.5]), 1, pictures[look])[1]
    # The same colours come with the same episode, and others with another.
    np.testing.assert_array_equal(side.first(0, 0), pictures[look])
  assert len(set(told.values())) == 1
  plain = pictures['training'].astype(float)
  far = {k: abs(x - plain).mean() for k, x in pictures.items()}
  assert far['colours_hard'] > far['colours_easy'] > 1
  # The video is in a part of the picture, and there it is the video.
  same = (pictures['video'] == np.tile(video[0], 3)).all(-1)
  assert 0.1 < same.mean() < 0.99
  np.testing.assert_array_equal(
    pictures['video'][~same], pictures['training'][~same]
  )


def test_what_is_unknown_is_refused(suite):
  with pytest.raises(types.InputError, match='no task'):
    control_suite.ControlSuite('cartpole-fly')
  with pytest.raises(types.InputError, match='look'):
    _worlds(look='dark')
  with pytest.raises(types.InputError, match='needs pictures'):
    _worlds(look='video')


def test_without_the_package_one_line_says_what_to_do(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'dm_control', None)
  with pytest.raises(types.InputError, match=r'repjax\[dmcontrol\]') as error:
    simulator.Simulator('walker-walk')
  assert '--preset=small' in str(error.value)


def test_without_a_renderer_one_line_says_what_to_do():
  class Blind:
    def render(self, size):
      raise AttributeError("'NoneType' object has no attribute 'glGetError'")

  with pytest.raises(types.InputError, match='MUJOCO_GL=egl'):
    simulator.check_renderer(Blind(), 10)


def test_videos_are_read_in_order_and_made_of_waves(tmp_path):
  for index, shade in enumerate((10, 200)):
    image = np.full((12, 20, 3), shade, np.uint8)
    Image.fromarray(image).save(tmp_path / f'{index}.png')
  read = videos.read_video(str(tmp_path), size=8)
  assert [x.shape for x in read] == [(8, 8, 3)] * 2
  assert [int(x[0, 0, 0]) for x in read] == [10, 200]
  with pytest.raises(types.InputError, match='holds no PNG'):
    videos.read_video(str(tmp_path / 'nowhere'), size=8)
  made = videos.waves(size=8, num=3, seed=0)
  assert not np.array_equal(made[0], made[1])
  assert {x.dtype for x in made} == {np.dtype(np.uint8)}
