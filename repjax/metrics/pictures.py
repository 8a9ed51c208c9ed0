"""Host side: how alike two pictures are, and which of two sets go together."""

import numpy as np

from repjax import types


def psnr(
  images: np.ndarray, others: np.ndarray, *, peak: float = 1.0
) -> np.ndarray:
  """Peak signal-to-noise ratio in decibels, [N]; infinite of equal pictures.

  10 log10(peak^2 / mean squared error).

  Args:
    images: [N, ...].
    others: [N, ...].
    peak: Largest value that a pixel may have.

  Raises:
    InputError: They are of different shapes, or the peak is not above 0.
  """
  types.check_range('(0, inf)', peak=peak)
  x, y = _pairs(images, others)
  error = ((x - y).reshape(len(x), -1) ** 2).mean(1)
  with np.errstate(divide='ignore'):
    return 10 * np.log10(peak**2 / error)


def ssim(
  images: np.ndarray,
  others: np.ndarray,
  *,
  peak: float = 1.0,
  window: int = 11,
  sigma: float = 1.5,
) -> np.ndarray:
  """Structural similarity, mean over places and channels, [N]; 1 if equal.

  Wang, Bovik, Sheikh and Simoncelli, 2004, eq. 13 and section III.C
  (https://doi.org/10.1109/TIP.2003.819861), where windows lie inside the
  picture.

  Args:
    images: [N, H, W, C].
    others: [N, H, W, C].
    peak: Largest value that a pixel may have.
    window: Side of the Gaussian window, odd; of smaller pictures, the largest
      that fits.
    sigma: Of it, in pixels.

  Raises:
    InputError: They are of different shapes, or a number is not above 0.
  """
  types.check_range('(0, inf)', peak=peak, sigma=sigma)
  x, y = _pairs(images, others)
  side = min(window, *x.shape[1:3])
  side -= 1 - side % 2
  places = np.arange(side) - side // 2
  kernel = np.exp(-(places**2) / (2 * sigma**2))
  kernel /= kernel.sum()

  def smooth(image):
    for axis in (1, 2):
      parts = np.lib.stride_tricks.sliding_window_view(image, side, axis)
      image = parts @ kernel
    return image

  mean_x, mean_y = smooth(x), smooth(y)
  var_x = smooth(x * x) - mean_x**2
  var_y = smooth(y * y) - mean_y**2
  cov = smooth(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
  likeness /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
  return likeness.mean((1, 2, 3))


def _pairs(images, others):
  x, y = np.asarray(images, np.float64), np.asarray(others, np.float64)
  if x.shape != y.shape:  # One picture, or one channel, would be broadcast.
    raise types.InputError(
      f'pictures are compared in pairs of one shape; got {list(x.shape)} and '
      f'{list(y.shape)}'
    )
  return x, y


def matched(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """For each picture its own of the others, [N]; -1 where these are fewer.

  The assignment with the largest sum of signal-to-noise ratios, so that a
  picture that was found exactly outweighs many that were not.

  Args:
    images: [N, ...].
    others: [M, ...].
  """
  from scipy import optimize

  x = np.asarray(images, np.float64).reshape(len(images), -1)
  y = np.asarray(others, np.float64).reshape(len(others), x.shape[1])
  found = np.full(len(x), -1)
  if len(x) and len(y):
    # Row by row: sums of squares would lose the last digits of small errors.
    errors = np.stack([((row - y) ** 2).mean(1) for row in x])
    rows, columns = optimize.linear_sum_assignment(np.log(errors + 1e-30))
    found[rows] = columns
  return found
