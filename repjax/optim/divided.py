"""A number that falls as another one rises."""

import jax.numpy as jnp
import optax


def divided(value: float, by: optax.ScalarOrSchedule) -> optax.Schedule:
  """A number over another one, where that is above 1: value / max(by, 1).

  The weight decay beside a loss that is divided by a penalty's weight
  (`rescale` of `methods.grouped.make`), as all of the authors' sum is.

  Args:
    value: What is divided.
    by: Number, or schedule.

  Returns:
    Step -> number.
  """
  schedule = by if callable(by) else optax.constant_schedule(by)

  def at(step):
    # Of one type, weak or not, so that a step is traced once.
    return jnp.asarray(value / jnp.maximum(schedule(step), 1.0), jnp.float32)

  return at
