"""Device code: calls of the layers of a linen model that have a norm rule.

A rule goes by what the layer itself gets and gives. Where an interceptor that
was entered later may change that, as one that the loss enters, the layer is
passed by: what is seen from here is not the layer's.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
from typing import Any

import flax.linen as nn
import jax

from repjax import interceptors
from repjax.privacy.ghost import rules

# (path of the module, method): one layer, wherever it is called.
Key = tuple[tuple[str, ...], str]


@contextlib.contextmanager
def layers(
  fn: Callable[..., Any],
  alike: Callable[[interceptors.Layers], bool] = lambda layers: False,
) -> Iterator[None]:
  """Hands each call of a layer that has a rule to `fn`.

  Args:
    fn: (key, rule, module, x, call) -> output, where call() is the layer's
      own. Layers that it calls itself are not intercepted.
    alike: Whether `fn` may meet one layer in the place of several, where blocks
      are to run as one loop.
  """
  with nn.intercept_methods(_Interceptor(fn, alike)):
    yield


class _Interceptor(interceptors.Interceptor):
  """Of layers that have a rule."""

  def __init__(self, fn, alike):
    self._fn = fn
    self._alike = alike
    self._is_inside = False

  def alike(self, layers):
    return self._alike(layers)

  def changes(self, module, method):
    return True  # Its `fn` may do what it wants.

  def __call__(self, next_fn, args, kwargs, context):
    module = context.module
    rule = None
    if (
      not self._is_inside
      and len(args) == 1
      and not kwargs
      and hasattr(args[0], 'ndim')
    ):
      rule = rules.rule(module, context.method_name)
    if (
      rule is None
      or not _is_alone(module)
      or not interceptors.is_innermost(self, module, context.method_name)
    ):
      return next_fn(*args, **kwargs)
    self._is_inside = True
    try:
      key = (module.path, context.method_name)
      return self._fn(key, rule, module, args[0], lambda: next_fn(*args))
    finally:
      self._is_inside = False


_WEIGHT = {
  nn.Dense: 'kernel',
  nn.DenseGeneral: 'kernel',
  nn.Conv: 'kernel',
  nn.Embed: 'embedding',
}


def _is_alone(module):
  """Whether a layer has its weights, and nothing that was added to it.

  A layer with an adapter is not the product that its rule is about.
  """
  weights = module.variables.get('params', {})
  return _WEIGHT[type(module)] in weights and not any(
    isinstance(weight, Mapping) for weight in weights.values()
  )


def bare(module: nn.Module, method: str) -> Callable[..., Any]:
  """A layer as a function, behind no interceptor: (parameters, x) -> output."""
  alone = module.clone(parent=None)

  def apply(params, x):
    with interceptors.without():
      return alone.apply({'params': params}, x, method=method)

  return apply


def exact(module: nn.Module, method: str) -> Callable[..., Any]:
  """As `bare`; no device rounds its products, whatever precision it names."""
  if not isinstance(module, nn.Embed):  # `attend` goes by the default.
    module = module.clone(precision='highest')
  layer = bare(module, method)

  def apply(params, x):
    with jax.default_matmul_precision('highest'):
      return layer(params, x)

  return apply
