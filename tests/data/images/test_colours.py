"""Coloured images against the formula, pixel by pixel."""

import pickle

import numpy as np
import pytest

from repjax import types
from repjax.data.images import colours
from repjax.data.reading import source as sources

INKS = ((1.0, 0.0, 0.0), (0.2, 0.6, 1.0))
PAPER = (0.0, 0.5, 1.0)


def grey(num_rows=20, channels=1):
  rng = np.random.default_rng(0)
  return sources.from_arrays(
    'grey',
    {
      'image': rng.integers(
        256, size=(num_rows, 3, 4, channels), dtype=np.uint8
      ),
      'label': np.arange(num_rows) % 5,
    },
    num_classes=5,
  )


def test_every_pixel_is_a_mean_of_ink_and_paper():
  plain = grey()
  rows = pickle.loads(
    pickle.dumps(colours.painted(plain, INKS, seed=0, paper=PAPER))
  )
  assert rows.image_shape == rows.read([0])['image'].shape[1:] == (3, 4, 3)
  columns, old = (x.read(np.arange(20)) for x in (rows, plain))
  np.testing.assert_array_equal(columns['label'], old['label'])
  assert columns['image'].dtype == np.uint8
  for row in range(20):
    ink = INKS[columns['ink'][row]]
    for channel in range(3):
      share = old['image'][row, ..., 0] / 255
      expected = 255 * (share * ink[channel] + (1 - share) * PAPER[channel])
      actual = columns['image'][row, ..., channel]
      np.testing.assert_allclose(actual, expected, atol=0.51)


def test_a_row_keeps_its_ink_and_all_inks_are_used():
  rows = colours.painted(grey(200), INKS, seed=3, keep_grey=True)
  first, again = rows.read([5, 9]), rows.read([9, 5])
  np.testing.assert_array_equal(first['image'], again['image'][::-1])
  np.testing.assert_array_equal(first['grey'], grey(200).read([5, 9])['image'])
  share = rows.column('ink').mean()
  assert 0.35 < share < 0.65
  other = colours.painted(grey(200), INKS, seed=4)
  assert (other.column('ink') != rows.column('ink')).any()
  assert 'grey' not in other.read([0])


def test_what_cannot_be_painted_is_refused():
  with pytest.raises(types.InputError, match='only grey images'):
    colours.painted(grey(channels=3), INKS, seed=0)
  with pytest.raises(types.InputError, match=r'Colours are in \[0, 1\]'):
    colours.painted(grey(), [(2.0, 0.0, 0.0)], seed=0)
  with pytest.raises(types.InputError, match='one or several'):
    colours.painted(grey(), [], seed=0)
