"""Host side: what a private search costs that may draw several candidates.

It is accounted for the worst of them, with what the score by which runs are
compared tells of the data.
"""

from collections.abc import Collection
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax.privacy import accounting
from repjax.privacy import overflow
from repjax.privacy import statements
from repjax.privacy import tuning
from repjax.privacy.search import laws
from repjax.privacy.search import tradeoff

# How often the number of trials is cut, at the most.
_CUT = 1e-15
# The smallest probability.
_ANY = 5e-324
# So many candidates are also accounted for by their privacy loss, which is
# tighter than the moments and dearer to compute.
_BY_PROFILE = 8


class Costs(NamedTuple):
  """What the search costs.

  Attributes:
    epsilon: Of the whole search.
    one_run: Epsilon of the worst candidate alone, with its score.
    limit: Largest number of trials.
  """

  epsilon: float
  one_run: float
  limit: int


def of_search(
  candidates: Collection[statements.Statement],
  law: laws.Law,
  *,
  delta: float,
  limit: int | None = None,
  score_noise: float | None = None,
) -> Costs:
  """Costs of the best of a random number of runs.

  Args:
    candidates: What each of them claims; distinct ones are enough.
    law: Of the number of trials.
    delta: Of the search.
    limit: Where the number of trials is cut; by default where the law gets with
      probability 1e-15, or as rarely as delta needs it.
    score_noise: Standard deviation of the noise on counts of held-out rows that
      are right; None if the score needs no privacy.

  Raises:
    InputError: If a batch overflows more often than delta covers.
    ValueError: If the number of trials exceeds `limit` more often than that.
  """
  curve, power = worst(candidates, score_noise)
  # As if it were lost hardly ever, to see how rarely it may be.
  found = tuning.epsilon_of_best(curve, law, delta, power=power, lost=_ANY)
  covered = tuning.loss_covered(found, delta)
  # Half of it for the number of trials, half for batches that overflow.
  if limit is None:
    limit = laws.most(law, min(_CUT, covered / 2))
  lost = 0.0
  for x in candidates:
    if x.overflow:  # Which is another mechanism.
      overflow.check(x.overflow, covered / 2 / (law.mean * x.steps))
      lost = max(lost, law.mean * x.steps * x.overflow)
  found = tuning.epsilon_of_best(
    curve, law, delta, power=power, limit=limit, lost=lost
  )
  return Costs(found, tuning.epsilon(curve, delta), limit)


def worst(
  candidates: Collection[statements.Statement], score_noise: float | None
) -> tuple[accounting.RdpCurve, tradeoff.Power]:
  """One bound for every candidate, with the score's part."""
  known: list[dict[str, Any]] = [
    dict(
      noise_multiplier=x.noise_multiplier,
      sampling_rate=x.sampling_rate,
      steps=x.steps,
    )
    for x in candidates
  ]
  curves = [accounting.rdp_curve(**x) for x in known]
  curve = accounting.RdpCurve(
    curves[0].orders, np.max([x.epsilons for x in curves], axis=0)
  )
  if score_noise is not None:
    curve = with_score(curve, score_noise)
  power = tradeoff.from_rdp(curve)
  if score_noise is None and len(known) <= _BY_PROFILE:
    at = np.linspace(0, 12, 121)
    deltas = np.max([accounting.profile(at, **x) for x in known], axis=0)
    power = tradeoff.both(power, tradeoff.from_profile(at, deltas))
  return curve, power


def with_score(
  curve: accounting.RdpCurve, stddev: float
) -> accounting.RdpCurve:
  """A run that also tells how many held-out rows it gets right, with noise.

  Args:
    curve: Of the run alone.
    stddev: Of Gaussian noise on that count, which a row changes by 1 at most.
  """
  if not stddev > 0:
    raise ValueError(f'Need stddev > 0; got {stddev=}')
  score = curve.orders / (2 * stddev**2)
  return accounting.RdpCurve(curve.orders, curve.epsilons + score)


def composed(curve: accounting.RdpCurve, count: float) -> accounting.RdpCurve:
  """Of `count` runs that are all published."""
  return accounting.RdpCurve(curve.orders, count * curve.epsilons)
