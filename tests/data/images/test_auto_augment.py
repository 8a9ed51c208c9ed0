"""Each image goes through one pair of the published policy."""

import numpy as np
import pytest

from repjax import types
from repjax.data.images import auto_augment
from repjax.data.images import randaugment


def images_of(count):
  shape = (count, 12, 12, 3)
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def apply(transform, images, draws):
  return transform.apply({'image': images}, draws)['image']


def test_a_pair_is_its_two_operations_one_after_the_other():
  transform = auto_augment.auto_augment()
  assert len(auto_augment.IMAGENET) == 25
  for number, pair in enumerate(auto_augment.IMAGENET):
    image = images_of(1)
    draws = np.full((1, transform.num_draws), 0.3)
    draws[0, 0] = (number + 0.5) / 25
    expected = image
    for place, (name, percentage, magnitude) in enumerate((pair[:3], pair[3:])):
      draws[0, 1 + 4 * place] = max(percentage / 100 - 1e-6, 0.0)
      if percentage:
        table = randaugment.operations(magnitude, 250 / 331, 40 / 224)
        expected = table[name](expected, np.full((1, 3), 0.3))
    np.testing.assert_array_equal(apply(transform, image, draws), expected)


def test_operations_are_applied_as_often_as_the_policy_says():
  transform = auto_augment.auto_augment(
    policy=(('invert', 30, 0, 'solarize', 0, 5), ('invert', 0, 0) * 2)
  )
  images = images_of(4000)
  draws = np.random.default_rng(1).random((4000, transform.num_draws))
  changed = apply(transform, images, draws)
  inverted = (changed == 255 - images).all((1, 2, 3))
  same = (changed == images).all((1, 2, 3))
  assert (inverted | same).all()
  # Of half of them 30 of 100.
  np.testing.assert_allclose(inverted.mean(), 0.15, atol=0.02)
  np.testing.assert_array_equal(images, images_of(4000))  # As they were.


def test_what_cannot_be_is_refused():
  with pytest.raises(types.InputError, match='operation'):
    auto_augment.auto_augment(policy=(('blur', 10, 1, 'color', 10, 1),))
  with pytest.raises(types.InputError, match='percentage'):
    auto_augment.auto_augment(policy=(('color', 110, 1, 'color', 10, 1),))
  with pytest.raises(ValueError, match='uint8'):
    transform = auto_augment.auto_augment()
    apply(transform, images_of(2) / 255, np.zeros((2, transform.num_draws)))
