"""Images as a page can show them."""

import numpy as np
import pytest

from repjax import pictures


@pytest.mark.parametrize(
  ('shape', 'shown'),
  [
    ((300, 1000, 3), (75, 250, 3)),
    ((256, 8, 1), (256, 8, 1)),
    ((8, 8, 4), (8, 8, 4)),
    ((8, 8, 2), (8, 8, 1)),
    ((2, 600, 13), (1, 200, 1)),
  ],
)
def test_what_is_shown_has_the_size_of_a_page(shape, shown):
  seen = pictures.visible(np.full((2, *shape), 7, np.uint8))
  assert seen.shape == (2, *shown)
  assert seen.dtype == np.uint8 and (seen == 7).all()
