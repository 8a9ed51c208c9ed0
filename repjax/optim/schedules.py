"""Learning-rate schedules beyond those that optax names."""

from collections.abc import Sequence

import optax

from repjax.types import InputError
from repjax.types import check_range


def warmup_cosine(
  peak: float, *, steps: int, warmup: float = 0.05, end: float = 0.0
) -> optax.Schedule:
  """Linear warm-up to `peak`, then half a cosine down to `end`.

  Args:
    peak: Highest learning rate, > 0.
    steps: Length of the run.
    warmup: Fraction of the steps spent warming up, in [0, 1).
    end: Learning rate at the end, as a fraction of `peak`, >= 0.

  Returns:
    Step -> learning rate.
  """
  check_range('(0, inf)', peak=peak)
  check_range('[0, 1)', warmup=warmup)
  check_range('[1, inf)', steps=steps)
  check_range('[0, inf)', end=end)  # Below 0 a run would climb at its end.
  warmup_steps = round(steps * warmup)
  if warmup_steps == 0:
    return optax.cosine_decay_schedule(peak, steps, alpha=end)
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, max(steps, warmup_steps + 1), peak * end
  )


def drops(
  start: float, *, steps: int, at: Sequence[float], factors: Sequence[float]
) -> optax.Schedule:
  """A rate that is multiplied with factors at parts of the run.

  Factors whose parts fall on one step are all applied there.

  Args:
    start: Rate at the beginning.
    steps: Length of the run.
    at: Fractions of the steps, each in [0, 1].
    factors: One for each of them, >= 0; above 1 the rate rises.

  Returns:
    Step -> learning rate.
  """
  if len(at) != len(factors):
    raise InputError(
      f'at and factors are one number a drop; got at={tuple(at)} and '
      f'factors={tuple(factors)}'
    )
  changes: dict[int, float] = {}
  for part, factor in zip(at, factors, strict=True):
    check_range('[0, 1]', at=part)
    check_range('[0, inf)', factors=factor)
    step = round(part * steps)
    changes[step] = changes.get(step, 1.0) * factor
  return optax.piecewise_constant_schedule(start, changes)
