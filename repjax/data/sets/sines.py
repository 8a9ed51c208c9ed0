"""Host side: sines of three periods with correlated noise."""

import numpy as np

from repjax import types
from repjax.data.series import series as seriess


def sines(
  *,
  num_series: int = 60,
  length: int = 14_400,
  periods: tuple[int, ...] = (24, 168, 720),
  seed: int = 0,
) -> list[seriess.Series]:
  """The synthetic set of Pyraformer (Liu et al., ICLR 2022, sec. 4.3).

  https://openreview.net/forum?id=0EXmFzUn5I. A series is sum_k b_k sin(2 pi (t
  + start) / T_k) + noise with amplitudes b_k uniform in [5, 10] and a start
  uniform in the longest period; its noise is Gaussian with variance 1 and
  covariance 1 / (|i - j| + 1) of rows i and j. Numbers are those of the
  authors' code, 20 of the longest periods a series.

  Args:
    num_series: Number of series.
    length: Rows of each.
    periods: T_k, in rows.
    seed: Seed of amplitudes, starts and noise.

  Returns:
    Series of one column 'value', with time stamps an hour apart that agree
    with the phase of a period of 24.

  Raises:
    InputError: If a number is out of range.
  """
  if num_series < 1 or length < 2 or not periods or min(periods) < 2:
    raise types.InputError(
      'Need num_series >= 1, length >= 2 and periods >= 2; got '
      f'{num_series=}, {length=}, {periods=}'
    )
  rng = np.random.default_rng(np.random.SeedSequence((seed, num_series)))
  epoch = np.datetime64('2020-01-01', 's')
  made = []
  for number in range(num_series):
    heights = rng.uniform(5, 10, len(periods))
    start = rng.integers(max(periods))
    angles = 2 * np.pi * (start + np.arange(length))[:, None] / periods
    values = (heights * np.sin(angles)).sum(1) + correlated_noise(length, rng)
    made.append(
      seriess.from_arrays(
        f'sines[{number}]',
        values,
        columns=('value',),
        times=epoch + 3600 * (start + np.arange(length)),
      )
    )
  return made


def correlated_noise(length: int, rng: np.random.Generator) -> np.ndarray:
  """Gaussian noise [T] with covariance 1 / (|i - j| + 1) of rows i and j.

  Drawn exactly by embedding the covariance in a circulant one of twice the
  size, whose square root is a Fourier transform: O(T log T) in place of the
  O(T^3) of a Cholesky factor (Davies and Harte, Biometrika 1987,
  https://doi.org/10.1093/biomet/74.1.95).
  """
  row = 1 / (1.0 + np.arange(length))
  circle = np.concatenate([row, row[-2:0:-1]])
  spectrum = np.fft.rfft(circle).real
  # A convex falling covariance has a spectrum >= 0, but for rounding.
  root = np.sqrt(np.maximum(spectrum, 0))
  white = np.fft.rfft(rng.normal(size=len(circle)))
  return np.fft.irfft(root * white, len(circle))[:length]
