"""How much padding a stride consumes, and how often places are read."""

import numpy as np
import pytest

from repjax.layers import pad_arithmetic
from repjax.types import InputError

Window = pad_arithmetic.Window


@pytest.mark.parametrize(
  ('size', 'kernel', 'pads', 'consumed', 'out'),
  [
    (224, 7, (3, 3), (3, 2), 112),
    (112, 3, (1, 1), (1, 0), 56),
    (225, 7, (3, 3), (3, 3), 113),
    (113, 3, (1, 1), (1, 1), 57),
    (32, 3, (1, 1), (1, 0), 16),
    (33, 3, (1, 1), (1, 1), 17),
    (32, 3, (0, 1), (0, 1), 16),  # 'SAME': the other side.
    (224, 2, (0, 0), (0, 0), 112),  # Pooling of VGG.
  ],
)
def test_what_a_stride_of_two_consumes(size, kernel, pads, consumed, out):
  window = Window(size, kernel, 2, 1, *pads)
  assert (window.consumed, window.out) == (consumed, out)
  assert window.is_even == (consumed[0] == consumed[1])


@pytest.mark.parametrize('kernel', [1, 2, 3, 5])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('pads', [(0, 0), (1, 1), (0, 1), (2, 2)])
def test_consumption_is_what_sliding_over_the_places_finds(
  kernel, stride, dilation, pads
):
  for size in range(4, 12):
    window = Window(size, kernel, stride, dilation, *pads)
    length = size + sum(pads)
    reach = (kernel - 1) * dilation + 1
    starts = [i for i in range(0, length, stride) if i + reach <= length]
    last = max(starts) + reach - 1 if starts else -1
    assert window.out == len(starts)
    if not starts:
      continue
    assert window.consumed[1] == max(0, last - (pads[0] + size - 1))
    assert window.unread == max(0, pads[0] + size - 1 - last)
    if pads[0] == pads[1]:  # The paper's condition (section 4).
      whole = (size + 2 * pads[0] - reach) % stride == 0
      assert window.is_even == whole


# Of the authors' interactive article, along one side (their tables are outer
# products of these), from the border inwards.
COUNTS = dict(
  valid=(3, (1, 2, 3)),
  zero=(3, (2, 3, 3)),
  circular=(3, (3, 3, 3)),
  symmetric=(3, (3, 3, 3)),
  reflect=(3, (2, 4, 3, 3)),
  partial=(3, (2.5, 3.5, 3, 3)),
  replicate=(5, (6, 4, 5, 5)),
)
# Of five by five kernels, and of three by three with 'replicate'.
MORE = [
  ('zero', 5, (3, 4, 5)),
  ('circular', 5, (5, 5, 5)),
  ('symmetric', 5, (5, 5, 5)),
  ('reflect', 5, (3, 6, 6)),
  ('replicate', 3, (3, 3, 3)),
]


@pytest.mark.parametrize(
  ('mode', 'kernel', 'expected'),
  [(mode, *rest) for mode, rest in COUNTS.items()] + MORE,
)
def test_places_are_read_as_often_as_the_authors_count(mode, kernel, expected):
  pads = 0 if mode == 'valid' else kernel // 2
  window = Window(12, kernel, before=pads, after=pads)
  counts = pad_arithmetic.uses(window, 'zero' if pads == 0 else mode).sum(0)
  np.testing.assert_allclose(counts[: len(expected)], expected, rtol=1e-12)
  np.testing.assert_allclose(counts, counts[::-1], rtol=1e-12)


def test_full_padding_reads_all_places_alike():
  window = Window(9, 3, before=2, after=2)
  np.testing.assert_array_equal(pad_arithmetic.uses(window).sum(0), 3)


def test_balanced_is_the_least_that_gives_as_many_windows():
  assert pad_arithmetic.balanced(Window(33, 3, 2, 1, 0, 2)) == 1
  assert pad_arithmetic.balanced(Window(32, 4, 2, 1, 1, 1)) == 1
  assert pad_arithmetic.balanced(Window(32, 3, 2, 1, 1, 1)) is None
  counts = pad_arithmetic.uses(Window(8, 4, 2, 1, 0, 2), 'balanced').sum(0)
  np.testing.assert_array_equal(counts, counts[::-1])
  with pytest.raises(InputError, match='an even kernel; or maps of another'):
    pad_arithmetic.uses(Window(32, 3, 2, 1, 1, 1), 'balanced')


def test_other_sizes_are_a_remedy_with_a_stride_alone():
  for size in range(4, 40):
    window = Window(size, 4, before=1, after=2)
    with pytest.raises(InputError, match=r'take an odd kernel$'):
      pad_arithmetic.uses(window, 'balanced')
  pad_arithmetic.uses(Window(32, 5, before=2, after=2), 'balanced')


def test_padding_wider_than_the_map_is_refused():
  with pytest.raises(InputError, match=r"at most 2 places .* use 'replicate'"):
    pad_arithmetic.uses(Window(3, 7, before=3, after=3), 'reflect')
  pad_arithmetic.uses(Window(3, 7, before=3, after=3), 'symmetric')
