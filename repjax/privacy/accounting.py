"""Host side: how private DP-SGD is, over `dp_accounting`.

T steps of DP-SGD are T compositions of the Poisson-subsampled Gaussian
mechanism (Abadi et al., CCS 2016, https://arxiv.org/abs/1607.00133).
Accountants: 'pld', privacy loss distributions, tight up to discretization and
rounded up; and 'rdp', Renyi differential privacy (Mironov, 2017,
https://arxiv.org/abs/1702.07476; Mironov et al., 2019,
https://arxiv.org/abs/1908.10530), faster, some percent looser, and what
`tuning` builds on.

Neighbours are data sets that differ by ADDING OR REMOVING one row. Replacing a
row is a removal and an addition: its epsilon is larger.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any
from typing import Literal
from typing import NamedTuple
import warnings

from absl import logging
import numpy as np

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

# Share of delta that is set aside for batches that overflow.
_OVERFLOW_SHARE = 0.01
_MIN_NOISE, _MAX_NOISE = 2.0**-6, 1024.0
# Width of the steps of a privacy loss distribution. Epsilon is rounded up by
# about steps * width^2: at this width by 0.0003 in 1,000 steps, in a tenth of
# the time of the library's 1e-4. Longer runs take narrower steps.
_WIDTH, _WIDTH_STEPS = 1e-3, 1000


class RdpCurve(NamedTuple):
  """Renyi differential privacy of a mechanism.

  Attributes:
    orders: Orders > 1, increasing.
    epsilons: Renyi epsilon at each order.
  """

  orders: np.ndarray
  epsilons: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
  """What a run may claim, with all that the claim rests on.

  Attributes:
    epsilon: Of (epsilon, delta)-differential privacy.
    delta: Of (epsilon, delta)-differential privacy.
    neighbours: The relation between data sets that the claim is about.
    unit: Whose privacy it is.
    sampling: How batches were drawn.
    sampling_rate: Probability of a row to be in a batch.
    noise_multiplier: Of the whole step, as given to `optim.dp_sgd`.
    steps: Number of updates.
    overflow: Probability that a batch held more rows than its capacity.
    accountant: 'pld' or 'rdp'.
    software: Name and version of the accounting library.
    not_covered: What the claim leaves out.
  """

  epsilon: float
  delta: float
  neighbours: str
  unit: str
  sampling: str
  sampling_rate: float
  noise_multiplier: float
  steps: int
  overflow: float
  accountant: str
  software: str
  not_covered: tuple[str, ...]

  def to_dict(self) -> dict[str, Any]:
    """As it goes into a run's report."""
    return dataclasses.asdict(self)


NOT_COVERED = (
  'the choice of hyperparameters on the same rows (repjax.privacy.tuning)',
  'metrics of the training rows that were looked at',
  'rows of one person that occur more than once',
  'random numbers that an attacker can predict, and floating-point rounding',
)


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
      (`poisson.overflow_probability`). Up to the first such step, the run is
      that without a limit, so steps * overflow * (1 + e^epsilon) comes off
      delta, of which 1 % is set aside.
    num_rows: Rows of the training set, to check delta against.

  Raises:
    InputError: If an argument is out of range, batches are shuffled, or
      overflows are too likely.
  """
  _check(noise_multiplier, sampling_rate, steps, sampling)
  _check_delta(delta, num_rows)
  if not 0 <= overflow < 1:
    raise InputError(f'Need 0 <= overflow < 1; got {overflow=}')
  if noise_multiplier == 0:
    return math.inf
  aside = delta * _OVERFLOW_SHARE if overflow else 0.0
  event = _event(noise_multiplier, sampling_rate, steps)
  with _quietly():
    composed = _accountant(accountant, steps).compose(event)
    result = composed.get_epsilon(delta - aside)
  if (
    overflow
    and not steps * overflow * (1 + math.exp(min(result, 700.0))) <= aside
  ):
    raise InputError(
      f'batches overflow too often: in {steps} steps with probability '
      f'{overflow:.1e} each, next to {delta=}; raise the capacity of the '
      'batches (repjax.data.batches.poisson.capacity).'
    )
  return float(result)


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

  Args:
    target_epsilon: > 0.
    sampling_rate: Probability of each row to be in a batch, in (0, 1].
    steps: Number of updates.
    delta: In (0, 1), and well below 1 / rows of the set.
    accountant: 'pld' (tight) or 'rdp'.
    sampling: How batches are drawn; 'full' is sampling_rate 1.
    overflow: Probability that a step draws more rows than a batch can hold.
    num_rows: Rows of the training set, to check delta against.
    tolerance: Relative error of the noise multiplier, upwards.

  Raises:
    InputError: If no noise multiplier up to 1024 reaches it.
  """
  if not 0 < target_epsilon < math.inf:
    raise InputError(f'Need a finite epsilon > 0; got {target_epsilon=}')
  _check(1.0, sampling_rate, steps, sampling)
  _check_delta(delta, num_rows)

  _accountant(accountant)

  def value(noise, accountant):
    return epsilon(
      noise_multiplier=noise,
      sampling_rate=sampling_rate,
      steps=steps,
      delta=delta,
      accountant=accountant,
      overflow=overflow,
    )

  def excess(noise, accountant):
    """Logarithm of epsilon over its target; falls with the noise."""
    try:
      found = value(noise, accountant)
    except InputError:  # So little noise that overflows matter.
      found = math.inf
    return min(math.log(max(found, 1e-9) / target_epsilon), 50.0)

  least = value(_MAX_NOISE, 'rdp')
  if least > target_epsilon:
    raise InputError(
      f'epsilon {target_epsilon} is out of reach: {steps} steps at sampling '
      f'rate {sampling_rate:.3g} and {delta=} have epsilon {least:.3g} even '
      f'with noise_multiplier={_MAX_NOISE:g}; take fewer steps, smaller '
      'batches or a larger delta.'
    )
  fast = functools.partial(excess, accountant='rdp')
  lower, upper = _bracket(fast, _MIN_NOISE)
  if accountant == 'rdp':
    return _root(fast, lower, upper, tolerance)
  # Slower, and up to some 10 % lower: only near the other's answer.
  near = _root(fast, lower, upper, 0.01)
  fn = functools.partial(excess, accountant=accountant)
  lower, upper = near * 0.85, near * 1.02
  while lower > _MIN_NOISE and fn(lower) <= 0:
    lower, upper = lower * 0.85, lower
  while fn(upper) > 0:
    upper *= 1.1
  return _root(fn, lower, upper, tolerance)


def _bracket(fn, lower):
  """A factor of 2 around the zero of a falling function."""
  middle = 1.0
  if fn(middle) > 0:
    while fn(2 * middle) > 0:
      middle *= 2
    return middle, 2 * middle
  while middle > lower and fn(middle / 2) <= 0:
    middle /= 2
  return middle / 2, middle


def _root(fn, lower, upper, tolerance):
  """Where a falling function has become <= 0, within a factor of tolerance."""
  from scipy import optimize

  if fn(lower) <= 0:
    return lower
  zero = optimize.brentq(
    lambda x: fn(math.exp(x)),
    math.log(lower),
    math.log(upper),
    xtol=tolerance / 4,
  )
  # `zero` is off by a quarter of the tolerance at most, to either side.
  return math.exp(zero + tolerance / 2)


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
  accountant = _accountant('rdp')
  with _quietly():
    accountant.compose(_event(noise_multiplier, sampling_rate, steps))
  return RdpCurve(np.asarray(accountant.orders), np.asarray(accountant.rdp))


def profile(
  epsilons: np.ndarray,
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  sampling: Sampling = 'poisson',
) -> np.ndarray:
  """Delta at each epsilon, by the 'pld' accountant; arguments as of `epsilon`.

  Args:
    epsilons: >= 0, [P].
    noise_multiplier: Standard deviation of the noise over the clip norm, >= 0.
    sampling_rate: Probability of each row to be in a batch, in (0, 1].
    steps: Number of updates.
    sampling: How batches are drawn; 'full' is sampling_rate 1.

  Returns:
    Upper bounds for both directions, [P].
  """
  _check(noise_multiplier, sampling_rate, steps, sampling)
  if noise_multiplier == 0:
    return np.ones(len(epsilons))
  accountant = _accountant('pld', steps)
  with _quietly():
    accountant.compose(_event(noise_multiplier, sampling_rate, steps))
  return np.asarray([accountant.get_delta(float(x)) for x in epsilons])


def statement(
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  delta: float,
  accountant: Accountant = 'pld',
  sampling: Sampling = 'poisson',
  overflow: float = 0.0,
  num_rows: int | None = None,
  unit: str = 'one row of the training set',
) -> Statement:
  """Everything that a run may claim; arguments as of `epsilon`.

  Args:
    noise_multiplier: Standard deviation of the noise over the clip norm, >= 0.
    sampling_rate: Probability of each row to be in a batch, in (0, 1].
    steps: Number of updates.
    delta: In (0, 1), and well below 1 / rows of the set.
    accountant: 'pld' (tight) or 'rdp'.
    sampling: How batches are drawn; 'full' is sampling_rate 1.
    overflow: Probability that a step draws more rows than a batch can hold.
    num_rows: Rows of the training set, to check delta against.
    unit: Whose privacy it is.
  """
  import importlib.metadata

  found = epsilon(
    noise_multiplier=noise_multiplier,
    sampling_rate=sampling_rate,
    steps=steps,
    delta=delta,
    accountant=accountant,
    sampling=sampling,
    overflow=overflow,
    num_rows=num_rows,
  )
  version = importlib.metadata.version('dp-accounting')
  return Statement(
    epsilon=found,
    delta=delta,
    neighbours='data sets that differ by adding or removing one unit',
    unit=unit,
    sampling='Poisson' if sampling == 'poisson' else 'all rows in every step',
    sampling_rate=sampling_rate,
    noise_multiplier=noise_multiplier,
    steps=steps,
    overflow=overflow,
    accountant=accountant,
    software=f'dp-accounting {version}',
    not_covered=NOT_COVERED,
  )


def _check(noise_multiplier, sampling_rate, steps, sampling):
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


def _event(noise_multiplier, sampling_rate, steps):
  accounting = _library()
  event = accounting.GaussianDpEvent(noise_multiplier)
  if sampling_rate < 1:
    event = accounting.PoissonSampledDpEvent(sampling_rate, event)
  return accounting.SelfComposedDpEvent(event, int(steps))


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


def _accountant(name, steps=1):
  accounting = _library()
  if name == 'pld':
    width = _WIDTH * min(1.0, math.sqrt(_WIDTH_STEPS / steps))
    return accounting.pld.PLDAccountant(value_discretization_interval=width)
  if name == 'rdp':
    return accounting.rdp.RdpAccountant()
  raise InputError(f"accountant is 'pld' or 'rdp'; got {name!r}")


def _library():
  try:
    import dp_accounting
    import dp_accounting.pld
    import dp_accounting.rdp
  except ImportError as error:
    raise InputError(
      'accounting needs the package dp-accounting: pip install dp-accounting'
    ) from error
  return dp_accounting
