"""Patch-wise steps, against loops over pixels in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.attacks import fgsm
from repjax.attacks import pi_fgsm

RNG = np.random.default_rng(2)
ROWS, SIDE, CHANNELS = 3, 6, 2
IMAGE = RNG.uniform(0.2, 0.8, (ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32)
PLACE = RNG.normal(0, 2, IMAGE.shape).astype(np.float32)


def loss(image):
  """Waves, whose slopes turn as images move."""
  return jnp.sin(9 * image + PLACE).sum((1, 2, 3))


def gradient(image):
  return 9 * np.cos(9 * image + PLACE.astype(np.float64))


def neighbours(x, row, column, half):
  """Sum over the pixels around one, in one channel of an image."""
  total = 0.0
  for i in range(row - half, row + half + 1):
    for j in range(column - half, column + half + 1):
      if (i, j) != (row, column) and 0 <= i < SIDE and 0 <= j < SIDE:
        total += x[i, j]
  return total


def loop(epsilon, step, num_steps, size):
  """Algorithm 1: `cut` is what is beyond epsilon, and `projection` its way."""
  image = IMAGE.astype(np.float64)
  x, amplified = image.copy(), np.zeros_like(image)
  for _ in range(num_steps):
    signs = np.sign(gradient(x))
    amplified += step * signs
    cut = np.clip(abs(amplified) - epsilon, 0, None) * np.sign(amplified)
    projection = np.zeros_like(x)
    for n, i, j, c in np.ndindex(x.shape):
      around = neighbours(cut[n, :, :, c], i, j, size // 2)
      projection[n, i, j, c] = step * np.sign(around)
    amplified += projection
    x = x + step * signs + projection
    x = np.clip(np.clip(x, image - epsilon, image + epsilon), 0, 1)
  return x


# Numbers of which all sums are exact, so that no excess is rounding.
@pytest.mark.parametrize('size', [3, 5])
@pytest.mark.parametrize(
  ('epsilon', 'num_steps', 'amplification'),
  [(0.25, 8, 8.0), (0.25, 8, 4.0), (0.3125, 10, 4.0), (0.125, 4, 16.0)],
)
def test_steps_are_those_of_the_paper(epsilon, num_steps, amplification, size):
  settings = dict(epsilon=epsilon, num_steps=num_steps, size=size)
  found = pi_fgsm.pi_fgsm(
    loss, jnp.asarray(IMAGE), amplification=amplification, **settings
  )
  expected = loop(step=epsilon * amplification / num_steps, **settings)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # Patches do something.
  alone = fgsm.pgd(
    loss,
    jnp.asarray(IMAGE),
    None,
    epsilon=epsilon,
    step_size=epsilon * amplification / num_steps,
    num_steps=num_steps,
  )
  assert abs(np.asarray(found - alone)).max() > epsilon / 2


@pytest.mark.parametrize(
  ('num_steps', 'amplification'),
  [(7, 10), (6, 10), (13, 10), (10, 7), (3, 1), (1, 3), (11, 3), (10, 6)],
)
def test_a_rest_of_rounding_moves_no_pixel(num_steps, amplification):
  total = RNG.integers(-6, 7, (200, 8, 8, 3))
  # Compiled, as attacks are: products and sums are then rounded together.
  around = functools.partial(
    pi_fgsm._around, limit=num_steps / amplification, size=3
  )
  found = jax.jit(around)(jnp.asarray(total, jnp.float32))
  # Integers, of which all sums are exact.
  excess = np.maximum(abs(total) * amplification - num_steps, 0)
  excess *= np.sign(total)
  padded = np.pad(excess, ((0, 0), (1, 1), (1, 1), (0, 0)))
  wanted = -excess
  for i, j in np.ndindex(3, 3):
    wanted += padded[:, i : i + 8, j : j + 8]
  assert (wanted == 0).sum() > 100
  np.testing.assert_array_equal(found, np.sign(wanted))


@pytest.mark.parametrize('amplification', [1.0, 0.5])
def test_nothing_is_passed_on_within_the_ball(amplification):
  image = jnp.asarray(IMAGE)
  found = pi_fgsm.pi_fgsm(loss, image, epsilon=0.2, amplification=amplification)
  alone = fgsm.pgd(
    loss,
    image,
    None,
    epsilon=0.2,
    step_size=0.02 * amplification,
    num_steps=10,
  )
  np.testing.assert_allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize('num_steps', [1, 3, 7, 10])
def test_a_step_of_epsilon_has_no_excess(num_steps):
  # Whatever a number of tenths, or of sevenths, is rounded to.
  image = jnp.full((1, 5, 5, 1), 0.5)
  for epsilon in (0.01, 8 / 255, 0.1, 0.3):
    found = pi_fgsm.pi_fgsm(
      # Flat behind the first step.
      lambda x: jnp.minimum(x[:, 2, 2], 0.505).sum(-1),
      image,
      epsilon=epsilon,
      num_steps=num_steps,
      amplification=float(num_steps),
    )
    moved = np.asarray(found - image)[0, ..., 0]
    np.testing.assert_allclose(moved[2, 2], epsilon, rtol=1e-5)
    assert np.count_nonzero(moved) == 1


def test_the_excess_of_a_pixel_moves_its_patch():
  image = jnp.full((1, 7, 7, 1), 0.5)
  found = pi_fgsm.pi_fgsm(
    lambda x: x[:, 3, 3].sum(-1),
    image,
    epsilon=0.2,
    num_steps=2,
    amplification=4.0,
  )
  moved = np.array(found - image)[0, ..., 0]
  # By the first step the eight around it, by the second those around these.
  np.testing.assert_allclose(moved[1:6, 1:6], 0.2, atol=1e-6)
  moved[1:6, 1:6] = 0
  assert (moved == 0).all()


def test_the_result_stays_in_the_ball_and_in_the_box():
  epsilon = np.float32([0.05, 0.3])
  found = pi_fgsm.pi_fgsm(
    loss, jnp.asarray(IMAGE), epsilon=jnp.asarray(epsilon), low=0.15, high=0.85
  )
  assert (abs(np.asarray(found - IMAGE)) <= epsilon + 1e-6).all()
  assert found.min() >= 0.15 and found.max() <= 0.85


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    (dict(size=4), 'odd'),
    (dict(amplification=0.0), 'amplification'),
    (dict(num_steps=0), 'num_steps'),
    (dict(high=0.5), 'units'),
  ],
)
def test_what_is_no_patch_is_refused(settings, says):
  with pytest.raises(types.InputError, match=says):
    pi_fgsm.pi_fgsm(loss, jnp.asarray(IMAGE), epsilon=0.1, **settings)
