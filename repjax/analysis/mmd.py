"""Device code: maximum mean discrepancy, the usual test of two samples.

Gretton, Borgwardt, Rasch, Schoelkopf and Smola, 'A Kernel Two-Sample Test',
JMLR 2012, lemma 6: MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y).
https://arxiv.org/abs/0805.2368 (an earlier version).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from repjax.analysis import kernels
from repjax.analysis import two_sample
from repjax.types import check_choice
from repjax.types import check_range


def statistic(
  bandwidth: float | jax.Array | Literal['median'],
  *,
  estimate: Literal['biased', 'unbiased'] = 'biased',
) -> two_sample.Statistic:
  """MMD^2 with a Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2)).

  Args:
    bandwidth: > 0, or 'median' for the median distance of the pooled rows
      (`kernels.median_distance` says of which if most are equal). One that is
      chosen (`best_bandwidth`) must be chosen on other rows.
    estimate: 'biased' (the V-statistic, with pairs of a row and itself, never
      negative) or 'unbiased'. Over the splits of one pool each is an increasing
      linear function of the other, so that p-values are the same.

  Raises:
    InputError: If an argument is out of range.
  """
  check_choice('estimate', estimate, tuple(_VALUES))
  if isinstance(bandwidth, str):
    check_choice('bandwidth', bandwidth, ('median',))
  elif not isinstance(bandwidth, jax.Array):
    check_range('(0, inf)', bandwidth=bandwidth)
  width = bandwidth if isinstance(bandwidth, str | float | int) else 'chosen'
  return two_sample.Statistic(
    name=f'MMD ({estimate}, bandwidth {width})',
    prepare=functools.partial(_kernel, bandwidth=bandwidth),
    value=_VALUES[estimate],
  )


def _kernel(rows, *, bandwidth):
  distances = kernels.squared_distances(rows)
  if isinstance(bandwidth, str):
    bandwidth = kernels.median_distance(distances)
  return kernels.gaussian(distances, bandwidth)


@jax.default_matmul_precision('highest')
def _biased(kernel, split):
  difference = split.x / split.x.sum() - split.y / split.y.sum()
  return difference @ (kernel @ difference)


@jax.default_matmul_precision('highest')
def _unbiased(kernel, split):
  kernel_x, n = kernel @ split.x, split.x.sum()
  kernel_y = kernel @ split.y
  own = jnp.diagonal(kernel).sum()  # Of both samples.
  within = split.x @ kernel_x + split.y @ kernel_y - own
  return within / (n * (n - 1)) - 2 * (split.y @ kernel_x) / n**2


_VALUES = {'biased': _biased, 'unbiased': _unbiased}


def best_bandwidth(
  x: jax.Array, y: jax.Array, *, bandwidths: jax.Array
) -> jax.Array:
  """The bandwidth with the largest ratio of MMD^2 and its standard deviation.

  To first order the one with the most powerful test (Sutherland et al., 2017,
  https://arxiv.org/abs/1611.04488; the deviation as in Liu et al., 2020,
  https://arxiv.org/abs/2002.09116).

  Args:
    x: [n, ...], rows that are not the test's.
    y: [n, ...], rows that are not the test's.
    bandwidths: To choose from, [M].

  Returns:
    A scalar.
  """
  n = x.shape[0]
  distances = kernels.squared_distances(two_sample.pool(x, y))

  def ratio(bandwidth):
    kernel = kernels.gaussian(distances, bandwidth)
    cross = kernel[:n, n:]
    h = kernel[:n, :n] + kernel[n:, n:] - cross - cross.T  # [n, n]
    off = 1 - jnp.eye(n)
    value = (h * off).sum() / (n * (n - 1))
    variance = 4 * ((h.mean(1) ** 2).mean() - h.mean() ** 2)
    return value / jnp.sqrt(variance + 1e-8)

  return bandwidths[jax.lax.map(ratio, bandwidths).argmax()]
