"""Intrinsic dimensions against scikit-dimension, on its own neighbours."""

import numpy as np
import pytest

from repjax.analysis import intrinsic_dimension
from repjax.analysis import nearest_neighbours

pytestmark = pytest.mark.parity
skdim = pytest.importorskip('skdim', reason='needs the extra parity')


@pytest.fixture(scope='module', params=[(3, 10), (8, 40)])
def rows(request):
  dim, width = request.param
  rng = np.random.default_rng(dim)
  basis, _ = np.linalg.qr(rng.standard_normal((width, dim)))
  return rng.standard_normal((700, dim)) @ basis.T


@pytest.mark.parametrize(('name', 'unbiased'), [('k-1', False), ('k-2', True)])
@pytest.mark.parametrize('combine', ['inverse', 'mean', 'median'])
def test_maximum_likelihood(rows, name, unbiased, combine):
  distances = nearest_neighbours.nearest(rows, 20).distances
  expected = skdim.id.MLE(unbiased=unbiased).fit(
    rows, n_neighbors=20, comb='mle' if combine == 'inverse' else combine
  )
  found = intrinsic_dimension.mle(distances, normaliser=name, combine=combine)
  assert found == pytest.approx(expected.dimension_, rel=1e-6)
  each = intrinsic_dimension.local(distances, normaliser=name)
  np.testing.assert_allclose(each, expected.dimension_pw_, rtol=1e-6)


@pytest.mark.parametrize('discard', [0.1, 0.3])
def test_two_nearest_neighbours(rows, discard):
  distances = nearest_neighbours.nearest(rows, 2).distances
  expected = skdim.id.TwoNN(discard_fraction=discard).fit(rows).dimension_
  found = intrinsic_dimension.two_nn(distances, discard=discard)
  assert found == pytest.approx(expected, rel=1e-6)
