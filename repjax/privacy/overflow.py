"""Host side: what batches cost that cannot hold all the rows of a step.

Up to the first step that draws more rows than its batch holds, a run is that
without a limit. So its privacy is that of a run without a limit but for a
probability: of epsilon-delta-privacy, steps * overflow * (1 + e^epsilon) comes
off delta. A small share of delta is set aside for it.
"""

import math

from repjax.types import InputError

# Share of delta.
SHARE = 0.01
# Above, e^epsilon times a probability is no number that a computer holds.
MOST = 600.0


class TooOftenError(InputError):
  """Batches overflow more often than delta covers.

  Attributes:
    enough: A probability in one step that it covers.
  """

  def __init__(self, message: str, enough: float):
    super().__init__(message)
    self.enough = enough


def allowed(epsilon: float, delta: float, steps: float) -> float:
  """How often a step may draw more rows than a batch can hold.

  Args:
    epsilon: At 1 - `SHARE` of delta.
    delta: Of which `SHARE` is set aside.
    steps: Of all runs that are covered together, on average.

  Returns:
    The largest probability in one step; 0 where epsilon is above `MOST`.
  """
  if epsilon > MOST:
    return 0.0
  return delta * SHARE / (steps * (1 + math.exp(epsilon)))


def check(overflow: float, most: float) -> None:
  """Refuses batches that are too small.

  Args:
    overflow: Probability in one step.
    most: What is `allowed`.

  Raises:
    TooOftenError: If it is more than that.
  """
  if overflow > most:
    enough = f'{0.95 * most:.1e}'  # Below also when it is rounded.
    raise TooOftenError(
      f'batches overflow too often: with probability {overflow:.1e} in a step, '
      f'where epsilon and delta allow {most:.1e}; raise their capacity: '
      f'--config.dp.overflow={enough}, or poisson.capacity(tail={enough}).',
      float(enough),
    )
