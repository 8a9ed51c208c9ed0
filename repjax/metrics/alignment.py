"""Host side: how close views of a row lie, and how evenly rows fill the sphere.

Wang and Isola, 'Understanding Contrastive Representation Learning through
Alignment and Uniformity on the Hypersphere', ICML 2020, section 4
(https://arxiv.org/abs/2005.10242). A contrastive loss makes both small; less is
better. Features that have collapsed to one point are aligned, at 0, and not
uniform, at 0, too.
"""

import numpy as np

from repjax.types import InputError
from repjax.types import check_range

# Rows of a square of distances: that of all rows may not fit into memory.
_ROWS = 1024


def alignment(x: np.ndarray, y: np.ndarray, alpha: float = 2) -> float:
  """Mean of ||x - y|| ** alpha over pairs, in [0, 2 ** alpha].

  Args:
    x: Features of one view of each row, [N, D]; are given length 1.
    y: Of the other, [N, D], in the same order.
    alpha: Exponent, > 0.

  Raises:
    InputError: There are no pairs, or a row has no direction.

  >>> alignment(np.array([[1.0, 0.0]]), np.array([[-3.0, 0.0]]))
  4.0
  """
  check_range('(0, inf)', alpha=alpha)
  x, y = _unit(x), _unit(y)
  if x.shape != y.shape:
    raise InputError(
      f'alignment is of pairs: two [N, D]; got {list(x.shape)} and '
      f'{list(y.shape)}'
    )
  return float((np.linalg.norm(x - y, axis=1) ** alpha).mean())


def uniformity(x: np.ndarray, t: float = 2) -> float:
  """Log of the mean of exp(-t ||x - x'|| ** 2) over pairs, in [-4 t, 0].

  Args:
    x: Features, one view of each row, [N, D]; are given length 1. A row is no
      pair with itself.
    t: Steepness of the kernel, > 0.

  Raises:
    InputError: There are fewer than two rows, or one has no direction.

  >>> uniformity(np.array([[1.0, 0.0], [-2.0, 0.0]]))
  -8.0
  """
  check_range('(0, inf)', t=t)
  x = _unit(x)
  if len(x) < 2:
    raise InputError(f'uniformity is of pairs of rows; got {len(x)} row')
  logs = []
  for start in range(0, len(x), _ROWS):
    rows = x[start : start + _ROWS]
    for other in range(start, len(x), _ROWS):
      squares = 2 - 2 * rows @ x[other : other + _ROWS].T
      if other == start:
        squares = squares[np.triu_indices(len(rows), 1)]
      if squares.size:
        logs.append(_log_sum(-t * squares))
  num_pairs = len(x) * (len(x) - 1) / 2
  return float(_log_sum(np.asarray(logs)) - np.log(num_pairs))


def _log_sum(x):
  """Log of a sum of exponentials, which may all be too small for a float."""
  largest = x.max()
  return largest + np.log(np.exp(x - largest).sum())


def _unit(x):
  """Rows of length 1, float64."""
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or not len(x):
    raise InputError(f'features are [N, D], and not none; got {list(x.shape)}')
  length = np.linalg.norm(x, axis=1, keepdims=True)
  strange = ~(np.isfinite(length) & (length > 0)).ravel()
  if strange.any():
    raise InputError(
      f'features of row {strange.argmax()} have no direction: they are 0 or '
      'not finite'
    )
  return x / length
