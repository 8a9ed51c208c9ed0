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

from typing import Any
from typing import NamedTuple

import numpy as np

from repjax.types import InputError
from repjax.types import check_range


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


def measure(real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3):
  """`Quality` of generated rows; arguments of `precision_recall`."""
  return Quality(
    frechet(real, fake),
    kernel(real, fake),
    *precision_recall(real, fake, neighbours=neighbours),
  )


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
  means = real.mean(0), fake.mean(0)
  # Triangles [D, D], or [N, D] of fewer rows, of which C = A^T A, C' = B^T B.
  factors: Any = [
    np.linalg.qr((x - m) / np.sqrt(len(x) - 1), mode='r')
    for x, m in zip((real, fake), means, strict=True)
  ]
  total = sum(np.square(x).sum() for x in factors)
  # The trace of (C C')^(1/2) is the sum of the singular values of A B^T.
  root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
  return float(np.square(means[0] - means[1]).sum() + total - 2 * root)


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

  def gram(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3

  def within(x):
    values = gram(x, x)
    return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

  return float(within(real) + within(fake) - 2 * gram(real, fake).mean())


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
  check_range('[1, inf)', neighbours=neighbours)
  if min(len(real), len(fake)) <= neighbours:
    raise InputError(
      f'{neighbours=} needs more rows in both samples; got {len(real)} and '
      f'{len(fake)}'
    )
  between = _distances(real, fake)
  reach = [
    np.partition(_distances(x, x), neighbours, axis=1)[:, neighbours]
    for x in (real, fake)
  ]
  return PrecisionRecall(
    precision=float((between <= reach[0][:, None]).any(0).mean()),
    recall=float((between <= reach[1][None]).any(1).mean()),
  )


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
