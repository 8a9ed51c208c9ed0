"""Host side: dimensions that take more than the distances around one row.

What Pope et al., ICLR 2021 (https://arxiv.org/abs/2104.08894) compare the
maximum likelihood of `intrinsic_dimension` with. Both are functions of
`nearest_neighbours.nearest` over ALL different rows of a set.
"""

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from repjax import types
from repjax.analysis import intrinsic_dimension
from repjax.analysis import nearest_neighbours


def geo_mle(
  neighbours: nearest_neighbours.Neighbours,
  *,
  k1: int = 10,
  k2: int = 40,
  num_draws: int = 20,
  degree: int = 2,
  ridge: float = 5e-3,
  seed: int = 0,
) -> np.ndarray:
  """GeoMLE: what the local estimates tend to as their radius goes to 0.

  Gomtsyan, Mokrov, Panov and Yanovich, 'Geometry-Aware Maximum Likelihood
  Estimation of Intrinsic Dimension', ACML 2019
  (https://arxiv.org/abs/1904.06151). Neighbours are sought in bootstrap samples
  of the set; means over those of m_k(x) for k from k1 to k2 are fitted by a
  polynomial of the mean radius T_k(x), weighed by one over their deviation,
  whose value at 0 is the estimate.

  A bootstrap sample has 63 % of the rows, so its neighbours are among those of
  the whole set, and nothing is searched again. Radii are in units of their mean
  over k, so that the ridge penalty does not depend on the scale of the rows, as
  it does in the authors' code.

  Args:
    neighbours: At least about 2 k2 of each row.
    k1: Smallest number of neighbours, at least 3.
    k2: Largest one.
    num_draws: Bootstrap samples, at least 2.
    degree: Of the polynomial.
    ridge: Penalty on its coefficients but the constant.
    seed: Of the samples.

  Returns:
    One estimate a row, [N], of which the paper takes the mean.

  Raises:
    InputError: Neighbours are of some rows only, or too few.
  """
  types.check_range('[3, inf)', k1=k1)
  types.check_range(f'({k1}, inf)', k2=k2)
  types.check_range('[2, inf)', num_draws=num_draws)
  distances, indices = _of_all(neighbours)
  rng = np.random.default_rng(seed)
  radii, dims = [], []
  for _ in range(num_draws):
    drawn = np.zeros(len(distances), bool)
    drawn[rng.integers(len(drawn), size=len(drawn))] = True
    inside = drawn[indices]
    if inside.sum(1).min() < k2:
      raise types.InputError(
        f'A bootstrap sample has only {inside.sum(1).min()} of the '
        f'{indices.shape[1]} neighbours of a row, and k2={k2} are needed: '
        f'search for more, such as {indices.shape[1] + k2}.'
      )
    order = np.argsort(~inside, 1, kind='stable')[:, :k2]
    found = np.take_along_axis(distances, order, 1)
    radii.append(found[:, k1 - 1 :])
    dims.append(
      np.stack(
        [
          intrinsic_dimension.local(found, k=k, normaliser='k-2')
          for k in range(k1, k2 + 1)
        ],
        1,
      )
    )
  if not np.isfinite(dims).all():
    raise types.InputError(
      f'Neighbours of a row are equally far ({k1} and more of them), of which '
      'no dimension follows: raise k1, or leave out rows that are alike.'
    )
  radius, dim = np.mean(radii, 0), np.mean(dims, 0)  # [N, K]
  weight = 1 / np.maximum(np.std(dims, 0, ddof=1), 1e-9 * dim)
  return _at_zero(radius, dim, weight, degree, ridge)


def _at_zero(x, y, weight, degree, ridge):
  """Constants of one weighted ridge regression a row, [N, K] each -> [N]."""
  x = x / x.mean(1, keepdims=True)
  powers = np.stack([x**p for p in range(1, degree + 1)], -1)  # [N, K, P]
  share = weight / weight.sum(1, keepdims=True)
  centre = np.einsum('nk,nkp->np', share, powers)
  level = (share * y).sum(1)
  powers, y = powers - centre[:, None], y - level[:, None]
  gram = np.einsum('nk,nkp,nkq->npq', weight, powers, powers)
  gram += ridge * np.eye(degree)
  right = np.einsum('nk,nkp,nk->np', weight, powers, y)
  slopes = np.linalg.solve(gram, right[..., None])[..., 0]
  return level - (slopes * centre).sum(1)


def shortest_paths(
  neighbours: nearest_neighbours.Neighbours, *, num_bins: int = 50
) -> float:
  """Dimension of the sphere whose distances are spread as the set's are.

  Granata and Carnevale, 'Accurate Estimation of Intrinsic Dimension Using Graph
  Distances', 2016 (https://doi.org/10.1038/srep31377). Distances are shortest
  paths over the graph of neighbours; the logarithm of their density below its
  maximum, at r_max, is fitted by (d - 1) log sin(pi r / (2 r_max)), which is
  that of a d-sphere.

  The range is that of the authors' code: from two deviations below r_max on,
  but not below the longest edge, where paths are no paths. Memory and time grow
  with N^2: about 1,000 rows take a second, and the authors of the images' paper
  take 1,000 at random.

  Args:
    neighbours: Of each row; their number decides the edges.
    num_bins: Of the histogram of distances.

  Raises:
    InputError: Neighbours are of some rows only, the graph falls apart, or the
      histogram has no fit.
  """
  distances, indices = _of_all(neighbours)
  count, k = distances.shape
  graph = sparse.csr_array(
    (distances.ravel(), (np.repeat(np.arange(count), k), indices.ravel())),
    shape=(count, count),
  )
  _, part = csgraph.connected_components(graph, directed=False)
  largest = np.flatnonzero(part == np.bincount(part).argmax())
  if 2 * len(largest) <= count:
    raise types.InputError(
      f'The graph of {k} neighbours falls apart: its largest part has '
      f'{len(largest)} of {count} rows. Search for more neighbours.'
    )
  paths = csgraph.shortest_path(graph, directed=False, indices=largest)
  paths = paths[:, largest][np.triu_indices(len(largest), 1)]
  counts, edges = np.histogram(paths, num_bins)
  middle = (edges[1:] + edges[:-1]) / 2
  filled = counts > 0
  r, log_density = middle[filled], np.log(counts[filled])
  peak, width, height = r[log_density.argmax()], paths.std(), None
  for _ in range(2):  # The second one around the maximum that the first finds.
    near = (r > peak - width) & (r < peak + width / 2)
    if near.sum() < 4:
      break
    a, b, c = np.polyfit(r[near], log_density[near], 2)
    if a >= 0:
      break
    peak, width, height = -b / (2 * a), (-1 / (2 * a)) ** 0.5, c - b**2 / 4 / a
  low = max(peak - 2 * width, distances.max())
  used = (r >= low) & (r <= peak)
  if height is None or used.sum() < 4:
    raise types.InputError(
      f'Distances have no maximum that {num_bins} bins show, or the longest '
      'edge is near it: give more rows, or search for fewer neighbours.'
    )
  sine = np.log(np.sin(np.pi / 2 * r[used] / peak))
  return float(1 + sine @ (log_density[used] - height) / (sine @ sine))


def _of_all(neighbours):
  """Distances and indices, rows in their order."""
  order = np.argsort(neighbours.anchors)
  whole = np.array_equal(neighbours.anchors[order], np.arange(len(order)))
  if not whole or neighbours.indices.max() >= len(order):
    raise types.InputError(
      'Neighbours of all rows are needed, not of some anchors: leave anchors '
      'out of `nearest`, on a random subset if there are many rows.'
    )
  if (neighbours.distances[:, 0] <= 0).any():
    raise types.InputError(
      'Rows have equal ones, at distance 0: keep one of each '
      '(`nearest_neighbours.first_of_each`).'
    )
  return neighbours.distances[order], neighbours.indices[order]
