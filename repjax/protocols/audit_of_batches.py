"""Protocol: are a private run's batches the samples that its claim is about?

Part of `pipeline_audit`. Shuffled epochs, batches of one size, and rows that
come more often than the rate says all break the accounting, and nothing else in
a run would notice.
"""

import math
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.batches import users

ERROR = 1e-6  # Probability that a test fails what is right.


class Finding(NamedTuple):
  """One property of a pipeline.

  Attributes:
    check: What was measured.
    claimed: What it should be: a bound, or the number itself.
    measured: What it is.
    holds: Whether these agree, up to chance.
    where: The layer, canary or step that was worst; '' where there is none.
  """

  check: str
  claimed: float
  measured: float
  holds: bool
  where: str = ''


def at_most(check: str, measured: float, limit: float) -> Finding:
  """A property that is held by what is at most `limit`."""
  return Finding(check, float(limit), measured, bool(measured <= limit))


def sampling(train: types.Batches, rate: float, draws: int) -> list[Finding]:
  """Whether each unit is in each step with the rate, and independently.

  Args:
    train: Batches of one process.
    rate: That is claimed.
    draws: Steps to look at.
  """
  from scipy import stats

  owners, count = _units(train)
  drawn = np.zeros((draws, count), bool)
  twice = 0
  for step in range(draws):
    batch = train.batch(step)
    rows = batch['index'][batch['mask'] > 0]
    twice += len(rows) - len(np.unique(rows))
    drawn[step, owners[rows]] = True
  sizes = drawn.sum(1)
  law = stats.binom(count * draws, rate)
  low, high = law.ppf(ERROR / 2), law.ppf(1 - ERROR / 2)
  mean = float(sizes.sum())
  findings = [
    Finding(
      'sampling rate', rate, mean / (count * draws), bool(low <= mean <= high)
    ),
    Finding('rows that are twice in one batch', 0.0, float(twice), not twice),
  ]
  if rate == 1:
    return findings
  # Sizes of batches scatter as a binomial law does; shuffled ones do not.
  variance = count * rate * (1 - rate)
  spread = float(((sizes - count * rate) ** 2).sum() / variance)
  low, high = stats.chi2.ppf([ERROR / 2, 1 - ERROR / 2], draws)
  findings.append(
    Finding(
      'variance of the size of batches, as a share of the binomial one',
      1.0,
      spread / draws,
      bool(0.9 * low <= spread <= 1.1 * high),
    )
  )
  # Of an epoch, no row comes again in the next step.
  both = float((drawn[1:] & drawn[:-1]).sum())
  expected = count * (draws - 1) * rate**2
  error = math.sqrt(expected) * stats.norm.isf(ERROR / 2) * (1 + 2 * rate) + 3
  findings.append(
    Finding(
      'units that are in two steps in a row, as a share of the expected ones',
      1.0,
      both / expected,
      bool(abs(both - expected) <= error),
    )
  )
  return findings


def _units(train):
  """(unit of each row, number of units)."""
  if not isinstance(train, users.UserBatches):
    return np.arange(len(train.source)), len(train.source)
  owners = np.empty(len(train.rows), np.int64)
  owners[train.rows] = np.repeat(
    np.arange(train.num_users), np.diff(train.starts)
  )
  return owners, train.num_users
