"""What looks into layers, and who else does.

`nn.intercept_methods` hands each call of a layer to an interceptor. Where
blocks run as one loop (`repjax.models.deep`), it would meet the layers of the
first block alone, and inside of a trace. What can live with that says so by
being an `Interceptor`; under any other, blocks run one after another.

The one that was entered last is the innermost: it stands between the layer and
all others. Flax has no public way to ask for them or to set them aside. What is
read of it instead is in this file alone.
"""

import abc
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import flax
import flax.linen as nn
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

  @abc.abstractmethod
  def changes(self, module: nn.Module, method: str) -> bool:
    """Whether it does anything to the call of a layer that comes next."""


def may_loop(layers: Layers) -> bool:
  """Whether all interceptors that are at work treat the blocks alike."""
  return all([isinstance(x, Interceptor) and x.alike(layers) for x in _stack()])


def is_innermost(
  interceptor: Callable[..., Any], module: nn.Module, method: str
) -> bool:
  """Whether nothing stands between an interceptor and the layer it has met.

  Args:
    interceptor: One that is at work.
    module: The layer.
    method: The name of its method that is called.

  Raises:
    RuntimeError: It is not at work, as far as flax tells.
  """
  stack = _stack()
  places = [i for i, x in enumerate(stack) if x is interceptor]
  if not places:
    raise RuntimeError(
      f'flax {flax.__version__} calls an interceptor that is not among those '
      'that are at work: who stands behind it cannot be told'
    )
  return all(
    isinstance(x, Interceptor) and not x.changes(module, method)
    for x in stack[places[-1] + 1 :]
  )


@contextlib.contextmanager
def outermost(interceptor: Callable[..., Any]) -> Iterator[None]:
  """`nn.intercept_methods`, around all that were there before, not inside.

  Others see the layer that is called in place of the first one, once.
  """
  stack = _stack()
  stack.insert(0, interceptor)
  try:
    yield
  finally:
    stack.remove(interceptor)


@contextlib.contextmanager
def without() -> Iterator[None]:
  """Layers that are called inside meet no interceptor that was there before."""
  stack = _stack()
  aside = list(stack)
  stack.clear()
  try:
    yield
  finally:
    stack[:] = aside


def _stack() -> list[Any]:
  """The interceptors at work, the innermost one last."""
  stack = getattr(linen_module, '_global_interceptor_stack', None)
  found = getattr(stack, '_storage', None)
  if not isinstance(found, list):
    raise RuntimeError(
      f'flax {flax.__version__} keeps its interceptors in another way than the '
      'versions that repjax knows, 0.11 and 0.12: ghost clipping, loops over '
      'blocks and other padding need to see them'
    )
  return found


def module_paths(path: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """What a module may be called whose parameters have a path.

  Methods that train more than a network have its parameters in 'model'.
  """
  return (path, path[1:]) if path[:1] == ('model',) else (path,)
