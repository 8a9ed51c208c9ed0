"""Host side: how private DP-SGD is, over `dp_accounting`.

T steps of DP-SGD are T compositions of the Poisson-subsampled Gaussian
mechanism (Abadi et al., CCS 2016, https://arxiv.org/abs/1607.00133).
Accountants: 'rdp', Renyi differential privacy (Mironov, 2017,
https://arxiv.org/abs/1702.07476; Mironov et al., 2019,
https://arxiv.org/abs/1908.10530), over `dp_accounting`, fast, some percent too
large, more for small epsilons, and what `tuning` builds on; and 'pld', privacy
loss distributions (`losses`), too large by 0.05 %, and never above 'rdp'.

Neighbours are data sets that differ by ADDING OR REMOVING one row. Replacing a
row is a removal and an addition: its epsilon is larger.
"""

import contextlib
import functools
import math
from typing import Literal
from typing import NamedTuple
import warnings

from absl import logging
import numpy as np

from repjax.privacy import losses
from repjax.privacy import overflow as overflows
from repjax.types import InputError

Accountant = Literal['pld', 'rdp']
Sampling = Literal['poisson', 'full']

_SHUFFLED = (
  'batches of a shuffled epoch are not Poisson samples: every row is in '
  'exactly one batch of an epoch, which the amplification by sampling does not '
  'cover, so there is no figure to give. Draw batches with '
  "repjax.data.batches.poisson and say sampling='poisson', or take the whole "
  "set in every step and say sampling='full'."
)

_MIN_NOISE, _MAX_NOISE = 2.0**-6, 1024.0
# The smallest delta that a profile is precise for.
_PROFILE_DELTA = 1e-10


class RdpCurve(NamedTuple):
  """Renyi differential privacy of a mechanism.

  Attributes:
    orders: Orders > 1, increasing.
    epsilons: Renyi epsilon at each order.
  """

  orders: np.ndarray
  epsilons: np.ndarray


def epsilon(
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  delta: float,
  accountant: Accountant = 'pld',
  sampling: Sampling = 'poisson',
  overflow: float = 0.0,
  num_rows: int | None = None,
) -> float:
  """Epsilon of a run of DP-SGD.

  Args:
    noise_multiplier: Standard deviation of the noise over the clip norm, >= 0;
      0 has epsilon infinity.
    sampling_rate: Probability of each row to be in a batch, in (0, 1].
    steps: Number of updates.
    delta: In (0, 1), and well below 1 / rows of the set.
    accountant: 'pld' (tight) or 'rdp'.
    sampling: How batches are drawn; 'full' is sampling_rate 1.
    overflow: Probability that a step draws more rows than a batch can hold
      (`poisson.overflow_probability`), paid for with 1 % of delta
      (`privacy.overflow`).
    num_rows: Rows of the training set, to check delta against.

  Raises:
    InputError: If an argument is out of range, batches are shuffled, or
      overflows are too likely.
  """
  _check(noise_multiplier, sampling_rate, steps, sampling, accountant)
  _check_delta(delta, num_rows)
  if not 0 <= overflow < 1:
    raise InputError(f'Need 0 <= overflow < 1; got {overflow=}')
  if noise_multiplier == 0:
    return math.inf
  aside = delta * overflows.SHARE if overflow else 0.0
  composed = _composed(noise_multiplier, sampling_rate, steps)
  with _quietly():
    bound = composed.get_epsilon_and_optimal_order(delta - aside)
  known = losses.Bound(*map(float, bound))
  result = known.epsilon
  if accountant == 'pld':
    run = losses.Run(noise_multiplier, sampling_rate, int(steps))
    result = min(result, float(losses.epsilon(run, delta - aside, known)))
  if overflow:
    overflows.check(overflow, overflows.allowed(result, delta, steps))
  return result


def noise_multiplier_for(
  target_epsilon: float,
  *,
  sampling_rate: float,
  steps: int,
  delta: float,
  accountant: Accountant = 'pld',
  sampling: Sampling = 'poisson',
  overflow: float = 0.0,
  num_rows: int | None = None,
  tolerance: float = 1e-3,
) -> float:
  """The least noise whose epsilon is at most `target_epsilon`.

  The arguments that are not here are those of `epsilon`.

  Args:
    target_epsilon: > 0.
    tolerance: Relative error of the noise multiplier, upwards.

  Raises:
    InputError: If no noise multiplier up to 1024 reaches it, or overflows are
      too likely for that epsilon.
  """
  if not 0 < target_epsilon < math.inf:
    raise InputError(f'Need a finite epsilon > 0; got {target_epsilon=}')
  _check(1.0, sampling_rate, steps, sampling, accountant)
  _check_delta(delta, num_rows)
  if overflow:
    most = overflows.allowed(target_epsilon, delta, steps)
    overflows.check(overflow, most)
    delta -= delta * overflows.SHARE

  @functools.cache
  def excess(noise, accountant):
    """Logarithm of epsilon over its target; falls with the noise."""
    found = epsilon(
      noise_multiplier=noise,
      sampling_rate=sampling_rate,
      steps=steps,
      delta=delta,
      accountant=accountant,
    )
    return math.log(max(found, 1e-9) / target_epsilon)

  fn = functools.partial(excess, accountant=accountant)
  fast = functools.partial(excess, accountant='rdp')
  if fast(_MAX_NOISE) <= 0:  # Faster, and the answer is below.
    near = _root(fast, 1.0, 2.0, 0.1)
  elif fn(_MAX_NOISE) <= 0:
    near = _MAX_NOISE
  else:
    least = target_epsilon * math.exp(fn(_MAX_NOISE))
    raise InputError(
      f'epsilon {target_epsilon} is out of reach: {steps} steps at sampling '
      f'rate {sampling_rate:.3g} and {delta=} have epsilon {least:.3g} even '
      f'with noise_multiplier={_MAX_NOISE:g}; take fewer steps, smaller '
      'batches or a larger delta.'
    )
  return _root(fn, near, 1.1, tolerance)


def _root(fn, near, factor, tolerance):
  """Where a falling function has become <= 0, within a factor of tolerance.

  Args:
    fn: Falling, and <= 0 at the largest noise.
    near: Where the search begins.
    factor: Its first step, > 1; each one is twice as long.
    tolerance: Of the result, upwards.
  """
  from scipy import optimize

  lower = upper = near
  step = factor
  while fn(upper) > 0:
    lower, upper = upper, min(upper * step, _MAX_NOISE)
    step *= step
  step = factor
  while lower > _MIN_NOISE and fn(lower) <= 0:
    lower, upper = max(lower / step, _MIN_NOISE), lower
    step *= step
  if fn(lower) <= 0:
    return lower
  zero = math.exp(
    optimize.brentq(
      lambda x: fn(math.exp(x)),
      math.log(lower),
      math.log(upper),
      xtol=tolerance / 4,
    )
  )
  # `zero` is off by a quarter of the tolerance at most, to either side.
  zero *= math.exp(tolerance / 2)
  return zero if fn(zero) <= 0 else upper


def rdp_curve(
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  sampling: Sampling = 'poisson',
) -> RdpCurve:
  """Renyi differential privacy of a run; arguments as of `epsilon`."""
  _check(noise_multiplier, sampling_rate, steps, sampling)
  if noise_multiplier == 0:
    raise InputError('Without noise there is no privacy: noise_multiplier=0')
  composed = _composed(noise_multiplier, sampling_rate, steps)
  return RdpCurve(np.array(composed.orders), np.array(composed.rdp))


def profile(
  epsilons: np.ndarray,
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  sampling: Sampling = 'poisson',
) -> np.ndarray:
  """Delta at each epsilon, by privacy losses; arguments as of `epsilon`.

  Args:
    epsilons: >= 0, [P].

  Returns:
    Upper bounds for both directions, [P].
  """
  _check(noise_multiplier, sampling_rate, steps, sampling)
  if noise_multiplier == 0:
    return np.ones(len(epsilons))
  composed = _composed(noise_multiplier, sampling_rate, steps)
  with _quietly():
    known = composed.get_epsilon_and_optimal_order(_PROFILE_DELTA)
  return losses.deltas(
    losses.Run(noise_multiplier, sampling_rate, int(steps)),
    epsilons,
    _PROFILE_DELTA,
    losses.Bound(*map(float, known)),
  )


def _check(noise_multiplier, sampling_rate, steps, sampling, accountant='rdp'):
  if accountant not in ('pld', 'rdp'):
    raise InputError(f"accountant is 'pld' or 'rdp'; got {accountant=}")
  if sampling == 'shuffled':
    raise InputError(_SHUFFLED)
  if sampling not in ('poisson', 'full'):
    raise InputError(f"sampling is 'poisson' or 'full'; got {sampling=}")
  if sampling == 'full' and sampling_rate != 1:
    raise InputError(
      f"sampling='full' has sampling_rate=1; got {sampling_rate=}"
    )
  if not 0 < sampling_rate <= 1:
    raise InputError(f'Need 0 < sampling_rate <= 1; got {sampling_rate=}')
  if steps < 1 or steps != int(steps):
    raise InputError(f'steps must be a whole number >= 1; got {steps=}')
  if not 0 <= noise_multiplier < math.inf:
    raise InputError(
      f'Need a finite noise_multiplier >= 0; got {noise_multiplier=}'
    )


def _check_delta(delta, num_rows):
  if not 0 < delta < 1:
    raise InputError(f'Need 0 < delta < 1; got {delta=}')
  if num_rows is not None and delta >= 1 / num_rows:
    warnings.warn(
      f'{delta=} is at least 1 / {num_rows} rows: publishing one row in full, '
      'chosen at random, would count as private. Take delta well below it.',
      stacklevel=3,
    )


@contextlib.contextmanager
def _quietly():
  """Without a warning for each order that the library leaves out.

  It does where a series converges too slowly, which only rounds epsilon up.
  """
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


@functools.lru_cache(maxsize=4096)
def _composed(noise_multiplier, sampling_rate, steps):
  """The Renyi accountant after a run, which is not to be changed.

  A search for the noise takes a dozen of them, each a tenth of a second.
  """
  try:
    import dp_accounting
    from dp_accounting import rdp
  except ImportError as error:
    raise InputError(
      'accounting needs the package dp-accounting: pip install dp-accounting'
    ) from error
  event = dp_accounting.GaussianDpEvent(noise_multiplier)
  if sampling_rate < 1:
    event = dp_accounting.PoissonSampledDpEvent(sampling_rate, event)
  event = dp_accounting.SelfComposedDpEvent(event, int(steps))
  with _quietly():
    return rdp.RdpAccountant().compose(event)
