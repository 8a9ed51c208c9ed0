"""Our pendulum swings as Gymnasium's does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.data.environments import pendulum

pytestmark = pytest.mark.parity


def test_a_whole_episode_is_gymnasiums():
  gymnasium = pytest.importorskip('gymnasium')
  theirs = gymnasium.make('Pendulum-v1')
  theirs.reset(seed=0)
  env = pendulum.make()
  step = jax.jit(env.step)
  rng = np.random.default_rng(0)
  total = 0.0
  for t in range(200):
    action = rng.uniform(-1.2, 1.2)
    angle, speed = theirs.unwrapped.state
    # From their state each time: a swing up is chaotic in float32.
    state = pendulum.State(jnp.float32(angle), jnp.float32(speed))
    np.testing.assert_allclose(
      env.observe(state), theirs.unwrapped._get_obs(), atol=1e-5
    )
    state, reward = step(state, jnp.array([action]))
    seen, expected, _, over, _ = theirs.step(np.array([2 * action]))
    np.testing.assert_allclose(env.observe(state), seen, atol=2e-5)
    np.testing.assert_allclose(reward * pendulum.SCALE, expected, atol=2e-4)
    total += expected
    assert over == (t == 199)
  assert total < -500
  theirs.close()
