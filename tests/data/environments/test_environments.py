"""Worlds are what a loop in NumPy says, and looks change no task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.data.environments import environment
from repjax.data.environments import pendulum
from repjax.data.environments import point_mass


def walk(env, policy, looks, key, of=environment.walk):
  walked = jax.jit(functools.partial(of, env, policy))(looks, key)
  return jax.device_get(walked)


def test_the_point_moves_and_earns_as_a_loop_says():
  env = point_mass.make(size=8, num_steps=30)
  looks = environment.repeat(point_mass.make_look(gain=0.5), 2)
  walked = walk(env, environment.uniform_policy(2), looks, jax.random.key(0))
  for episode in range(2):
    at = np.asarray(walked.state.agent[0, episode], np.float64)
    for t in range(30):
      np.testing.assert_allclose(walked.state.agent[t, episode], at, atol=1e-5)
      action = np.asarray(walked.action[t, episode], np.float64)
      action /= max(1.0, np.hypot(*action))
      x, y = (at - 0.5) / np.hypot(*(at - 0.5))
      around = max(0.0, x * action[1] - y * action[0])
      at = np.clip(at + 0.08 * action, 0.05, 0.95)
      off = (np.hypot(*(at - 0.5)) - 0.3) / 0.1
      np.testing.assert_allclose(
        walked.reward[t, episode], around * np.exp(-(off**2)), atol=1e-4
      )


def test_a_picture_is_what_two_loops_over_pixels_paint():
  look = point_mass.make_look(
    agent=(0.9, 0.2, 0.1),
    background=(0.1, 0.2, 0.3),
    gain=0.8,
    waves=(0.3, 0.0, 0.1),
    speed=0.1,
  )
  state = point_mass.State(jnp.array([0.3, 0.7]), jnp.array(3), look)
  image = np.asarray(jax.jit(point_mass.make(size=8).observe)(state))
  for row in range(8):
    for column in range(8):
      x, y = (column + 0.5) / 8, (row + 0.5) / 8
      stripe = 0.5 + 0.5 * np.sin(4 * np.pi * (x - 0.3))
      pixel = np.array([0.1, 0.2, 0.3]) + stripe * np.array([0.3, 0.0, 0.1])
      for place, colour in (
        ((0.5, 0.5), (0.0, 1.0, 0.0)),
        ((0.3, 0.7), (0.9, 0.2, 0.1)),
      ):
        square = (x - place[0]) ** 2 + (y - place[1]) ** 2
        cover = np.exp(-square / (2 * 0.08**2))
        pixel = (1 - cover) * pixel + cover * np.array(colour)
      np.testing.assert_allclose(
        image[row, column], np.clip(0.8 * pixel, 0, 1), atol=1e-5
      )


def test_the_teacher_earns_far_more_than_chance():
  env = point_mass.make()
  looks = environment.repeat(point_mass.make_look(), 8)
  by_chance = walk(env, environment.uniform_policy(2), looks, jax.random.key(0))
  taught = walk(
    env,
    lambda states, seen, keys: jax.vmap(point_mass.expert)(states),
    looks,
    jax.random.key(0),
    of=environment.walk_of_states,
  )
  assert taught.reward.sum(0).min() > 80 > 20 > by_chance.reward.sum(0).max()


@pytest.mark.parametrize('kind', point_mass.KINDS)
def test_looks_of_a_kind_differ_and_change_no_task(kind):
  looks = point_mass.draw_looks(kind, num=3, seed=0)
  again = point_mass.draw_looks(kind, num=3, seed=0)
  stacked = point_mass.stack_looks(looks)
  jax.tree.map(
    np.testing.assert_array_equal, stacked, point_mass.stack_looks(again)
  )
  env = point_mass.make(size=8, num_steps=4)
  reset = jax.jit(jax.vmap(env.reset, (None, 0)))
  states = reset(jax.random.key(0), stacked)
  pictures = np.asarray(jax.jit(jax.vmap(env.observe))(states))
  assert len({x.tobytes() for x in pictures}) == 3
  step = jax.jit(jax.vmap(env.step, (0, None)))
  _, rewards = step(states, jnp.array([0.5, 0.1]))
  assert len(set(rewards.tolist())) == 1
  with pytest.raises(types.InputError, match='kind'):
    point_mass.draw_looks('smell', num=1, seed=0)


def test_the_pendulum_swings_as_a_loop_says():
  env = pendulum.make(num_steps=50)
  walked = walk(
    env,
    environment.uniform_policy(1),
    environment.repeat(pendulum.LOOK, 1),
    jax.random.key(2),
  )
  angle, speed = (float(x[0, 0]) for x in walked.state)
  for t in range(50):
    np.testing.assert_allclose(
      walked.observation[t, 0],
      [np.cos(angle), np.sin(angle), speed],
      atol=2e-3,
    )
    torque = 2 * float(walked.action[t, 0, 0])
    off = np.arctan2(np.sin(angle), np.cos(angle))
    cost = off**2 + 0.1 * speed**2 + 0.001 * torque**2
    np.testing.assert_allclose(
      walked.reward[t, 0], -cost / (np.pi**2 + 6.404), atol=2e-3
    )
    speed += (15 * np.sin(angle) + 3 * torque) * 0.05
    speed = float(np.clip(speed, -8, 8))
    angle += 0.05 * speed


def test_what_is_seen_after_a_step_is_seen_before_the_next():
  walked = walk(
    pendulum.make(num_steps=5),
    environment.uniform_policy(1),
    environment.repeat(pendulum.LOOK, 2),
    jax.random.key(1),
  )
  np.testing.assert_array_equal(
    walked.next_observation[:-1], walked.observation[1:]
  )


def test_a_pendulum_begins_anywhere():
  keys = jax.random.split(jax.random.key(0), 1000)
  reset = jax.jit(jax.vmap(pendulum.make().reset, (0, None)))
  state = jax.device_get(reset(keys, pendulum.LOOK))
  for x, most in ((state.angle, np.pi), (state.speed, 1.0)):
    assert -most <= x.min() < -0.95 * most
    assert 0.95 * most < x.max() <= most
