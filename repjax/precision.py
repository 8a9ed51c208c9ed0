"""Device code: products that keep all of float32 on every device."""

from collections.abc import Callable
import functools
from typing import ParamSpec
from typing import TypeVar

import jax

P = ParamSpec('P')
R = TypeVar('R')


def full(fn: Callable[P, R]) -> Callable[P, R]:
  """All matrix products that a function makes itself are in full precision.

  By default GPUs may round factors to TF32 and TPUs to bfloat16: 10 and 7 bits
  of mantissa. A network trains with that. A distance as the difference of large
  squares, a solver, a basis or a bound does not stand it. On CPUs nothing
  changes, and neither do products that name a precision of their own.

  @precision.full
  def gram(rows):
    return rows @ rows.T
  """

  @functools.wraps(fn)
  def inner(*args: P.args, **kwargs: P.kwargs) -> R:
    with jax.default_matmul_precision('highest'):
      return fn(*args, **kwargs)

  return inner
