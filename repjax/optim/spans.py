"""Host side: orthonormal columns that span what inputs need."""

import numpy as np

# A direction that holds a smaller part of |R| is rounding: inputs and bases are
# float32, and R - M M' R of inputs that M spans is this small and not zero.
_RESOLUTION = 1e-6


def extended(
  basis: np.ndarray,
  inputs: np.ndarray,
  threshold: float,
  *,
  one_fewer: bool = False,
) -> np.ndarray:
  """Orthonormal columns of the old basis and the new directions.

  Args:
    basis: Orthonormal columns, float64 [n, k].
    inputs: R, one a column, float64 [n, s].
    threshold: Part of |R|^2 that the columns shall span, in (0, 1].
    one_fewer: Whether one direction fewer is taken.

  Returns:
    float64 [n, k + new directions], n columns at the most.
  """
  total = np.square(inputs).sum()
  rest = inputs - basis @ (basis.T @ inputs)
  vectors, energies = _left_singular(rest)
  kept = total - np.square(rest).sum()
  after = kept + np.concatenate([[0.0], np.cumsum(energies)])
  # The first count of directions that is enough; all of them if none is.
  enough = after >= threshold * total
  count = int(enough.argmax()) if enough.any() else len(energies)
  if one_fewer:
    count = max(count - 1, 0)
  count = min(
    count,
    int((energies > _RESOLUTION**2 * total).sum()),
    basis.shape[0] - basis.shape[1],
  )
  # float32 bases drift away from orthonormal ones: made anew every time.
  joined = np.concatenate([basis, vectors[:, :count]], axis=1)
  return np.linalg.qr(joined)[0]


def _left_singular(matrix):
  """(left singular vectors [n, k], squared singular values [k]), largest first.

  By the n x n Gram matrix where there are more columns: float64 leaves it a
  resolution of 1e-8 of |R|.
  """
  if matrix.shape[1] <= matrix.shape[0]:
    vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return vectors, values**2
  energies, vectors = np.linalg.eigh(matrix @ matrix.T)
  return vectors[:, ::-1], np.maximum(energies[::-1], 0)
