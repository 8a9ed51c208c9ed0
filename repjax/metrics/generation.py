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

import functools
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import numpy as np

from repjax.types import InputError
from repjax.types import NonFiniteError
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


class Sample:
  """Features of a sample; what comparisons need of it alone is computed once.

  For rows that many samples are held against: all functions here take it in
  place of an array.
  """

  def __init__(self, rows: np.ndarray):
    self.rows = np.asarray(rows, np.float64)
    self._reach: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self.rows)

  @functools.cached_property
  def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a triangle A [D, D], or [N, D] of fewer rows: C = A^T A."""
    mean = self.rows.mean(0)
    centred = (self.rows - mean) / np.sqrt(len(self) - 1)
    # Its type does not know that this mode gives one array.
    factor: Any = np.linalg.qr(centred, mode='r')
    return mean, factor

  @functools.cached_property
  def within(self) -> float:
    """Mean of the kernel over pairs of different rows."""
    squares = np.square(self.rows).sum(1) / self.rows.shape[1]
    same = _cubed(squares + 1).sum()
    return float((_kernels(self, self) - same) / (len(self) * (len(self) - 1)))

  def reach(self, neighbours: int) -> np.ndarray:
    """Squared distance of each row to its k-th neighbour, [N]."""
    if neighbours not in self._reach:
      self._reach[neighbours] = np.concatenate(
        [
          np.partition(_distances(x, self.rows), neighbours, axis=1)[
            :, neighbours
          ]
          for x in _blocks(self.rows)
        ]
      )
    return self._reach[neighbours]


Features: TypeAlias = np.ndarray | Sample


def measure(real: Features, fake: Features, *, neighbours: int = 3) -> Quality:
  """`Quality` of generated rows; arguments of `precision_recall`."""
  one, other = _checked(real, fake)
  return Quality(
    frechet(one, other),
    kernel(one, other),
    *precision_recall(one, other, neighbours=neighbours),
  )


def frechet(real: Features, fake: Features) -> float:
  """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), float64.

  Heusel et al., 'GANs Trained by a Two Time-Scale Update Rule Converge to a
  Local Nash Equilibrium', NeurIPS 2017, eq. 6
  (https://arxiv.org/abs/1706.08500). Covariances are divided by N - 1, as in
  the public code; fewer rows give larger distances, so compare equal numbers.
  The root's trace is the sum of singular values of a product of factors, which
  needs no root of a matrix that is nearly singular.

  Args:
    real: Features [N, D], or a `Sample` of them.
    fake: Features [M, D], or a `Sample` of them.

  Raises:
    InputError: If shapes do not fit, or a sample has less than two rows.
  """
  one, other = _checked(real, fake)
  (mean, factor), (other_mean, other_factor) = one.gaussian, other.gaussian
  total = np.square(factor).sum() + np.square(other_factor).sum()
  # The trace of (C C')^(1/2) is the sum of the singular values of A B^T.
  root = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
  return float(np.square(mean - other_mean).sum() + total - 2 * root)


def kernel(real: Features, fake: Features) -> float:
  """Unbiased squared MMD of the kernel (x y / D + 1)^3, float64.

  Binkowski et al., 'Demystifying MMD GANs', ICLR 2018
  (https://arxiv.org/abs/1801.01401), over all rows at once (the public code
  averages over blocks of 1,000).

  Args:
    real: Features [N, D], or a `Sample` of them.
    fake: Features [M, D], or a `Sample` of them.

  Raises:
    InputError: If shapes do not fit, or a sample has less than two rows.
  """
  one, other = _checked(real, fake)
  between = _kernels(one, other) / (len(one) * len(other))
  return float(one.within + other.within - 2 * between)


def precision_recall(
  real: Features, fake: Features, *, neighbours: int = 3
) -> PrecisionRecall:
  """Parts of rows that lie in a ball around a row of the other sample.

  Kynkaanniemi et al., 'Improved Precision and Recall Metric for Assessing
  Generative Models', NeurIPS 2019, eq. 1 and 2
  (https://arxiv.org/abs/1904.06991). The ball of a row reaches to its k-th
  neighbour in its own sample, itself not counted.

  Args:
    real: Features [N, D], or a `Sample` of them.
    fake: Features [M, D], or a `Sample` of them.
    neighbours: k >= 1.

  Raises:
    InputError: If shapes do not fit, or a sample has no k neighbours.
  """
  one, other = _checked(real, fake)
  check_range('[1, inf)', neighbours=neighbours)
  if min(len(one), len(other)) <= neighbours:
    raise InputError(
      f'{neighbours=} needs more rows in both samples; got {len(one)} and '
      f'{len(other)}'
    )
  near_real, covered = np.zeros(len(other), bool), []
  reach = _blocks(one.reach(neighbours)[:, None])
  other_reach = other.reach(neighbours)[None]
  for rows, own in zip(_blocks(one.rows), reach, strict=True):
    between = _distances(rows, other.rows)
    near_real |= (between <= own).any(0)
    covered.append((between <= other_reach).any(1))
  return PrecisionRecall(
    precision=float(near_real.mean()),
    recall=float(np.concatenate(covered).mean()),
  )


def _kernels(one, other):
  """The sum of (x y / D + 1)^3 over all pairs."""
  return sum(
    _cubed(x @ other.rows.T / x.shape[1] + 1).sum() for x in _blocks(one.rows)
  )


def _cubed(x):
  return x * x * x  # ** 3 takes ten times as long.


def _blocks(rows):
  return (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS))


def _distances(x, y):
  """Squared distances, [N, M]."""
  squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None]
  return np.maximum(squares - 2 * x @ y.T, 0)


def _checked(real: Features, fake: Features) -> tuple[Sample, Sample]:
  one, other = (x if isinstance(x, Sample) else Sample(x) for x in (real, fake))
  shapes = one.rows.shape, other.rows.shape
  if len(shapes[0]) != 2 or shapes[0][1:] != shapes[1][1:]:
    raise InputError(
      f'features must be [rows, D] with one D; got {shapes[0]}, {shapes[1]}'
    )
  if min(len(one), len(other)) < 2:
    raise InputError(
      f'both samples need two rows or more; got {len(one)} and {len(other)}'
    )
  for name, sample in (('real', one), ('fake', other)):
    finite = np.isfinite(sample.rows).all(1)
    if not finite.all():
      raise NonFiniteError(
        f'features of the {name} row {finite.argmin()} are not finite'
      )
  return one, other
