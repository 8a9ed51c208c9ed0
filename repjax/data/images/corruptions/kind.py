"""Host side: what one corruption is, and the random numbers of its rows."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

Scale = Literal['cifar', 'imagenet']

# One generator a row, so that what happens to a row depends on no other row.
Rngs = Sequence[np.random.Generator]


class Kind(NamedTuple):
  """A corruption and its published constants.

  Attributes:
    apply: (images [N, H, W, C] float64 in [0, 1], generators [N], **constants)
      -> [N, H, W, C]; what leaves [0, 1] is clipped.
    constants: Scale -> the arguments of `apply` at the severities 1 to 5.
  """

  apply: Callable[..., np.ndarray]
  constants: Mapping[Scale, tuple[Mapping[str, Any], ...]]


def constants(
  names: str, *, cifar: Sequence[Any], imagenet: Sequence[Any]
) -> dict[Scale, tuple[dict[str, Any], ...]]:
  """Constants by scale, of five values or five tuples of values each.

  >>> constants('std', cifar=(1, 2, 3, 4, 5), imagenet=(6, 7, 8, 9, 10))[
  ...   'imagenet'
  ... ][0]
  {'std': 6}

  Args:
    names: Of the arguments, separated by spaces.
    cifar: Those of CIFAR-10-C.
    imagenet: Those of ImageNet-C.
  """
  several = names.split()

  def named(values):
    values = values if len(several) > 1 else (values,)
    return dict(zip(several, values, strict=True))

  return {
    'cifar': tuple(map(named, cifar)),
    'imagenet': tuple(map(named, imagenet)),
  }


def each(
  rngs: Rngs, draw: Callable[[np.random.Generator], np.ndarray]
) -> np.ndarray:
  """What a function draws from the generator of each row, [N, ...]."""
  return np.stack([draw(rng) for rng in rngs])
