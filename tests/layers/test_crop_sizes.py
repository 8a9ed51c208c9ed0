"""How many places learnt strides keep, and how few programs that takes."""

import pytest

from repjax.layers import crop_sizes
from repjax.types import InputError


def test_maps_hardly_shrink_with_the_published_smoothness():
  # As the authors' code leaves them, counted with it.
  strides = [(2.0,)] * 3
  assert crop_sizes.chain((32, 32), strides, 4.0) == (
    (24, 24),
    (20, 20),
    (18, 18),
  )
  assert [x[0] for x in crop_sizes.chain((32,), strides, 1.0)] == [18, 12, 8]
  assert crop_sizes.chain((64, 64), [(2.0, 4.0)], 4.0) == ((40, 24),)
  # A map of 8 places never shrinks.
  assert crop_sizes.crop_size(8, 4.0, 4.0) == 8


def test_sizes_are_rounded_up_to_multiples_within_the_map():
  sizes = [
    crop_sizes.crop_size(32, stride, 1.0, multiple=8)
    for stride in (1.0, 1.3, 2.0, 2.4, 8.0)
  ]
  assert sizes == [32, 32, 24, 16, 8]
  assert crop_sizes.crop_size(30, 1.1, 1.0, multiple=16) == 30


def test_compiled_programs_are_few():
  made = []
  compiled = crop_sizes.Compiled(
    lambda sizes: made.append(sizes) or sizes, max_kept=2
  )
  small, middle, large = (((n, n),) for n in (8, 12, 16))
  assert [compiled(x) for x in (large, small, large)] == [large, small, large]
  # There is no room: the larger crop holds it, and nothing is made.
  assert compiled(middle) == large
  assert compiled.num_made == len(made) == 2
  # Nothing holds this one; `small` was not used for longest.
  wide = ((8, 20),)
  assert compiled(wide) == wide
  assert compiled(small) == wide and compiled.num_made == 3
  assert compiled(large) == large and made == [large, small, wide]


def test_a_crop_of_two_layers_needs_both_to_hold():
  compiled = crop_sizes.Compiled(lambda sizes: sizes, max_kept=1)
  compiled(((8,), (6,)))
  assert compiled(((6,), (4,))) == ((8,), (6,))
  assert compiled(((6,), (5,))) == ((6,), (5,))
  # A larger map with the same crop behind it holds fewer strides.
  kept = crop_sizes.chain((32,), [(1.0,), (2.67,)], 4.0)
  wanted = crop_sizes.chain((32,), [(2.0,), (2.0,)], 4.0)
  assert (kept, wanted) == (((32,), (20,)), ((24,), (20,)))
  compiled = crop_sizes.Compiled(lambda sizes: sizes, max_kept=1)
  compiled(kept)
  assert compiled(wanted) == wanted


@pytest.mark.parametrize('smoothness', [0.0, -1.0, 8.0, float('nan')])
def test_smoothness_is_below_the_map(smoothness):
  with pytest.raises(InputError, match='smoothness'):
    crop_sizes.check_smoothness((16, 8), smoothness)


def test_room_is_for_strides_that_fall():
  assert crop_sizes.resolve('initial', (32,), (2.0,), 1.0) == (18,)
  assert crop_sizes.resolve('initial', (32,), (2.0,), 1.0, room=1.25) == (22,)
