"""Host side: mean kernels of convolutions, and how lopsided they are.

Figure 6 of Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind Spots',
ICLR 2021 (https://openreview.net/forum?id=m1CD7tPubNy), shows means of signed
weights; the index of asymmetry is of their sizes, and ours.
"""

import numpy as np

from repjax import trees
from repjax import types


def mean_kernels(
  params: types.PyTree, *, seeds: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Means over channels of all kernels [kh, kw, C, C'] larger than 1 x 1.

  Args:
    params: Of any model; kernels are the leaves of that name.
    seeds: Whether leaves have a leading axis of seeds.

  Returns:
    Layer -> (mean of weights, mean of their sizes), each [..., kh, kw].

  Raises:
    InputError: If there is no such kernel.
  """
  found = {}
  for path, leaf in trees.flatten(params).items():
    if path[-1] != 'kernel' or leaf.ndim != 4 + seeds:
      continue
    kernel = np.asarray(leaf, np.float64)
    if max(kernel.shape[-4:-2]) > 1:
      name = '/'.join(path[:-1])
      found[name] = kernel.mean((-2, -1)), abs(kernel).mean((-2, -1))
  if not found:
    raise types.InputError(
      'There is no kernel of a convolution larger than 1 x 1 among these '
      'parameters.'
    )
  return found


def asymmetry(mean: np.ndarray) -> np.ndarray:
  """How far a mean kernel is from its mirror images; 0 where it is even.

  (|M - M upside down| + |M - M left to right|) / (2 |M|), sums of absolute
  values.

  Args:
    mean: Of sizes of weights, [..., kh, kw].

  Returns:
    [...].
  """
  parts = [abs(mean - np.flip(mean, axis)).sum((-2, -1)) for axis in (-2, -1)]
  return (parts[0] + parts[1]) / (2 * abs(mean).sum((-2, -1)))


def tilt(mean: np.ndarray) -> np.ndarray:
  """Which side of a mean kernel is heavier, in [-1, 1].

  The top and left halves minus the bottom and right ones, over the sum; the
  middle row or column of odd kernels counts for neither.

  Args:
    mean: Of sizes of weights, [..., kh, kw].

  Returns:
    [...], > 0 where the top and the left are heavier.
  """
  total: np.ndarray | float = 0.0
  for axis in (-2, -1):
    sums = mean.sum(-1 if axis == -2 else -2)
    half = sums.shape[-1] // 2
    last = sums[..., sums.shape[-1] - half :]
    total = total + sums[..., :half].sum(-1) - last.sum(-1)
  return total / (2 * mean.sum((-2, -1)))
