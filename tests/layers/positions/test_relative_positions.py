"""Relative positions: the index by hand, and resizing by FITPACK."""

import jax
import numpy as np
import pytest

from repjax.layers.positions import relative_positions
from repjax.types import InputError


def test_the_index_of_14_by_14_patches_is_the_published_one():
  index = relative_positions.index((14, 14))
  assert (
    len(np.unique(index)) == 732 == relative_positions.num_distances((14, 14))
  )
  assert index[0, 0] == 731
  assert (index[0, 1:] == 729).all()
  assert (index[1:, 0] == 730).all()


@pytest.mark.parametrize('grid', [(3, 4), (1, 5), (2, 2)])
def test_the_index_depends_on_the_offset_alone(grid):
  index = relative_positions.index(grid)[1:, 1:]
  rows, columns = grid
  by_offset = {}
  for i, j in np.ndindex(index.shape):
    (r, c), (s, d) = divmod(i, columns), divmod(j, columns)
    by_offset.setdefault((r - s, c - d), set()).add(int(index[i, j]))
  assert len(by_offset) == (2 * rows - 1) * (2 * columns - 1)
  assert all(len(found) == 1 for found in by_offset.values())
  # Row by row, so that a table is a picture of the offsets.
  assert [min(by_offset[x]) for x in sorted(by_offset)] == list(
    range(len(by_offset))
  )


def test_the_bias_is_the_table_at_the_index():
  layer = relative_positions.RelativePositionBias(2)
  params = layer.init(jax.random.key(0), (2, 3))
  assert not np.asarray(params['params']['table']).any()
  table = np.random.default_rng(0).normal(size=(18, 2)).astype(np.float32)
  bias = np.asarray(layer.apply({'params': {'table': table}}, (2, 3)))
  assert bias.shape == (2, 7, 7)
  # Query at patch (1, 2), key at patch (0, 0): offset (1, 2), the largest.
  np.testing.assert_array_equal(bias[:, 6, 1], table[14])
  np.testing.assert_array_equal(bias[:, 0, 0], table[17])
  with pytest.raises(InputError, match='3 x 3 patches needs'):
    layer.apply({'params': {'table': table}}, (3, 3))


@pytest.mark.parametrize(('old', 'new'), [(14, 24), (14, 7), (4, 6)])
def test_geometric_resizing_is_a_spline_through_stretched_offsets(old, new):
  # The authors' `interp2d` is FITPACK's spline through a grid, which SciPy
  # still has under another name.
  from scipy import interpolate

  side, new_side = 2 * old - 1, 2 * new - 1
  table = np.random.default_rng(0).normal(size=(side**2 + 3, 2))
  # The stretch, found in another way than by bisection.
  ratios = np.linspace(1.01, 1.5, 1_000_001)
  reach = (1 - ratios ** (side // 2)) / (1 - ratios)
  ratio = ratios[np.abs(reach - new_side // 2).argmin()]
  far = [sum(ratio**k for k in range(i + 1)) for i in range(side // 2)]
  place = np.array([-x for x in reversed(far)] + [0] + far)
  wanted = np.arange(new_side) - new_side // 2
  expected = np.stack(
    [
      interpolate.RectBivariateSpline(
        place, place, table[:-3, head].reshape(side, side), s=0
      )(wanted, wanted).ravel()
      for head in range(2)
    ],
    axis=1,
  )
  found = relative_positions.resize(
    table.astype(np.float32), (old, old), (new, new)
  )
  np.testing.assert_allclose(found[:-3], expected, atol=1e-3)
  np.testing.assert_array_equal(found[-3:], table[-3:].astype(np.float32))


@pytest.mark.parametrize('method', ['geometric', 'bilinear'])
def test_resizing_keeps_constants_and_the_same_grid(method):
  table = np.full((5 * 7 + 3, 2), 0.5, np.float32)
  found = relative_positions.resize(table, (3, 4), (5, 5), method=method)
  assert found.shape == (84, 2)
  np.testing.assert_allclose(found, 0.5, rtol=1e-5)
  same = relative_positions.resize(table, (3, 4), (3, 4), method=method)
  assert same is table


def test_what_cannot_be_resized_is_refused():
  table = np.zeros((12, 2), np.float32)
  with pytest.raises(InputError, match='12 relative positions'):
    relative_positions.resize(table, (3, 3), (4, 4))
  with pytest.raises(InputError, match='at least 3 x 3'):
    relative_positions.resize(table, (2, 2), (4, 4))
  with pytest.raises(InputError, match="'geometric' or 'bilinear'"):
    relative_positions.resize(table, (2, 2), (4, 4), method='cubic')
