"""What a model must take, so that a method can call it."""

from collections.abc import Sequence
import inspect

import flax.linen as nn

from repjax import types


def check(model: nn.Module, names: Sequence[str]) -> None:
  """Refuses a model whose call knows nothing of what it will be told.

  Args:
    model: What a method trains.
    names: Of the arguments that it is called with by name.

  Raises:
    InputError: If `__call__` has neither such an argument nor **kwargs.
  """
  known = inspect.signature(model.__call__).parameters
  if any(x.kind == x.VAR_KEYWORD for x in known.values()):
    return
  missing = [x for x in names if x not in known]
  if missing:
    raise types.InputError(
      f'{type(model).__name__}.__call__ takes no {" and no ".join(missing)}: '
      'it is called with train, whether it trains, and mask, which rows (of '
      'text, which tokens) are real: write it as '
      'def __call__(self, x, *, train, mask=None).'
    )
