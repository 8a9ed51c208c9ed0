"""What looks into layers, and whether blocks may run as one loop under it.

`nn.intercept_methods` hands each call of a layer to an interceptor. Where
blocks run as one loop (`repjax.models.deep`), it would meet the layers of the
first block alone, and inside of a trace. What can live with that says so by
being an `Interceptor`; under any other, blocks run one after another.
"""

import abc
from collections.abc import Sequence
from typing import Any

from flax.linen import module as linen_module

# For each layer inside of a block, its paths in all the blocks.
Layers = Sequence[Sequence[tuple[str, ...]]]


class Interceptor(abc.ABC):
  """An interceptor that may meet one layer in the place of several."""

  @abc.abstractmethod
  def __call__(self, next_fn, args, kwargs, context) -> Any:
    """As `nn.intercept_methods` calls it."""

  @abc.abstractmethod
  def alike(self, layers: Layers) -> bool:
    """Whether it does the same with a layer in all blocks, for every layer."""


def may_loop(layers: Layers) -> bool:
  """Whether all interceptors that are at work treat the blocks alike."""
  # Flax has no public way to ask for them.
  found = list(linen_module._global_interceptor_stack._storage)
  return all([isinstance(x, Interceptor) and x.alike(layers) for x in found])
