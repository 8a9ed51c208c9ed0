"""Learning-rate schedules beyond those that optax names."""

import optax

from repjax.types import check_range


def warmup_cosine(
  peak: float, *, steps: int, warmup: float = 0.05, end: float = 0.0
) -> optax.Schedule:
  """Linear warm-up to `peak`, then half a cosine down to `end`.

  Args:
    peak: Highest learning rate, > 0.
    steps: Length of the run.
    warmup: Fraction of the steps spent warming up, in [0, 1).
    end: Learning rate at the end, as a fraction of `peak`.

  Returns:
    Step -> learning rate.
  """
  check_range('(0, inf)', peak=peak)
  check_range('[0, 1)', warmup=warmup)
  check_range('[1, inf)', steps=steps)
  warmup_steps = round(steps * warmup)
  if warmup_steps == 0:
    return optax.cosine_decay_schedule(peak, steps, alpha=end)
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, max(steps, warmup_steps + 1), peak * end
  )
