"""Worlds that a run drives are those of a loop over single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.data.environments import pendulum
from repjax.data.environments import worlds

_ENV = pendulum.make(num_steps=5)


def _worlds(num=3):
  return worlds.Simulated(_ENV, pendulum.LOOK, num=num, column='features')


def _policy(params, seen, rng):
  return jnp.tanh(params * seen[:, 1:2]) + 0.1 * jax.random.normal(rng, (3, 1))


def test_each_step_is_the_environments():
  side = _worlds()
  _, steps = side.collect(_policy, 2.0, side.begin(7), num_steps=12)
  assert steps.seen.shape == (12, 3, 3)
  for t in range(12):
    for lane in range(3):
      cos, sin, speed = steps.seen[t, lane]
      state = pendulum.State(jnp.arctan2(sin, cos), jnp.asarray(speed))
      after, reward = _ENV.step(state, steps.action[t, lane])
      np.testing.assert_allclose(
        steps.then[t, lane], _ENV.observe(after), atol=1e-4
      )
      np.testing.assert_allclose(steps.reward[t, lane], reward, atol=1e-4)
  # What comes after a step is before the next one, but where an episode ends.
  same = [np.array_equal(steps.then[t], steps.seen[t + 1]) for t in range(11)]
  assert same == [t % 5 != 4 for t in range(11)]
  # No two episodes begin alike.
  begins = steps.seen[[0, 5, 10]].reshape(-1, 3)
  assert len({x.tobytes() for x in begins}) == 9


def test_how_steps_are_cut_into_calls_does_not_matter():
  side = _worlds()
  _, whole = side.collect(_policy, 2.0, side.begin(1), num_steps=9)
  state, parts = side.begin(1), []
  for num in (4, 2, 3):
    state, steps = side.collect(_policy, 2.0, state, num_steps=num)
    parts.append(steps)
    # As arrays on the host, such as those of a file.
    state = jax.tree.map(np.array, jax.device_get(state))
  for name, x in whole._asdict().items():
    joined = np.concatenate([part._asdict()[name] for part in parts])
    np.testing.assert_allclose(joined, x, atol=1e-5)
  _, other = side.collect(_policy, 2.0, side.begin(2), num_steps=9)
  assert not np.allclose(other.seen, whole.seen)


def test_returns_are_of_whole_episodes():
  def still(params, seen, rng):
    return jnp.zeros((seen.shape[0], 1))

  side = _worlds()
  told = side.returns(still, {}, seed=3, episodes=4)
  assert told.shape == (4,)
  np.testing.assert_array_equal(
    told, side.returns(still, {}, seed=3, episodes=4)
  )
  assert (told != side.returns(still, {}, seed=4, episodes=4)).all()
  assert ((told < 0) & (told > -5)).all()


def test_chance_is_uniform_and_no_world_is_refused():
  drawn = worlds.uniform(2)({}, jnp.zeros((500, 3)), jax.random.key(0))
  assert drawn.shape == (500, 2)
  assert abs(float(drawn.mean())) < 0.1
  np.testing.assert_allclose(jnp.var(drawn), 1 / 3, atol=0.05)
  with pytest.raises(types.InputError, match='num'):
    _worlds(0)
