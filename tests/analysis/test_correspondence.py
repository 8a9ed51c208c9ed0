"""Correspondences of networks that see where all is, and of blind ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.analysis import correspondence

GRID, SIZE = 4, 3
IMAGE = jnp.asarray(
  np.random.default_rng(0).uniform(size=(5, GRID * SIZE, GRID * SIZE, 2)),
  jnp.float32,
)


def _pixels(image):
  """Regions are their own pixels: translation moves them, and nothing else."""
  x = image.reshape((len(image), GRID, SIZE, GRID, SIZE, -1))
  return x.swapaxes(2, 3).reshape((len(image), GRID * GRID, -1))


def _blind(image):
  return jnp.ones((len(image), GRID * GRID, 3))


@pytest.mark.parametrize('shift', [(1, 0), (-1, 0), (0, 2), (1, -1)])
def test_what_moves_with_the_image_is_found(shift):
  found = correspondence.shifted(_pixels, IMAGE, grid=GRID, shift=shift)
  assert found.accuracy() == 1
  down, right = shift
  for place, expected in enumerate(found.expected):
    row, column = place // GRID + down, place % GRID + right
    inside = 0 <= row < GRID and 0 <= column < GRID
    assert expected == (row * GRID + column if inside else -1)
    assert found.counted[:, place].all() == inside


def test_who_sees_nothing_is_right_by_chance_alone():
  found = correspondence.shifted(_blind, IMAGE, grid=GRID, shift=(0, 1))
  # Region 0 each time, and it is nobody's.
  assert found.accuracy() == 0


def test_noise_makes_it_harder_and_ground_is_not_counted():
  shifted = functools.partial(
    correspondence.shifted, _pixels, grid=GRID, shift=(0, 1)
  )
  noisy = shifted(IMAGE, noise=3.0, rng=jax.random.key(0))
  assert noisy.accuracy() < 0.9
  image = IMAGE.at[:, :SIZE].set(0.0)
  found = shifted(image, least=0.05)
  assert not found.counted[:, :GRID].any()
  assert found.counted[:, GRID : 2 * GRID - 1].all()
  assert found.accuracy() == 1


def test_ground_has_a_colour_of_its_own():
  ground = jnp.asarray([-2.12, -1.8])
  image = jnp.concatenate(
    [
      IMAGE[:, : SIZE * 2],
      jnp.broadcast_to(ground, IMAGE[:, SIZE * 2 :].shape),
    ],
    1,
  )
  found = correspondence.shifted(
    _pixels, image, grid=GRID, shift=(-1, 0), least=0.05
  )
  # The upper half alone shows something, and its first row leaves the image.
  assert found.counted.sum() == len(image) * GRID
  assert found.accuracy() == 1


def test_what_cannot_be_is_refused():
  for grid, shift in (
    (5, (1, 0)),
    (GRID, (GRID, 0)),
    (GRID, (0, 0)),
    (GRID, [0, 0]),  # As a file of settings has it.
  ):
    with pytest.raises(types.InputError, match=r'grid=5|shift='):
      correspondence.shifted(_pixels, IMAGE, grid=grid, shift=shift)
