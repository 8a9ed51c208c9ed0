"""Features of a part of an image are means over the places of the part."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from repjax import types
from repjax.analysis import masked_features


class _Squares(nn.Module):
  """Maps whose places are known: means of 2 x 2 pixels, and their squares."""

  @nn.compact
  def __call__(self, image):
    small = nn.avg_pool(image, (2, 2), (2, 2))
    return _Square(name='square')(small)


class _Square(nn.Module):
  def __call__(self, x):
    return x**2


def _apply(variables, image):
  return _Squares().apply(variables, image)


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype(np.float32)


def test_a_mask_of_whole_places_gives_their_mean(image):
  mask = np.zeros((5, 4, 4), bool)
  mask[:, :2, 2:] = mask[:, 2:, 2:] = True
  found = masked_features.of_images(
    _apply, {}, image, mask, ('', 'square'), batch_size=2
  )
  small = image.reshape(5, 2, 2, 2, 2, 2).mean((2, 4))
  np.testing.assert_allclose(found[:, :2], image[:, :, 2:].mean((1, 2)), 1e-4)
  # Shrunk masks blur over their edge, by the same share in both places.
  right = (small[:, :, 1] ** 2).mean(1)
  left = (small[:, :, 0] ** 2).mean(1)
  share = (found[:, 2:] - left) / (right - left)
  np.testing.assert_allclose(share, share[0, 0], rtol=1e-3)
  assert 0.8 < share[0, 0] <= 1


def test_a_small_mask_does_not_vanish_and_an_empty_one_gives_0(image):
  mask = np.zeros((5, 4, 4), bool)
  mask[1, 3, 3] = True
  found = masked_features.of_images(_apply, {}, image, mask, ('square',))
  assert not found[[0, 2, 3, 4]].any()
  assert found[1].all()


def test_every_pixel_of_a_mask_counts_wherever_maps_are_coarse():
  # Of 12 x 12 pixels 2 x 2 places: most pixels lie between their middles.
  mask = np.eye(144, dtype=bool).reshape(144, 12, 12)
  maps = np.broadcast_to(np.eye(4).reshape(2, 2, 4), (144, 2, 2, 4))
  shares = np.asarray(jax.jit(masked_features.pooled)(maps, mask))
  np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
  row, column = np.divmod(np.arange(144), 12)
  own = 2 * (row // 6) + column // 6
  assert (shares[np.arange(144), own] == shares.max(1)).all()


def test_exemplars_are_images_with_masks(image):
  rows = np.array([[0, 3, 1], [4, 4, 2]])
  mask = np.random.default_rng(1).random((2, 3, 4, 4)) < 0.5
  found = masked_features.of_exemplars(
    _apply, {}, lambda x: image[x], rows, mask, ('', 'square')
  )
  expected = masked_features.of_images(
    _apply, {}, image[rows[1]], mask[1], ('', 'square')
  )
  assert found.shape == (2, 3, 4)
  np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('layers', 'size', 'message'),
  [
    ((), 4, 'at least one layer'),
    (('cube',), 4, "no layer 'cube'"),
    (('square',), 3, 'masks of images'),
  ],
)
def test_bad_input_is_said_in_one_line(image, layers, size, message):
  mask = np.ones((5, size, size), bool)
  with pytest.raises(types.InputError, match=message):
    masked_features.of_images(_apply, {}, image, mask, layers)
