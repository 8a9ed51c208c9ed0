"""The loop that the attack is timed against makes the images of the attack."""

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks import attack_speed
from repjax.attacks import fgsm


def test_a_loop_of_steps_is_the_attack():
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(3, 4, 4, 1)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(1, 4, 4, 1)), jnp.float32)

  def loss_fn(x):
    return jnp.sin(3 * x * weights).sum((1, 2, 3))

  settings = dict(epsilon=0.3, num_steps=4)
  found = attack_speed.by_steps(
    jax.grad(lambda x: loss_fn(x).sum()), image, **settings
  )
  expected = fgsm.mi_fgsm(loss_fn, image, **settings)
  assert abs(expected - image).max() > 0.2
  np.testing.assert_allclose(found, expected, atol=1e-6)
