"""One-step and many-step attacks on models whose worst case is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.attacks import fgsm

RNG = np.random.default_rng(0)
WEIGHT = jnp.asarray(RNG.normal(size=(4, 4, 3)), jnp.float32)
IMAGE = jnp.asarray(RNG.uniform(0.3, 0.7, (5, 4, 4, 3)), jnp.float32)
LABEL = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])


def margin(image):
  """Label times the linear score of each row."""
  return LABEL * jnp.tensordot(image, WEIGHT, 3)


def logistic(image):
  return jax.nn.softplus(-margin(image))


def attack(kind, **settings):
  if kind == 'fgsm':
    return fgsm.fgsm(logistic, IMAGE, **settings)
  rng = jax.random.key(0) if kind == 'pgd from a random start' else None
  return fgsm.pgd(
    logistic, IMAGE, rng, step_size=0.02, num_steps=12, **settings
  )


KINDS = ['fgsm', 'pgd', 'pgd from a random start']


@pytest.mark.parametrize('kind', KINDS)
def test_a_linear_model_loses_epsilon_times_the_l1_norm_of_its_weights(kind):
  adversarial = attack(kind, epsilon=0.1)
  expected = margin(IMAGE) - 0.1 * jnp.abs(WEIGHT).sum()
  np.testing.assert_allclose(margin(adversarial), expected, rtol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('epsilon', [0.0, 0.05, 0.6])
def test_the_result_stays_in_the_ball_and_in_the_box(kind, epsilon):
  adversarial = attack(kind, epsilon=epsilon, low=0.25, high=0.75)
  assert np.abs(adversarial - IMAGE).max() <= epsilon + 1e-7
  assert adversarial.min() >= 0.25 and adversarial.max() <= 0.75
  if epsilon == 0:
    np.testing.assert_array_equal(adversarial, IMAGE)
  elif epsilon == 0.6 and kind == 'fgsm':
    assert set(np.unique(adversarial)) == {0.25, 0.75}


def test_radius_and_box_may_differ_between_channels():
  epsilon = jnp.array([0.0, 0.05, 0.2])
  adversarial = attack(
    'fgsm', epsilon=epsilon, low=jnp.zeros(3), high=jnp.array([1, 1, 0.7])
  )
  moved = np.abs(adversarial - IMAGE).max((0, 1, 2))
  np.testing.assert_allclose(moved, [0, 0.05, 0.2], atol=1e-6)
  assert adversarial[..., 2].max() <= 0.7


def test_rows_without_a_gradient_stay_as_they_are():
  def loss(image):
    return logistic(image) * (LABEL > 0)

  adversarial = fgsm.fgsm(loss, IMAGE, epsilon=0.1)
  still = np.asarray(LABEL < 0)
  np.testing.assert_array_equal(adversarial[still], IMAGE[still])
  assert np.abs(adversarial - IMAGE)[~still].min() > 0.09


def test_many_steps_beat_one_where_the_gradient_turns():
  # The loss peaks inside the ball: one full step overshoots the peak.
  peak = IMAGE + 0.03

  def loss(image):
    return -jnp.square(image - peak).sum((1, 2, 3))

  one = fgsm.fgsm(loss, IMAGE, epsilon=0.1)
  many = fgsm.pgd(loss, IMAGE, None, epsilon=0.1, step_size=0.01, num_steps=8)
  assert (loss(many) > loss(one)).all()
  np.testing.assert_allclose(many, peak, atol=0.011)


def test_the_random_start_is_a_function_of_the_key():
  def run(seed):
    return fgsm.pgd(
      lambda image: jnp.zeros(len(image)),
      IMAGE,
      jax.random.key(seed),
      epsilon=0.1,
      step_size=0.1,
      num_steps=1,
    )

  np.testing.assert_array_equal(run(0), run(0))
  offset = np.asarray(run(0) - IMAGE)
  assert offset.min() < -0.09 and offset.max() > 0.09
  assert np.abs(run(0) - run(1)).max() > 0.01


def test_no_steps_are_refused():
  with pytest.raises(types.InputError, match='num_steps'):
    fgsm.pgd(logistic, IMAGE, None, epsilon=0.1, step_size=0.1, num_steps=0)
