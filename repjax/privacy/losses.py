"""Host side: privacy loss distributions of runs of DP-SGD.

What one step of the Poisson-subsampled Gaussian mechanism can tell is the
distribution of log(density on one data set / density on its neighbour), and T
steps tell the sum of T such losses (Koskela, Jalko and Honkela, AISTATS 2020,
https://arxiv.org/abs/1906.03049). Losses are put on a grid so that every delta
is rounded up: a loss between two points is split so that the masses of both
data sets stay what they are ('Connect the Dots', PETS 2022,
https://arxiv.org/abs/2207.04380).

A Fourier transform sums them. Its rounding errors are as large as 1e-16 of all
mass, and a delta of 1e-14 would drown in them. So the distribution is tilted
first: weighed by exp(tilt * loss), which moves the losses that decide to the
middle, and weighed back behind the transform. Errors are then relative to
delta, however small it is. What a window of the transform does not hold is
bounded (Chernoff) and added, as is the rounding.

By how much epsilon is rounded up: splitting a loss between points of distance
w raises the cumulant at the order a by at most a (a - 1) w^2 / 8, and with it
epsilon by T a w^2 / 8 at the order a that decides. w is chosen so that this is
5e-4 of epsilon; only beyond ten million steps, or where one loss can be 2^18 w,
it is more, and is still rounded up.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

# Share of epsilon by which the grid rounds up, at the least and a step.
_ROUNDED, _ROUNDED_PER_STEP = 5e-4, 5e-11
# The most points for the losses of one step.
_POINTS = 2**18
# Share of delta that is left to losses beyond the grid: they are infinite.
_BEYOND = 1e-4
# Share of the tilted distribution on either side of the transform's window.
_OUTSIDE = 1e-12
# Where weights exp(-tilt * loss) end: what is beyond is counted in full.
_FAR = 50.0
# Of a Fourier transform, a step and a halving of its size.
_ROUNDING = 4e-16


class Run(NamedTuple):
  """T steps.

  Attributes:
    noise_multiplier: Standard deviation of the noise over the clip norm, > 0.
    sampling_rate: Probability of a row to be in a batch, in (0, 1].
    steps: T.
  """

  noise_multiplier: float
  sampling_rate: float
  steps: int


class Bound(NamedTuple):
  """An upper bound of epsilon.

  Attributes:
    epsilon: The bound.
    order: The Renyi order that decides it, > 1.
  """

  epsilon: float
  order: float


def epsilon(run: Run, delta: float, known: Bound) -> float:
  """The least epsilon, rounded up, at which the run has at most `delta`.

  Args:
    run: The run.
    delta: In (0, 1).
    known: By Renyi differential privacy: where the choice of a grid begins.
  """
  if run.sampling_rate == 1:
    return _root(functools.partial(_gaussian, run), delta, known.epsilon)
  found, _ = _refined(run, delta, known)
  return found.epsilon


def deltas(
  run: Run, epsilons: np.ndarray, delta: float, known: Bound
) -> np.ndarray:
  """Delta, rounded up, at each epsilon, [P].

  Args:
    run: The run.
    epsilons: >= 0, [P].
    delta: For which the grid is fine enough.
    known: Epsilon at `delta`, by Renyi differential privacy.
  """
  epsilons = np.asarray(epsilons, np.float64)
  if run.sampling_rate == 1:
    return np.asarray([_gaussian(run, x) for x in epsilons])
  known, both = _refined(run, delta, known)
  if not both:  # Of no epsilon at all, or of none that is finite.
    return np.full(len(epsilons), 1.0 if known.epsilon else delta)
  return np.max([x.deltas(epsilons) for x in both], axis=0)


def _refined(run, delta, known):
  """(bound, losses in both directions) on a grid that is fine enough."""
  lowest, highest = _ends(run, delta)
  share = max(_ROUNDED, _ROUNDED_PER_STEP * run.steps)
  width, both = math.inf, ()
  while 0 < known.epsilon < math.inf:
    finer = math.sqrt(8 * share * known.epsilon / (run.steps * known.order))
    finer = max(finer, (highest - lowest) / _POINTS)
    if finer > 0.7 * width:
      break
    width, both = finer, _both(run, lowest, highest, finer)
    known = both[0].bound(delta)
    # The other direction is hardly ever worse.
    known = max(known, both[1].bound(delta, known.epsilon))
  return known, both


def _ends(run, delta):
  """The least loss of a step, and one that is hardly ever exceeded."""
  from scipy import special

  noise, rate, steps = run
  tail = max(delta * _BEYOND / steps, 1e-300)
  own = max(-special.ndtri(min(tail / (2 * rate), 0.5)), 0.0)
  top = max(-noise * special.ndtri(tail / 2), 1 + noise * own)
  lowest = math.log1p(-rate)
  return lowest, float(
    np.logaddexp(lowest, math.log(rate) + (top - 0.5) / noise**2)
  )


def _gaussian(run, epsilon):
  """Delta of T steps on all rows.

  Balle and Wang, ICML 2018, theorem 8 (https://arxiv.org/abs/1805.06530).
  """
  from scipy import special

  mu = math.sqrt(run.steps) / run.noise_multiplier
  high = special.log_ndtr(mu / 2 - epsilon / mu)
  low = special.log_ndtr(-mu / 2 - epsilon / mu)
  return math.exp(high) * -math.expm1(min(epsilon + low - high, 0.0))


def _root(fn, delta, high, low=0.0):
  """Where a falling `fn` comes down to delta, to the side above."""
  from scipy import optimize

  def excess(x):
    return math.log(max(fn(x), 1e-300) / delta)

  if excess(low) <= 0:
    return low
  high = min(max(high, low + 1e-9), 1e9)
  while excess(high) > 0:  # By rounding, where `high` is a bound.
    high = low + 2 * (high - low)
  precision = 1e-6 * (high - low)
  return optimize.brentq(excess, low, high, xtol=precision) + precision


def _both(run, lowest, highest, width):
  """Losses of a step where a row is removed, and where it is added."""
  noise, rate, steps = run
  first, last = math.floor(lowest / width), math.ceil(highest / width)
  ends = np.arange(first, last + 1) * width
  x = _inverse(noise, rate, ends)
  x[0] = -math.inf
  # Of cells, and the last one of what is beyond.
  without = _masses(x / noise)
  with_row = (1 - rate) * without + rate * _masses((x - 1) / noise)
  low, high = _split(with_row[:-1], without[:-1], ends[1:], width)
  removed = np.append(low, 0.0) + np.append(0.0, high)
  low, high = _split(without[:-1], with_row[:-1], -ends[:-1], width)
  added = np.append(0.0, low) + np.append(high, 0.0)
  added[-1] += without[-1]
  return (
    _Losses(steps, width, first, removed, with_row[-1]),
    _Losses(steps, width, -last, added[::-1], 0.0),
  )


def _inverse(noise, rate, losses):
  """Outputs x whose losses are log(1 - q + q exp((x - 1/2) / noise^2))."""
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    log = np.where(
      losses < 1,
      np.log1p(np.expm1(losses) / rate),
      losses + np.log1p((rate - 1) * np.exp(-losses)) - math.log(rate),
    )
  return noise**2 * log + 0.5


def _masses(z):
  """Of the standard normal between ends, and beyond the last one."""
  from scipy import special

  below, above = special.ndtr(z), special.ndtr(-z)
  inner = np.where(z[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
  return np.append(np.maximum(inner, 0.0), above[-1])


def _split(mass, other, upper, width):
  """Masses at both ends of cells that keep those of both data sets.

  Args:
    mass: Of cells, on the data set that losses are drawn on, [N].
    other: Of cells, on its neighbour, [N].
    upper: The larger loss of each cell, [N].
    width: Of cells.

  Returns:
    (masses at the smaller losses, masses at the larger ones), [N] each.
  """
  scaled = other * np.exp(np.minimum(upper, 700.0))
  low = np.clip((scaled - mass) / math.expm1(width), 0.0, mass)
  return low, mass - low


class _Losses:
  """T sums of losses on a grid."""

  def __init__(self, steps, width, first, mass, infinite):
    keep = np.flatnonzero(mass)
    mass = mass[keep[0] : keep[-1] + 1]
    self._steps, self._width = steps, width
    self._points = first + keep[0] + np.arange(len(mass))
    self._losses = self._points * width
    with np.errstate(divide='ignore'):
      self._log_mass = np.log(mass)
    self._infinite = -math.expm1(steps * math.log1p(-infinite))

  def bound(self, delta, least=0.0):
    """From `least` on, where delta, rounded up, has become that given."""
    left = delta - self._infinite
    if left <= 0:
      return Bound(math.inf, math.inf)

    def renyi(tilt):  # Proposition 12 of https://arxiv.org/abs/2004.00010.
      total = self._steps * self._cumulant(tilt) - math.log(left * (1 + tilt))
      return total / tilt - math.log1p(1 / tilt)

    tilt = _least(renyi)
    high = renyi(tilt)
    if high <= least:
      return Bound(least, 1 + tilt)
    tilted = self._tilted(tilt)
    low = max(tilted.losses[0], least)
    return Bound(_root(tilted.delta, delta, high, low), 1 + tilt)

  def deltas(self, epsilons):
    """Delta, rounded up, at each epsilon."""
    tilts = 4.0 ** np.arange(-5, 11)
    bounds = self._steps * np.array([self._cumulant(x) for x in tilts])
    chosen = (bounds - np.outer(epsilons, tilts)).argmin(1)
    found = np.ones(len(epsilons))
    for i in set(chosen):
      tilted = self._tilted(tilts[i])
      for j in np.flatnonzero(epsilons >= tilted.losses[0]):
        found[j] = min(found[j], tilted.delta(epsilons[j]))
    return found

  def _cumulant(self, tilt):
    terms = self._log_mass + tilt * self._losses
    largest = terms.max()
    return float(largest + math.log(np.exp(terms - largest).sum()))

  def _tilted(self, tilt):
    from scipy import fft

    steps, width = self._steps, self._width
    cumulant = self._cumulant(tilt)
    weights = np.exp(self._log_mass + tilt * self._losses - cumulant)
    mean = weights @ self._losses
    stddev = math.sqrt(steps * (weights @ np.square(self._losses - mean)))
    reach = -math.log(_OUTSIDE)
    speed = math.sqrt(2 * reach) / max(stddev, width)

    def end(sign):
      """What the sum passes with a probability of `_OUTSIDE` at most."""
      ends = []
      for factor in (0.125, 0.25, 0.5, 1.0, 2.0):
        s = sign * factor * speed
        rest = steps * (self._cumulant(tilt + s) - cumulant)
        ends.append((rest + reach) / s)
      return sign * min(sign * x for x in ends)

    first, last = math.floor(end(-1) / width), math.ceil(end(1) / width)
    size = fft.next_fast_len(last - first + 1, real=True)
    one = np.bincount(self._points % size, weights, size)
    # Most losses may be 0, and what is not is small: nothing is added to 1.
    one[0] -= 1
    changed = np.abs(one).sum()
    total = fft.irfft(_power(fft.rfft(one), steps), size)
    return _Tilted(
      losses=np.arange(first, first + size) * width,
      mass=np.maximum(np.roll(total, -(first % size)), 0.0),
      tilt=tilt,
      log_scale=steps * cumulant,
      rounding=_ROUNDING * math.log2(size) * (1 + steps * changed),
      infinite=self._infinite,
    )


class _Tilted(NamedTuple):
  """The sum of T losses, weighed by exp(tilt * loss - log_scale)."""

  losses: np.ndarray
  mass: np.ndarray
  tilt: float
  log_scale: float
  rounding: float
  infinite: float

  def delta(self, epsilon):
    """At an epsilon that is not below the window."""
    ends = [epsilon, epsilon + _FAR / self.tilt]
    start, stop = np.searchsorted(self.losses, ends, 'right')
    beyond = self.losses[start:stop] - epsilon
    weights = -np.expm1(-beyond) * np.exp(-self.tilt * beyond)
    inside = self.mass[start:stop] @ weights
    most = np.exp(np.minimum(self.tilt * (epsilon - self.losses[-1]), 0.0))
    rest = _OUTSIDE * most + math.exp(-_FAR) + self.rounding
    scale = math.exp(min(self.log_scale - self.tilt * epsilon, 700.0))
    return scale * (inside + rest) + self.infinite


def _power(small, exponent):
  """(1 + small)^exponent of complex numbers, with what 1 + small rounds off."""
  real, imag = small.real, small.imag
  with np.errstate(divide='ignore'):
    log = np.log1p(np.maximum(real * (2 + real) + imag**2, -1.0)) / 2
  angle = np.arctan2(imag, 1 + real)
  return np.exp(exponent * log) * np.exp(1j * exponent * angle)


def _least(fn):
  """The tilt that makes a function of it least."""
  from scipy import optimize

  found = optimize.minimize_scalar(
    lambda x: fn(math.exp(x)),
    bounds=(-7.0, 14.0),
    method='bounded',
    options={'xatol': 0.02},
  )
  return math.exp(found.x)
