"""Host side: how much noise a private run adds, and how large its batches are.

Each depends on the other: what overflows a batch costs a share of delta.
"""

import math
from typing import Any

from repjax import types
from repjax.data.batches import poisson
from repjax.privacy import accounting
from repjax.privacy import overflow as overflows

# How often a batch overflows at the most, where delta would allow more: the
# best of many runs has less to spare.
_RARE = 1e-15


def noise_and_capacity(
  num_rows: int,
  *,
  rate: float,
  steps: int,
  epsilon: float,
  noise_multiplier: float,
  delta: float,
  overflow: float,
  accountant: accounting.Accountant,
  multiple: int,
) -> tuple[float, int]:
  """(standard deviation of the noise in units of C, rows a batch can hold).

  Arguments are those of `private.plan`, with the `rate` and the number of
  `steps` that follow from them.

  Raises:
    InputError: If the noise is too little to be any privacy, or epsilon cannot
      be reached.
  """
  run: dict[str, Any] = dict(
    sampling_rate=rate,
    steps=steps,
    accountant=accountant,
    num_rows=num_rows,
  )
  spent = epsilon
  if noise_multiplier:
    spent = accounting.epsilon(
      noise_multiplier=noise_multiplier,
      delta=delta - delta * overflows.SHARE,
      **run,
    )
    if spent > overflows.MOST:
      raise types.InputError(
        f'{noise_multiplier=} has epsilon {spent:.3g}, which is no privacy: '
        'take more noise, or 0 to clip without any.'
      )
  rarely = _RARE
  if spent < math.inf:
    rarely = min(_RARE, overflows.allowed(spent, delta, steps))
  capacity = poisson.capacity(
    num_rows, rate, multiple=multiple, tail=overflow or rarely
  )
  too_many = poisson.overflow_probability(num_rows, rate, capacity)
  if noise_multiplier:
    # Now, and not when the budget is spent.
    overflows.check(too_many, overflows.allowed(spent, delta, steps))
  if epsilon < math.inf:
    noise_multiplier = accounting.noise_multiplier_for(
      epsilon, delta=delta, overflow=too_many, **run
    )
  return noise_multiplier, capacity


def check_steps(steps: int, epochs: float, min_steps: int) -> None:
  """Refuses more steps than a plan's, which would not be trained.

  Args:
    steps: Of the plan.
    epochs: Which decide them.
    min_steps: As the config has it.
  """
  if min_steps > steps:
    raise types.InputError(
      f'config.{min_steps=} counts for nothing in private training, where '
      f'config.{epochs=:g} decides: {steps} steps. Raise --config.epochs.'
    )
