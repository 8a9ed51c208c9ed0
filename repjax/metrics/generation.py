"""Host side: how like real rows generated ones are, on features of both.

| measure | of | source |
|---|---|---|
| `frechet` | Gaussians of both samples | https://arxiv.org/abs/1706.08500 |
| `kernel` | a polynomial kernel, unbiased | https://arxiv.org/abs/1801.01401 |
| `precision_recall` | balls around rows | https://arxiv.org/abs/1904.06991 |

Features decide what the numbers mean. With those of Inception's last pooling,
from the published weights, they are FID and KID; with those of a classifier of
your own, as here, they rank models on one set and say nothing beside published
figures: call them by the classifier's name.
"""

from typing import NamedTuple

import numpy as np

from repjax.types import InputError
from repjax.types import check_range

# Of one block: the square of all rows may not fit into memory.
_ROWS = 1000


class PrecisionRecall(NamedTuple):
  """Parts of two samples that lie in the manifold of the other one.

  Attributes:
    precision: Of generated rows: are they like real ones?
    recall: Of real rows: is there something like them?
  """

  precision: float
  recall: float


class Quality(NamedTuple):
  """All measures of one generated sample.

  Attributes:
    frechet: Distance of Gaussians, lower is better.
    kernel: Squared distance in a kernel's space, unbiased: may be negative.
    precision: As `precision_recall`'s.
    recall: As `precision_recall`'s.
  """

  frechet: float
  kernel: float
  precision: float
  recall: float


class Reference(NamedTuple):
  """Real rows, and what all comparisons need of them alone.

  Attributes:
    rows: Features [N, D], float64.
    gaussian: Their mean [D], and a factor A with A^T A their covariance.
    within: Mean of the kernel of two different rows.
    reach: Squared radius of the ball around each row, [N].
    neighbours: Of these balls.
  """

  rows: np.ndarray
  gaussian: tuple[np.ndarray, np.ndarray]
  within: float
  reach: np.ndarray
  neighbours: int

  def measure(self, fake: np.ndarray) -> Quality:
    """`Quality` of generated rows, features [M, D]."""
    real, fake = _checked(self.rows, fake)
    _check_neighbours(self.neighbours, real, fake)
    return Quality(
      _frechet(self.gaussian, _gaussian(fake)),
      self.within + _within(fake) - 2 * float(_gram(real, fake).mean()),
      *_precision_recall(real, fake, self.reach, _reach(fake, self.neighbours)),
    )


def reference(real: np.ndarray, *, neighbours: int = 3) -> Reference:
  """For many samples that are held against the same rows.

  The arguments are those of `precision_recall`, and so are the errors.
  """
  real, _ = _checked(real, real)
  _check_neighbours(neighbours, real)
  return Reference(
    real, _gaussian(real), _within(real), _reach(real, neighbours), neighbours
  )


def measure(
  real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3
) -> Quality:
  """`Quality` of generated rows; arguments of `precision_recall`."""
  return reference(real, neighbours=neighbours).measure(fake)


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
  """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), float64.

  Heusel et al., 'GANs Trained by a Two Time-Scale Update Rule Converge to a
  Local Nash Equilibrium', NeurIPS 2017, eq. 6
  (https://arxiv.org/abs/1706.08500). Covariances are divided by N - 1, as in
  the public code; fewer rows give larger distances, so compare equal numbers.
  The root's trace is the sum of singular values of a product of factors, which
  needs no root of a matrix that is nearly singular.

  Args:
    real: Features [N, D].
    fake: Features [M, D].

  Raises:
    InputError: If shapes do not fit, or a sample has less than two rows.
  """
  real, fake = _checked(real, fake)
  return _frechet(_gaussian(real), _gaussian(fake))


def kernel(real: np.ndarray, fake: np.ndarray) -> float:
  """Unbiased squared MMD of the kernel (x y / D + 1)^3, float64.

  Binkowski et al., 'Demystifying MMD GANs', ICLR 2018
  (https://arxiv.org/abs/1801.01401), over all rows at once (the public code
  averages over blocks of 1,000).

  Args:
    real: Features [N, D].
    fake: Features [M, D].

  Raises:
    InputError: If shapes do not fit, or a sample has less than two rows.
  """
  real, fake = _checked(real, fake)
  return _within(real) + _within(fake) - 2 * float(_gram(real, fake).mean())


def precision_recall(
  real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3
) -> PrecisionRecall:
  """Parts of rows that lie in a ball around a row of the other sample.

  Kynkaanniemi et al., 'Improved Precision and Recall Metric for Assessing
  Generative Models', NeurIPS 2019, eq. 1 and 2
  (https://arxiv.org/abs/1904.06991). The ball of a row reaches to its k-th
  neighbour in its own sample, itself not counted.

  Args:
    real: Features [N, D].
    fake: Features [M, D].
    neighbours: k >= 1.

  Raises:
    InputError: If shapes do not fit, or a sample has no k neighbours.
  """
  real, fake = _checked(real, fake)
  _check_neighbours(neighbours, real, fake)
  reach = _reach(real, neighbours), _reach(fake, neighbours)
  return _precision_recall(real, fake, *reach)


def _check_neighbours(neighbours, *samples):
  check_range('[1, inf)', neighbours=neighbours)
  sizes = [len(x) for x in samples]
  if min(sizes) <= neighbours:
    raise InputError(
      f'{neighbours=} needs more rows in both samples; got '
      f'{" and ".join(map(str, sizes))}'
    )


def _gaussian(x):
  """The mean, and a triangle A [D, D], or [N, D] of fewer rows: C = A^T A."""
  mean = x.mean(0)
  return mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode='r')


def _frechet(one, other):
  (mean, factor), (other_mean, other_factor) = one, other
  total = np.square(factor).sum() + np.square(other_factor).sum()
  # The trace of (C C')^(1/2) is the sum of the singular values of A B^T.
  root = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
  return float(np.square(mean - other_mean).sum() + total - 2 * root)


def _gram(x, y):
  values = x @ y.T / x.shape[1] + 1
  return values * values * values  # A power of 3 takes ten times as long.


def _within(x):
  """Mean of the kernel over pairs of different rows."""
  total = sum(_gram(x[i : i + _ROWS], x).sum() for i in _starts(x))
  same = np.square(x).sum(1) / x.shape[1] + 1
  return float((total - (same**3).sum()) / (len(x) * (len(x) - 1)))


def _precision_recall(real, fake, real_reach, fake_reach):
  between = _distances(real, fake)
  return PrecisionRecall(
    precision=float((between <= real_reach[:, None]).any(0).mean()),
    recall=float((between <= fake_reach[None]).any(1).mean()),
  )


def _reach(x, neighbours):
  """Squared distance of each row to its k-th neighbour, [N]."""
  parts = (_distances(x[i : i + _ROWS], x) for i in _starts(x))
  return np.concatenate(
    [np.partition(y, neighbours, axis=1)[:, neighbours] for y in parts]
  )


def _starts(x):
  return range(0, len(x), _ROWS)


def _distances(x, y):
  """Squared distances, [N, M]."""
  squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None]
  return np.maximum(squares - 2 * x @ y.T, 0)


def _checked(real, fake):
  real, fake = (np.asarray(x, np.float64) for x in (real, fake))
  if real.ndim != 2 or real.shape[1:] != fake.shape[1:]:
    raise InputError(
      f'features must be [rows, D] with one D; got {real.shape}, {fake.shape}'
    )
  if min(len(real), len(fake)) < 2:
    raise InputError(
      f'both samples need two rows or more; got {len(real)} and {len(fake)}'
    )
  return real, fake
