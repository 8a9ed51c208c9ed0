"""Masks: counts and places, by simulation and by their definition."""

import numpy as np
import pytest

from repjax.data.images import block_masks
from repjax.types import InputError


def draw(sampler, count, seed=0):
  rng = np.random.default_rng(seed)
  return np.stack([sampler(rng) for _ in range(count)])


@pytest.fixture(scope='module')
def published():
  sampler = block_masks.as_in_code((14, 14), num_masked=75)
  return draw(sampler, 2000)


def test_counts_of_the_code_are_those_of_the_published_one(published):
  # 2,000 masks: three standard errors are 0.03 of the share and 0.07 of the
  # mean. The authors' code has 74.49 and 0.675 in 4,000 masks.
  counts = published.sum((1, 2))
  assert counts.max() == 75
  assert 74 <= counts.mean() <= 75
  assert 0.62 <= (counts == 75).mean() <= 0.73


def test_the_middle_is_hidden_more_often_than_the_corners(published):
  rate = published.mean(0)
  corners = rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
  assert rate[6:8, 6:8].mean() >= 8 * corners
  assert 0.02 < corners < 0.06


def test_the_text_hides_more_than_its_ratio():
  counts = draw(block_masks.as_in_text((14, 14)), 1000).sum((1, 2))
  assert counts.min() > 0.4 * 196
  assert 83 <= counts.mean() <= 87  # 84.6 in a simulation of the text.


def test_blocks_are_less_scattered_than_random_masks(published):
  def neighbours(masks):  # Of a hidden patch, hidden to the right of it.
    return (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks.sum()

  random = draw(block_masks.at_random((14, 14), num_masked=75), 200)
  assert (random.sum((1, 2)) == 75).all()
  assert abs(random.mean(0) - 75 / 196).max() < 0.2
  assert neighbours(published) > 1.8 * neighbours(random)


@pytest.mark.parametrize('wanted', [60, 75, 90])
def test_exact_masks_differ_from_blocks_by_the_difference(published, wanted):
  place = iter(published)
  sampler = block_masks.exactly(lambda rng: next(place), wanted)
  masks = draw(sampler, 50)
  assert (masks.sum((1, 2)) == wanted).all()
  changed = (masks != published[:50]).sum((1, 2))
  expected = abs(published[:50].sum((1, 2)) - wanted)
  np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize('grid', [(4, 4), (2, 9), (1, 3)])
def test_small_grids_end(grid):
  size = grid[0] * grid[1]
  for sampler in (
    block_masks.as_in_code(grid, num_masked=size, min_block=2),
    block_masks.as_in_text(grid, ratio=0.9, min_block=2),
  ):
    masks = draw(sampler, 20)
    assert masks.shape == (20, *grid)


def test_places_are_row_by_row_and_padded():
  mask = np.zeros((2, 3), bool)
  mask[0, 2] = mask[1, 0] = True
  places, weights = block_masks.places(mask, 4)
  np.testing.assert_array_equal(places, [2, 3, 0, 0])
  np.testing.assert_array_equal(weights, [1, 1, 0, 0])
  with pytest.raises(InputError, match=r'hides 2 patches.* room for 1'):
    block_masks.places(mask, 1)


def test_masks_of_a_batch_follow_the_draws_of_their_row():
  sampler = block_masks.at_random((4, 4), num_masked=5)
  hide = block_masks.hide(sampler, 6)
  draws = np.random.default_rng(0).random((8, hide.num_draws))
  columns = {'image': np.zeros((8, 4, 4, 1))}
  made = hide.apply(columns, draws)
  assert made['masked'].shape == made['masked_weight'].shape == (8, 6)
  assert len(np.unique(made['masked'], axis=0)) > 1
  assert set(columns) == {'image'}
  half = hide.apply({}, draws[3:5])
  np.testing.assert_array_equal(half['masked'], made['masked'][3:5])


def test_fixed_masks_depend_on_seed_and_row():
  sampler = block_masks.at_random((4, 4), num_masked=5)
  few, many, other = (
    block_masks.fixed(sampler, 5, n, seed=seed)['masked']
    for n, seed in ((3, 0), (6, 0), (6, 1))
  )
  np.testing.assert_array_equal(few, many[:3])
  assert (many != other).any()


@pytest.mark.parametrize(
  'make',
  [
    lambda: block_masks.as_in_text((4, 4), ratio=1.0, min_block=2),
    lambda: block_masks.as_in_text((4, 4), ratio=0.4, min_block=17),
    lambda: block_masks.as_in_code((4, 4), num_masked=17),
    lambda: block_masks.as_in_code((4, 4), num_masked=4, min_aspect=0.0),
    lambda: block_masks.as_in_code(
      (4, 4), num_masked=4, min_block=1, attempts=0
    ),
    lambda: block_masks.at_random((4, 4), num_masked=0),
  ],
)
def test_settings_out_of_range_are_refused(make):
  with pytest.raises(InputError, match='got '):
    make()
