"""What links of an `optax.chain` that need more than the gradient check."""

from typing import Any

from repjax.types import InputError


def check(name: str, **needed: Any) -> None:
  """Says what a link misses in its `update`.

  Args:
    name: Of the link.
    **needed: Those of `params` and `grad_fn` (a `repjax.types.GradFn`) that it
      cannot do without, None where the caller gave none.

  Raises:
    InputError: One of them is None.
  """
  missing = [key for key, value in needed.items() if value is None]
  if missing:
    raise InputError(
      f'{name} needs {" and ".join(missing)}: call tx.update(grads, opt_state, '
      'params, grad_fn=grad_fn)'
    )
