"""Gratings and spots: what they show, and that seeds decide everything."""

import numpy as np
import pytest

from repjax.data.sets import gratings
from repjax.data.sets import spots
from repjax.types import InputError


def test_gratings_have_the_direction_of_their_class():
  rows = gratings.draw(40, seed=0, noise=0.0).columns()
  image, label = rows['image'][..., 0].astype(float), rows['label']
  assert np.bincount(label).tolist() == [10] * 4
  down, right = np.gradient(image, axis=(1, 2))
  # The mean of the slopes' squares, as a direction over half a turn.
  angle = np.arctan2(
    2 * (down * right).sum((1, 2)), (right**2 - down**2).sum((1, 2))
  )
  turns = np.exp(1j * (angle - 2 * np.pi * label / 4))
  assert turns.real.min() > 0.95
  assert abs(image.mean() - 127.5) < 1
  assert abs(np.ptp(image) / 255 - 0.5) < 0.01  # Twice the contrast.


def test_spots_are_where_their_boxes_are():
  rows = spots.draw(30, seed=0, side=16, size=4, contrast=0.5, noise=0.0)
  rows = rows.columns()
  assert rows['label'].sum() == 15
  for image, box, label in zip(
    rows['image'], rows['box'], rows['label'], strict=True
  ):
    bright = np.argwhere(image[..., 0] > 150)
    if not label:
      assert not len(bright) and not box.any()
      continue
    first, last = bright.min(0), bright.max(0)
    np.testing.assert_allclose(box[:2], (first + last + 1) / 2)
    np.testing.assert_allclose(box[2:], 4)
    assert len(bright) == 16


def test_spots_are_no_larger_than_images():
  with pytest.raises(InputError, match='size'):
    spots.draw(2, seed=0, side=16, size=17)


@pytest.mark.parametrize('draw', [gratings.draw, spots.draw])
def test_seeds_decide_everything(draw):
  first, again, other = (draw(12, seed=s).columns() for s in (0, 0, 1))
  np.testing.assert_array_equal(first['image'], again['image'])
  assert (first['image'] != other['image']).mean() > 0.5
  with pytest.raises(InputError, match='noise'):
    draw(12, seed=0, noise=2)
  with pytest.raises(InputError, match='num_rows'):
    draw(0, seed=0)
