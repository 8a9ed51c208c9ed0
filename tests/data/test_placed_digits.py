"""Placed pictures: whole, anywhere, among pieces of others."""

import dataclasses

import numpy as np
import pytest

from repjax.data.reading import source
from repjax.data.sets import placed_digits
from repjax.types import InputError


def digits(count=6, side=4):
  # Every picture has values of its own.
  image = 10 * np.arange(1, count + 1)[:, None, None, None]
  image = image + np.arange(side * side).reshape((1, side, side, 1)) % 7
  return source.from_arrays(
    'digits',
    {
      'image': image.astype(np.uint8),
      'label': np.arange(count, dtype=np.int32),
    },
    num_classes=count,
    split='train',
  )


def test_without_clutter_a_row_is_its_picture_somewhere():
  small = digits()
  placed = placed_digits.place(small, size=9, seed=0, copies=5, clutter=0)
  rows = placed.read(np.arange(len(placed)))
  assert len(placed) == 30 and placed.num_classes == 6
  corners = set()
  for image, label, digit in zip(
    rows['image'], rows['label'], rows['digit'], strict=True
  ):
    assert label == digit
    down, right = (np.flatnonzero(image[..., 0].any(axis)) for axis in (1, 0))
    found = image[down[0] : down[-1] + 1, right[0] : right[-1] + 1]
    np.testing.assert_array_equal(found, small.read([digit])['image'][0])
    corners.add((down[0], right[0]))
  assert len(corners) > 10
  assert corners <= {(i, j) for i in range(6) for j in range(6)}


def test_clutter_is_of_pictures_and_seeds_decide():
  small = digits()
  sets = [
    placed_digits.place(small, size=12, seed=seed, clutter=3, patch=2)
    for seed in (0, 0, 1)
  ]
  first, again, other = (x.column('image') for x in sets)
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  known = set(small.column('image').ravel()) | {0}
  assert set(first.ravel()) <= known
  bare = placed_digits.place(small, size=12, seed=0, clutter=0)
  assert (first > 0).sum() > (bare.column('image') > 0).sum()


@pytest.mark.parametrize(
  'settings, word',
  [
    (dict(size=3), 'size >= 4'),
    (dict(size=9, patch=5), 'patch <= 4'),
    (dict(size=9, copies=0), 'copies'),
    (dict(size=9, clutter=-1), 'clutter'),
  ],
)
def test_what_does_not_fit_is_refused(settings, word):
  with pytest.raises(InputError, match=word):
    placed_digits.place(digits(), seed=0, **settings)


def test_coloured_pictures_are_refused_and_left_alone():
  colour = source.from_arrays(
    'colour',
    {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': np.zeros(2, np.int32)},
    split='train',
  )
  with pytest.raises(InputError, match='grey'):
    placed_digits.place(colour, size=9, seed=0)
  assert placed_digits.place(colour, size=0, seed=0) is colour


def test_files_are_not_placed_under_their_names():
  own = dataclasses.replace(digits(), split='inputs:photos')
  with pytest.raises(InputError, match='take no files'):
    placed_digits.place(own, size=9, seed=0)
  assert placed_digits.place(own, size=0, seed=0) is own
